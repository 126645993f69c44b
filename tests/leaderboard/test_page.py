"""The page in a browser: it loads from disk without a complaint, and sorts."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ssl_bench.leaderboard.render import leaderboard

from .conftest import Runs

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr"
)


@pytest.fixture
def page(runs: Runs) -> str:
    for seed in range(2):
        for i, method in enumerate(["mae", "simclr", "<script>alert(1)</script>", "byol", "dino"]):
            runs.add(method, seed, {"knn": 0.6 - 0.02 * i, "linear": 0.7 + 0.01 * (i * 3 % 5)}, folder=f"{i}-{seed}")
    runs.add("ibot", 0, {"linear": 0.5})
    runs.baselines(knn=0.4, linear=0.45)
    return leaderboard([runs.root], "html")


def test_it_is_small_and_asks_for_nothing(page: str) -> None:
    assert len(page.encode()) < 40 * 1024
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<iframe|<object|<base", page)
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,"]


def test_headings_and_scopes_for_screen_readers(page: str) -> None:
    assert page.count("<h1>") == 1
    assert page.count("<caption>") == page.count('<table class="scores">') == page.count("<h2>") == 1
    assert page.count('<th scope="row"') == page.count("<tr class=") == 8
    assert 'lang="en"' in page


def in_browser(page: str, clicks: str, tmp_path: Path) -> tuple[str, str]:
    """The document after some clicks, and what the browser logged."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", f"<script>{clicks}</script></body>"), encoding="utf-8")
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def names(document: str) -> list[str]:
    rows = re.findall(r'<th scope="row" data-value="([^"]*)"', document)
    return [row.replace("&lt;", "<").replace("&gt;", ">") for row in rows]


@pytest.mark.parametrize(
    ("column", "presses", "order", "first", "last"),
    [
        (0, 1, "ascending", "<script>alert(1)</script>", "simclr"),
        (0, 2, "descending", "simclr", "<script>alert(1)</script>"),
        (1, 1, "descending", "mae", "ibot"),  # ibot has no number: last in both directions
        (1, 2, "ascending", "pixels", "ibot"),
        (2, 1, "descending", "byol", "pixels"),
        (5, 1, "descending", None, None),  # time
    ],
)
def test_columns_sort(
    page: str, tmp_path: Path, column: int, presses: int, order: str, first: str | None, last: str | None
) -> None:
    press = f"document.querySelectorAll('thead button')[{column}].click();"
    document, errors = in_browser(page, press * presses, tmp_path)
    assert errors == ""
    assert len(re.findall(r"<th[^>]* aria-sort=", document)) == 1
    assert f'aria-sort="{order}"><button' in document
    assert len(names(document)) == 8
    if first is not None:
        assert (names(document)[0], names(document)[-1]) == (first, last)
