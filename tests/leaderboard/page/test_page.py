"""The page in a browser: it loads from disk without a complaint or a request, sorts, filters, shares, shows runs."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import made
import pytest
from browser import CHROMIUM, WHY_NOT, Browser
from processes import OWN_PEAK
from recorded_runs import Runs

from ssl_bench.cli.main import main
from ssl_bench.leaderboard.latex import escaped
from ssl_bench.leaderboard.render import leaderboard, write_page

HOSTILE = {
    "script": "<script>document.title='taken'</script>",
    "image": '"><img src=x onerror="document.title=\'taken\'">',
    "quotes": 'it\'s "quoted" & `ticked`',
    "long": "x" * 300,
    "rtl": "\u05e9\u05d9\u05d8\u05d4 \u202edesrever",
    "json": "</script><script>document.title='taken'</script>",
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip(WHY_NOT)
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of nine pretrained runs with everything, two baselines and figures."""
    root = tmp_path_factory.mktemp("runs")
    for number, method in enumerate(("mae", "simclr", "dino")):
        for seed in range(3):
            made.full_run(root, method, seed, 0.04 * number, n_test=300, pictures=seed == 0, folder=f"{method}-s{seed}")
    made.baselines(root, n_test=300)
    write_page([root], root / "page")
    return root / "page"


@pytest.fixture
def page(folder: Path, browser: Browser) -> str:
    """Its address, open."""
    address = (folder / "index.html").as_uri()
    browser.open(address)
    return address


def names(browser: Browser) -> list[str]:
    """Methods of the table, in the order they are seen."""
    script = (
        "[...document.querySelectorAll('.scores tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].dataset.value)"
    )
    return list(browser.run(script))


def press(browser: Browser, column: str) -> None:
    browser.run(f"[...document.querySelectorAll('.scores .title')].find(b => b.textContent === {column!r}).click()")


def test_no_complaint_and_no_request_but_the_page_and_its_figures(page: str, browser: Browser) -> None:
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.run("document.querySelectorAll('img').forEach((one) => { one.loading = 'eager'; })")
    loaded = browser.run("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))")
    assert loaded == [320, 320, 240] * 3
    assert browser.complaints == []
    beside = page.removesuffix("index.html") + "images/"
    assert {address for address in browser.requests if not address.startswith(beside)} == {page}
    assert browser.run("[...document.images].every(i => i.alt.length > 20)")


@pytest.mark.integration
def test_the_file_names_no_address(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<iframe|<object|<base", text)
    assert {a for a in re.findall(r'(?:src|href)="([^"#]+)"', text) if not a.startswith("images/run-")} == {"data:,"}
    assert "default-src 'none'" in text


def test_headings_and_tables_for_screen_readers(page: str, browser: Browser) -> None:
    assert browser.run("document.querySelectorAll('h1').length") == 1
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3, h4')].map(h => Number(h.tagName[1]))")
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert browser.run(
        "[...document.querySelectorAll('.scores, .grid')].filter(t => t.tagName === 'TABLE').every(t => t.caption)"
    )
    assert browser.run(
        "[...document.querySelectorAll('.scores thead th, .grid thead th')].every(c => c.scope === 'col')"
    )
    assert browser.run("[...document.querySelectorAll('svg.plot')].every(s => s.getAttribute('aria-label'))")
    assert browser.run("[...document.querySelectorAll('table')].every(t => t.caption)")
    assert browser.run("[...document.querySelectorAll('tbody th')].every(c => c.scope === 'row')")
    assert browser.run("[...document.querySelectorAll('.scroll')].every(s => s.tabIndex === 0 && s.ariaLabel)")
    assert browser.run("[...document.querySelectorAll('input[type=radio]')].every(i => i.closest('fieldset > *'))")
    assert browser.run("[...document.querySelectorAll('fieldset')].every(f => f.querySelector(':scope > legend'))")


def test_a_link_of_the_contents_moves_the_focus(runs: Runs, tmp_path: Path, browser: Browser) -> None:
    for epochs in (20.0, 40.0):
        runs.add("mae", 0, {"linear": 0.6}, epochs=epochs)
    browser.open(write_page([runs.root], tmp_path / "page.html").as_uri())
    links = browser.run("document.querySelectorAll('nav a').length")
    for number in range(links):
        browser.run(f"document.querySelectorAll('nav a')[{number}].click()")
        focused = "`#${document.activeElement.id}` === document.querySelectorAll('nav a')[%d].getAttribute('href')"
        assert browser.run(focused % number)


@pytest.mark.parametrize(("column", "first", "last"), [("linear", "dino", "random"), ("method", "dino", "simclr")])
def test_columns_sort_both_ways(page: str, browser: Browser, column: str, first: str, last: str) -> None:
    press(browser, column)
    assert (names(browser)[0], names(browser)[-1]) == (first, last)
    assert browser.run("document.querySelectorAll('[aria-sort]').length") == 1
    press(browser, column)
    assert (names(browser)[0], names(browser)[-1]) == (last, first)


PUBLISHED = "method,data,backbone,protocol,value,source\n" + "a_b\\c|<d>,cifar10,,linear,99.5,S & T\n"


@pytest.fixture
def beside_published(runs: Runs, tmp_path: Path, browser: Browser) -> Browser:
    for method, value in (("mae", 0.6), ("zero", 0.5)):
        runs.add(method, 0, {"linear": value})
    (tmp_path / "numbers.csv").write_text(PUBLISHED)
    browser.open(write_page([runs.root], tmp_path / "page.html", published=tmp_path / "numbers.csv").as_uri())
    return browser


@pytest.mark.parametrize("column", ["linear", "method", "seeds"])
def test_published_numbers_are_in_no_order(beside_published: Browser, column: str) -> None:
    for _ in range(2):
        press(beside_published, column)
        assert names(beside_published)[-1] == "a_b\\c|<d>"


def test_copies_hold_published_numbers_and_their_source(beside_published: Browser) -> None:
    texts = copied(beside_published)
    lines = list(csv.DictReader(io.StringIO(texts["CSV"])))
    assert [line["source"] for line in lines] == ["", "", "S & T"]
    assert (lines[2]["method"], lines[2]["mean"], lines[2]["n"]) == ("a_b\\c|<d> (published)", "0.995", "")
    assert texts["Markdown"].splitlines()[-1].endswith(r"not ranked: a\_b\\c\|\<d\>: S \& T.")
    name = r"a\_b\textbackslash{}c\textbar{}\textless{}d\textgreater{}"
    assert f"{name} (published) & 99.5" in texts["LaTeX"]
    assert texts["LaTeX"].splitlines()[-1].endswith(name + r": S \& T.\par}")


def copied(browser: Browser) -> dict[str, str]:
    """What each button puts on the clipboard."""
    browser.run(
        "Object.defineProperty(navigator, 'clipboard', {value: {writeText: async (t) => { window.copied = t; }}})"
    )
    texts = {}
    for name in ("Markdown", "CSV", "LaTeX"):
        browser.run(f"[...document.querySelectorAll('button')].find(b => b.textContent === 'Copy {name}').click()")
        texts[name] = browser.run("new Promise(done => setTimeout(() => done(window.copied), 0))")
    return texts


def test_gaps_are_last_whichever_way(page: str, browser: Browser) -> None:
    for _ in range(2):
        press(browser, "finetune")  # which no baseline has
        assert set(names(browser)[-2:]) == {"random", "pixels"}


def test_keys_sort_and_filter(page: str, browser: Browser) -> None:
    browser.run("document.querySelector('.scores .title').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.send(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
        )
    assert names(browser) == ["dino", "mae", "pixels", "random", "simclr"]
    browser.run("document.querySelector('input[type=search]').focus()")
    browser.send("Input.insertText", text="SIM")
    assert names(browser) == ["simclr"]
    assert browser.run("[...document.querySelectorAll('.run')].filter(r => !r.hidden).length") == 3


def test_what_is_seen_is_in_the_address(page: str, browser: Browser) -> None:
    press(browser, "knn")
    press(browser, "knn")
    browser.run("document.querySelectorAll('input[data-column]')[0].click()")
    browser.run(
        "const s = document.querySelector('input[type=search]'); s.value = 'm'; s.dispatchEvent(new Event('input'))"
    )
    browser.run("document.querySelector('.runs a').click()")
    seen = names(browser)
    address, hidden = browser.run("location.href"), "document.querySelector('.scores thead th:nth-child(2)').hidden"
    opened = browser.run("document.querySelector('.run[open]').id")
    assert seen != ["dino", "simclr", "mae"] and browser.run(hidden)
    browser.open(page)
    assert names(browser) != seen and not browser.run(hidden)
    browser.open(address)
    assert names(browser) == seen and browser.run(hidden)
    assert browser.run("document.querySelector('.run[open]').id") == opened
    assert browser.run("document.querySelector('input[type=search]').value") == "m"
    assert browser.complaints == []


def test_a_plain_anchor_opens_a_run(page: str, browser: Browser) -> None:
    name = browser.run("document.querySelectorAll('.run')[3].id")
    browser.open(f"{page}#{name}")
    assert browser.run("[...document.querySelectorAll('.run[open]')].map(r => r.id)") == [name]


def test_an_address_made_up_by_someone_does_no_harm(page: str, browser: Browser) -> None:
    browser.open(f"{page}#sort0=999d&hide0=x.-1&q=%22%3E%3Cscript%3E&at=nowhere")
    assert browser.complaints == [] and names(browser) == []


def test_a_percent_sign_in_the_address_is_text(page: str, browser: Browser) -> None:
    for text in ("q=100%", "100%", "%"):
        browser.open(f"{page}#{text}")
        assert browser.complaints == []
    browser.open(f"{page}#q=100%")
    assert browser.run("document.querySelector('input[type=search]').value") == "100%"


def test_an_empty_address_is_the_page_as_it_came(page: str, browser: Browser) -> None:
    before = names(browser)
    browser.open(f"{page}#sort0=1a")
    assert names(browser) != before
    went = "new Promise(done => { addEventListener('hashchange', () => done(), {once: true}); location.hash = ''; })"
    browser.run(went)
    assert names(browser) == before and browser.run("document.querySelector('[aria-sort]') === null")


def test_copies_hold_what_is_seen(page: str, browser: Browser) -> None:
    press(browser, "method")
    texts = copied(browser)
    rows = [line.split("|")[1].strip() for line in texts["Markdown"].splitlines()]
    assert rows == ["method", "---", "dino", "mae", "pixels", "random", "simclr"]
    lines = list(csv.DictReader(io.StringIO(texts["CSV"])))
    assert len(lines) == 3 * 12 + 2 * 3
    assert all(float(line["low"]) <= float(line["mean"]) <= float(line["high"]) for line in lines)
    assert texts["LaTeX"].count(r" \\") == 6 and "$\\pm$" in texts["LaTeX"]
    assert len({line.count("&") for line in texts["LaTeX"].splitlines() if "&" in line}) == 1


@pytest.mark.parametrize("name", [*HOSTILE.values(), "a\\b_c|<d>", "\\input{x}^~#$%&"])
def test_latex_of_a_copy_is_that_of_the_command(runs: Runs, browser: Browser, tmp_path: Path, name: str) -> None:
    runs.add(name, 0, {"linear": 0.6}, folder="a")
    browser.open(write_page([runs.root], tmp_path / "page.html").as_uri())
    (row,) = [line for line in copied(browser)["LaTeX"].splitlines() if "60.0" in line]
    assert row.partition(" & ")[0] == escaped(name)


def test_without_a_clipboard_the_text_is_there_to_take(page: str, browser: Browser) -> None:
    browser.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    browser.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Copy CSV').click()")
    assert browser.run("document.querySelector('.tools textarea').value").startswith("method,protocol,mean")


def test_a_runs_section_says_what_it_was(page: str, browser: Browser) -> None:
    text = browser.run("[...document.querySelectorAll('.run')].find(r => r.textContent.includes('mae-s0')).textContent")
    for words in (
        "ssl-bench fit --method.name=mae --data.name=cifar10 --seed=0",
        *("pretrain 50000", "torch 2.13.0", "7000 steps", "As recipe mae-cifar10 says.", "rankme", "Most confused"),
        "Reconstructions: input, mask, prediction",
    ):
        assert words in text
    assert browser.run("document.querySelectorAll('.run').length") == 11


def test_pairs_are_drawn_for_the_protocol_that_is_chosen(page: str, browser: Browser) -> None:
    seen = "[...document.querySelectorAll('.matrix tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    before = browser.run(seen)
    names = browser.run("JSON.parse(document.querySelector('.pairs script').text)[0].names")
    assert [row[0] for row in before] == [f"{number} {name}" for number, name in enumerate(names, 1)]
    numbers = [[cell.split()[0] for cell in row[1:] if cell] for row in before]
    assert float(numbers[0][0]) == -float(numbers[1][0])
    browser.run("const c = document.querySelector('.pairs select'); c.value = 5; c.dispatchEvent(new Event('change'))")
    assert browser.run(seen) != before


def test_one_method_against_each_other_shows_intervals_without_a_pointer(page: str, browser: Browser) -> None:
    seen = "[...document.querySelectorAll('.pairs .one tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    names = browser.run("JSON.parse(document.querySelector('.pairs script').text)[0].names")
    rows = browser.run(seen)
    assert [row[0] for row in rows] == names[1:]
    browser.run(
        "const m = document.querySelectorAll('.pairs select')[1]; m.value = 'mae'; m.dispatchEvent(new Event('change'))"
    )
    other = browser.run(seen)
    assert {row[0] for row in other} == {*names} - {"mae"}
    (one,) = (row for row in rows if row[0] == "mae")
    (back,) = (row for row in other if row[0] == names[0])
    assert float(one[1]) == -float(back[1]) and one[3] == back[3]
    low, high = (float(end) for end in one[2].strip("[]").split(","))
    assert low <= float(one[1]) <= high and {one[4], back[4]} in ({"better", "worse"}, {"undecided"}, {"tie"})


@pytest.mark.parametrize("width", [360, 800, 1920])
def test_pairs_are_read_at_any_width_without_scrolling(page: str, browser: Browser, width: int) -> None:
    browser.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    try:
        shown = "[...document.querySelectorAll('.pairs .scroll')].filter(s => s.offsetWidth)"
        assert browser.run(f"{shown}.length") == (1 if width < 640 else 2)
        assert browser.run(f"{shown}.every(s => s.scrollWidth <= s.clientWidth)")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        tops = browser.run("[...document.querySelectorAll('.block .picture')].map(p => p.getBoundingClientRect().top)")
        assert width == 800 or (len(set(tops)) < len(tops)) == (width == 1920), "side by side where there is room"
    finally:
        browser.send("Emulation.clearDeviceMetricsOverride")


def test_no_backticks_in_prose(page: str, browser: Browser) -> None:
    assert "`" not in browser.run("document.body.innerText")


def test_hostile_names_are_text(tmp_path: Path, browser: Browser) -> None:
    for number, name in enumerate(HOSTILE.values()):
        for seed in range(2):
            folder = f"{number}-{seed}-" + name.replace("/", "_")[:100]
            info = {"error": name} if seed else {}
            made.full_run(tmp_path / "runs", name, seed, 0.01 * number, ("knn", "linear"), 60, folder=folder, **info)
    for output in ("plain.html", "images.html"):
        page = write_page([tmp_path / "runs"], tmp_path / output)
        browser.open(page.as_uri())
        assert browser.complaints == [] and browser.run("document.title") == "ssl-bench leaderboard"
        assert browser.run("document.images.length") == 0
        shown = browser.run("[...document.querySelectorAll('.scores tbody th > bdi')].map(c => c.textContent)")
        assert set(shown) == {name.replace("\u202e", "\\u202e") for name in HOSTILE.values()}
        assert browser.run("document.querySelectorAll('.run').length") == 12
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")


def test_fifty_runs_are_small_and_their_sections_unpack(tmp_path: Path, browser: Browser) -> None:
    made.many(tmp_path / "runs", 50, n_test=100)
    made.baselines(tmp_path / "runs", n_test=100)
    page = write_page([tmp_path / "runs"], tmp_path / "page")
    assert page.stat().st_size < 300 * 1024
    browser.open(page.as_uri())
    assert browser.run("document.querySelectorAll('.run').length") == 52
    assert browser.complaints == []


def test_figures_embedded_or_left_out(tmp_path: Path) -> None:
    made.full_run(tmp_path / "runs", protocols=("knn",), n_test=50, pictures=True)
    embedded = write_page([tmp_path / "runs"], tmp_path / "one.html", images="embed").read_text(encoding="utf-8")
    assert embedded.count("data:image/png;base64,") == 3 and not (tmp_path / "one-images").exists()
    none = write_page([tmp_path / "runs"], tmp_path / "none", images="none").read_text(encoding="utf-8")
    assert "<img" not in none and not (tmp_path / "none" / "images").exists()
    beside = write_page([tmp_path / "runs"], tmp_path / "two.html").read_text(encoding="utf-8")
    for address in re.findall(r'src="([^"]+)"', beside):
        assert (tmp_path / address).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["o#x%20.html", "a:b?c.html", 'd"&amp;<e>.html'])
def test_images_are_found_whatever_the_page_is_called(tmp_path: Path, browser: Browser, name: str) -> None:
    made.full_run(tmp_path / "runs", protocols=("knn",), n_test=50, pictures=True)
    browser.open(write_page([tmp_path / "runs"], tmp_path / name).as_uri())
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    browser.run("document.querySelectorAll('img').forEach((one) => { one.loading = 'eager'; })")
    assert browser.run("Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth)))") == [
        *(320, 320, 240)
    ]


def test_the_command_writes_a_folder_or_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.full_run(tmp_path / "runs", protocols=("knn",), n_test=50, pictures=True)
    command = ["leaderboard", str(tmp_path / "runs"), "--format", "html", "--output"]
    assert main([*command, str(tmp_path / "site")]) == main([*command, str(tmp_path / "one.html")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "site" / "index.html"), str(tmp_path / "one.html")]
    assert len(list((tmp_path / "site" / "images").iterdir())) == 3
    assert main([*command, str(tmp_path / "two"), "--images", "besides"]) == 2
    assert "no place 'besides' for images; did you mean 'beside'?" in capsys.readouterr().err


def test_a_page_of_bare_records(runs: Runs, tmp_path: Path, browser: Browser) -> None:
    """No predictions, no metrics, no configuration: what is known is shown."""
    runs.add_seeds("mae", {"knn": 0.5, "linear": 0.6})
    runs.add_seeds("simclr", {"linear": 0.7})
    runs.add("byol", 0, status="failed", error="NaN in the loss at step 812")
    page = tmp_path / "page.html"
    page.write_text(leaderboard([runs.root], "html"), encoding="utf-8")
    browser.open(page.as_uri())
    assert browser.complaints == []
    assert browser.run("document.querySelectorAll('.run').length") == 5
    assert "tests from the intervals alone" in browser.run("document.body.textContent")


@pytest.mark.slow
def test_a_thousand_runs_of_twelve_protocols(runs: Runs, tmp_path: Path, browser: Browser) -> None:
    """In one block, the worst there is for a browser: built in 20 s and 1 GiB, a sort answers in 200 ms."""
    import subprocess
    import sys

    scores = [f"protocol_{i:02d}" for i in range(12)]
    for i in range(1000):
        values = {name: 0.3 + (i * 7919 % 1000) / 2500 + 0.01 * j for j, name in enumerate(scores)}
        options = {"method": {"name": "mae", "mask_ratio": i / 1000}}
        runs.add("mae", 0, values, folder=f"run-{i:04d}", options=options)
    code = (
        "import sys, time; start = time.monotonic()\n"
        "from pathlib import Path; from ssl_bench.leaderboard.render import write_page\n"
        "write_page([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        f"print(time.monotonic() - start, {OWN_PEAK})"
    )
    page = tmp_path / "page.html"
    done = subprocess.run([sys.executable, "-c", code, runs.root, page], capture_output=True, text=True, check=True)
    seconds, mib = map(float, done.stdout.split())
    browser.open(page.as_uri())
    sort = (
        "(() => { const start = performance.now(); document.querySelectorAll('.scores .title')[3].click();"
        "document.body.offsetHeight; return performance.now() - start; })()"
    )
    milliseconds = [browser.run(sort) for _ in range(4)]
    shown = "[...document.querySelectorAll('.scores tbody tr')].filter(r => r.offsetHeight).length"
    assert browser.run(shown) == 100
    browser.run("document.querySelector('.more').click()")
    assert browser.run(shown) == 1000 and browser.run("document.querySelector('.more').hidden")
    print(f"{seconds:.1f} s, {mib:.0f} MiB, {page.stat().st_size / 2**20:.1f} MiB, sorts {milliseconds} ms")
    assert seconds < 20 and mib < 1024
    assert sorted(milliseconds)[1] < 200
