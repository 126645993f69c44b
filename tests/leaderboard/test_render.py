"""All formats say the same, in the width they have, whatever names they are given."""

import csv
import io
import json
import re
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from recorded_runs import Runs

from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.leaderboard.render import FORMATS, leaderboard
from ssl_bench.leaderboard.table import ROW_COLUMNS, RowColumn
from ssl_bench.leaderboard.text import visible
from ssl_bench.leaderboard.units import duration
from ssl_bench.records.result import Selected

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a|b`c*d_e_ [x](http://x) \\",
    "=HYPERLINK(1)",
    "\x1b[31mred\x1b[0m\nnext\r\tline\x00",
    "\u202edesrever\u202c \u200f",
    "שיטה",
    "方法" * 30,
    "x" * 300,
    "&lt;b&gt;",
    "[bold red]x[/] :boom: [link=file:///etc/passwd]y[/link]",
]


@pytest.fixture
def benchmark(runs: Runs) -> Runs:
    """Three methods, two budgets, baselines, gaps, flags, a single seed."""
    for seed in range(3):
        runs.add("mae", seed, {"knn": 0.5 + 0.011 * seed, "linear": 0.7 + 0.0035 * seed})
        runs.add("simclr", seed, {"linear": 0.72 - 0.007 * seed})
    runs.add("simclr", 3, {"knn": 0.6})
    edge = {"selected": Selected(at_grid_boundary=True, selected_on="validation")}
    runs.add_seeds("dino", {"linear": 0.6115}, epochs=100.0, result=edge)
    runs.add("ibot", 0, {"linear": 0.9}, result={"selected": Selected(selected_on_test=True)})
    runs.baselines(knn=0.4, linear=0.45)
    runs.add("byol", 0, status="failed", error="NaN in the loss at step 812")
    return runs


class Cells(HTMLParser):
    """The cells of the score tables of a page: attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[tuple[dict[str, str | None], str]]] = []
        self.inside = False
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append((dict(attrs), ""))
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            attributes, text = self.rows[-1][-1]
            self.rows[-1][-1] = attributes, text + data


def test_all_formats_have_the_same_numbers(benchmark: Runs) -> None:
    shown = {name: leaderboard([benchmark.root], name) for name in FORMATS}
    table = json.loads(shown["json"])
    cells = [
        (block, row, column, cell)
        for block in table["blocks"]
        for row in block["rows"]
        for column, cell in zip(block["columns"], row["cells"], strict=True)
        if cell
    ]
    assert len(cells) == 10

    lines = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert [(line["name"], line["title"], line["variant"]) for line in lines] == [
        (row["name"], column["title"], column["variant"]) for _, row, column, _ in cells
    ]
    for line, (block, row, _, cell) in zip(lines, cells, strict=True):
        assert [float(line[key]) for key in ("mean", "low", "high")] == [cell["mean"], cell["low"], cell["high"]]
        assert [float(value) for value in line["values"].split()] == cell["values"]
        assert [int(seed) for seed in line["seeds"].split()] == cell["seeds"]
        for flag in ("best", "unbeaten", "at_grid_boundary", "one_seed", "covers"):
            assert line[flag] == str(cell[flag])
        assert line["budget"] == str(block["budget"] or "")
        assert line["runs"].split() == row["runs"]

    page = [attributes for row in Cells(shown["html"]).rows for attributes, _ in row if "data-low" in attributes]
    for shown_cell, (*_, cell) in zip(page, cells, strict=True):
        for key, name in (("value", "mean"), ("low", "low"), ("high", "high")):
            assert float(shown_cell[f"data-{key}"] or "") == pytest.approx(cell[name], rel=1e-5)
    assert [int(cell["data-n"] or 0) for cell in page] == [len(cell["seeds"]) for *_, cell in cells]
    assert ["best" in (cell.get("class") or "") for cell in page] == [cell["unbeaten"] for *_, cell in cells]

    rounded = []
    for _, row, _, cell in cells:
        half = max(cell["high"] - cell["mean"], cell["mean"] - cell["low"])
        seeds = len(cell["seeds"])
        rounded.append(
            f"{100 * cell['mean']:.1f} ±{100 * half:.1f}{f' n={seeds}' if seeds != len(row['seeds']) else ''}"
            f"{'*' if cell['unbeaten'] else ''}{'†' if cell['at_grid_boundary'] else ''}"
        )
    score = re.compile(r"\d+\.\d ±\d+\.\d(?: n=\d+)?[*†]*")
    assert score.findall(shown["markdown"].replace("\\*", "*")) == rounded
    assert score.findall(shown["table"]) == rounded  # narrow enough here not to continue below itself
    texts = [text for row in Cells(shown["html"]).rows for attributes, text in row if "data-low" in attributes]
    assert texts == rounded
    number = re.compile(r"(\d+\.\d)\}? \$\\pm\$(\d+\.\d)( n=\d+)?(\*?)(\$\^\{\\dagger\}\$)?")
    found = [
        f"{mean} ±{half}{n}{star}{'†' if dagger else ''}"
        for mean, half, n, star, dagger in number.findall(shown["latex"])
    ]
    assert found == rounded


def test_a_column_about_the_rows_is_defined_once(benchmark: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every format that has a layout shows what the list holds."""
    mass = RowColumn("mass", "in grams", lambda row: f"{len(row.name)} g", lambda row: float(len(row.name)))
    monkeypatch.setattr("ssl_bench.leaderboard.table.ROW_COLUMNS", (*ROW_COLUMNS, mass))
    for name in set(FORMATS) - {"csv", "json"}:  # which have the fields of Row
        shown = leaderboard([benchmark.root], name)
        assert shown.count("mass") == shown.count("in grams") == 1, name
        assert sorted(re.findall(r"\b\d g\b", shown)) == ["3 g", "4 g", "4 g", "6 g", "6 g", "6 g"], name


def test_every_format_names_gaps_flags_and_what_is_missing(benchmark: Runs) -> None:
    for name in ("table", "markdown", "html"):
        text = " ".join(leaderboard([benchmark.root], name).split())
        assert "oracle: something was chosen on the test images" in text
        assert "a chosen value lies at an end of its grid" in text
        assert "NaN in the loss at step 812" in text
        assert "0.351 GFLOPs per image" in text
        assert "65 tokens" in text


def test_the_terminal_table_as_it_looks(runs: Runs) -> None:
    for seed in range(2):
        runs.add("mae", seed, {"knn": 0.5, "linear": 0.7})
    runs.add("simclr", 0, {"knn": 0.6})
    runs.add("random", 0, {"knn": 0.4}, kind="baseline")
    runs.add("pixels", 0, {"knn": 0.38}, kind="baseline", backbone=None)
    assert leaderboard([runs.root]) == (
        """\
cifar10, vit_nano_patch4_32 (img_size=32), 40 epochs x views
2.7 M parameters, 0.351 GFLOPs per image, 65 tokens, images aa11bb22

               knn         linear      epochs
method  seeds  k20         cls+avg    x views    time
─────────────────────────────────────────────────────
mae       n=2  50.0 ±2.2*  70.0 ±2.0   20 x 2  12 min
simclr    n=1  60.0 ±2.2      -        20 x 2  12 min
random    n=1  40.0 ±2.2      -             -       -
pixels    n=1  38.0 ±2.1      -             -       -

Accuracy in % on the test images: mean over n seeds, with the 95 % interval over seeds and test
images. One seed (simclr and random): intervals are over test images only. Differences mean nothing
about methods yet, since another seed may reverse them: three seeds or more of each (seeds: [0, 1,
2] in a benchmark file) would show which differences last. * not significantly worse than the best
of its column, at 5 %: tests from the intervals alone, Holm's correction over a column, for want of
predictions.
"""
    )


def test_a_wide_table_continues_below_itself(runs: Runs) -> None:
    protocols = [f"protocol_{i:02d}" for i in range(14)]
    for i, method in enumerate(("mae", "a_package.a_module.AMethodOfAnotherPackage", "方法" * 20)):
        runs.add(method, 0, {name: 0.3 + 0.04 * j + 0.01 * i for j, name in enumerate(protocols)}, folder=f"run-{i}")
    text = leaderboard([runs.root])
    assert all(sum(2 if "一" <= c <= "鿿" else 1 for c in line) <= 100 for line in text.splitlines())
    for j, name in enumerate(protocols):
        assert text.count(name) == 1
        assert f"{30 + 4 * j:.1f} ±" in text


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(runs: Runs, name: str) -> None:
    runs.add("mae", 0, {"linear": 0.6})
    runs.add(name, 0, {"linear": 0.7}, folder="run")
    runs.add("dino", 0, status="failed", error=name, folder="failed")
    shown = {format: leaderboard([runs.root], format) for format in FORMATS}
    assert all(text.encode() for text in shown.values())
    page = Cells(shown["html"])
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not any("\x1b" in text or "\u202e" in text or "\x00" in text for text in shown.values())
    (line,) = [line for line in csv.DictReader(io.StringIO(shown["csv"])) if line["runs"] == "run"]
    assert not line["name"].startswith(("=", "+", "-", "@"))
    rows = [line for line in shown["markdown"].splitlines() if line.startswith("|") and "70.0" in line]
    assert len(rows) == 1
    assert len(re.findall(r"(?<!\\)\|", rows[0].replace("\\\\", ""))) == 6


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/]", ":boom:", "a[0]"])
def test_the_terminal_takes_names_as_they_are_and_has_no_colour(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    runs.add(name, 0, {"linear": 0.7}, folder="[i]r[dim]")
    runs.add(name, 0, {"linear": 0.7}, folder="later", created="2026-01-02T00:00:00+00:00")
    runs.add("dino", 0, status="failed", error=f"{name} failed " * 20, folder="failed-" + "x" * 120)
    plain = leaderboard([runs.root])
    assert name in plain and "[i]r[dim] counts once" in plain and f"{name} failed" in plain
    assert max(map(len, plain.splitlines())) <= 100
    for variable, value in {"FORCE_COLOR": "1", "COLUMNS": "300", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(variable, value)
    assert leaderboard([runs.root]) == plain


def test_a_folder_whose_name_is_no_unicode(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.6}, folder="run-\udcff")
    runs.add("dino", 0, status="failed", folder="failed-\udcff")
    for format in FORMATS:
        leaderboard([runs.root], format).encode()


def test_visible_keeps_letters_and_escapes_the_rest() -> None:
    assert visible("naïve 方法 שיטה ±†") == "naïve 方法 שיטה ±†"
    assert visible("a\nb\x1b\u202e\udcff") == "a\\nb\\x1b\\u202e\\udcff"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "-"), (0.4, "0 s"), (119, "119 s"), (130, "2.2 min"), (725, "12 min"), (12_312, "3.4 h"), (1e6, "12 d")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_an_unknown_format_and_no_finished_run(runs: Runs) -> None:
    runs.add("mae", 0, status="running")
    with pytest.raises(UserError, match="no format 'htm'; did you mean 'html'"):
        leaderboard([runs.root], "htm")
    for name in ("table", "markdown", "html"):
        assert "No finished and evaluated run." in leaderboard([runs.root], name)


def test_the_same_runs_give_the_same_bytes(benchmark: Runs) -> None:
    for name in FORMATS:
        assert leaderboard([benchmark.root], name) == leaderboard([benchmark.root], name)


@pytest.mark.parametrize("content", [b'{"protocol": "lin', b"", b"\xff"])
def test_damaged_files_are_listed_and_stop_nothing_else(runs: Runs, content: bytes) -> None:
    runs.add("mae", 0, {"knn": 0.5, "linear": 0.7}, folder="a")
    runs.add("dino", 0, {"knn": 0.5}, folder="b")
    runs.add("byol", 3, {"knn": 0.5}, folder="c")
    for name in ("a/results/linear.json", "b/run.json", "c/results/knn.json"):
        (runs.root / name).write_bytes(content)
    table = json.loads(leaderboard([runs.root], "json"))
    assert [(row["name"], len(row["cells"])) for block in table["blocks"] for row in block["rows"]] == [("mae", 1)]
    listed = [(run["run"], run["method"], run["seed"], run["status"]) for run in table["absent"]]
    assert listed == [("a", "mae", 0, "damaged"), ("b", "-", None, "damaged"), ("c", "byol", 3, "damaged")]
    for run, file in zip(table["absent"], ("results/linear.json", "run.json", "results/knn.json"), strict=True):
        assert run["reason"].startswith(f"{file} is damaged (")
    for format in FORMATS:
        assert format in ("csv", "latex") or "linear.json is damaged" in leaderboard([runs.root], format)


def test_where_nothing_can_be_read_it_is_said(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    runs.add("mae", 0, {"knn": 0.5}, folder="a")
    runs.add("dino", 0, {"knn": 0.5}, folder="b")
    (runs.root / "a" / "results" / "knn.json").write_text("{")
    (runs.root / "b" / "run.json").write_text("{")
    assert main(["leaderboard", str(runs.root)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "results/knn.json is damaged" in line and "(and 1 more)" in line


@pytest.mark.integration
def test_fifty_runs_take_less_than_half_a_second(runs: Runs) -> None:
    for i in range(50):
        runs.add(f"method{i % 10}", i // 10, {"knn": 0.4 + 0.001 * i, "linear": 0.5 + 0.001 * i})
    code = (
        "import sys, time; start = time.process_time()\n"
        "from pathlib import Path; from ssl_bench.leaderboard.render import leaderboard\n"
        "leaderboard([Path(sys.argv[1])], 'table'); print(time.process_time() - start)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(runs.root)], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.5


METHODS = st.sampled_from(["mae", "simclr", "dino", "a method", "x|y", "<b>"])
SCORES = st.dictionaries(
    st.sampled_from(["knn", "linear", "ridge"]), st.integers(0, 2000).map(lambda n: n / 2000), max_size=3
)
RUNS = st.dictionaries(st.tuples(METHODS, st.integers(0, 2)), SCORES, min_size=1, max_size=6)


@settings(max_examples=20)
@given(RUNS)
def test_every_format_has_the_same_rows_and_numbers(recorded: dict[tuple[str, int], dict[str, float]]) -> None:
    if not any(recorded.values()):
        return
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder))
        for (method, seed), scores in recorded.items():
            runs.add(method, seed, scores)
        shown = {name: leaderboard([runs.root], name) for name in ("json", "csv", "html")}
    expected = {
        (method, protocol): [
            scores[protocol] for (name, _), scores in sorted(recorded.items()) if name == method and protocol in scores
        ]
        for method, _ in recorded
        for protocol in ("knn", "linear", "ridge")
        if any(protocol in scores for (name, _), scores in recorded.items() if name == method)
    }
    cells = [
        (row["name"], column, cell)
        for block in json.loads(shown["json"])["blocks"]
        for row in block["rows"]
        for column, cell in zip(block["columns"], row["cells"], strict=True)
        if cell
    ]
    assert {(name, column["title"].split(" ")[0]): cell["values"] for name, column, cell in cells} == expected
    for _, _, cell in cells:
        assert cell["low"] <= cell["mean"] <= cell["high"]
        assert cell["mean"] == pytest.approx(sum(cell["values"]) / len(cell["values"]))
    lines = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert [(line["name"].lstrip("'"), line["mean"], line["low"]) for line in lines] == [
        (name, str(cell["mean"]), str(cell["low"])) for name, _, cell in cells
    ]
    page = [attributes for row in Cells(shown["html"]).rows for attributes, _ in row if "data-low" in attributes]
    assert [float(a["data-value"] or "") for a in page] == pytest.approx([cell["mean"] for *_, cell in cells], rel=1e-5)
