"""What the documentation names exists: pages, source files, modules, commands."""

import re
import shlex
from pathlib import Path

import pytest
from paths import ROOT

import ssl_bench
from ssl_bench.cli.commands import COMMANDS
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.evaluation.evaluate_config import parse_evaluate

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
SOURCES = (ROOT, *(path for path in (ROOT / "ssl_bench").iterdir() if path.is_dir()), ROOT / "ssl_bench")


def current(page: Path) -> str:
    """Its text; of the changelog, nothing, for it names what is gone."""
    return "" if page.name == "CHANGELOG.md" else page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    text = current(page)
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:\w+/)+[a-z0-9_-]+\.(?:py|yaml))`", text):
        assert path.startswith("my_package/") or any((folder / path).exists() for folder in SOURCES), path
    for name in re.findall(r"\bssl_bench\.([a-z_.]*[a-z_])\b", text):
        module, _, attribute = name.replace(".", "/").rpartition("/")
        whole = [folder / module / attribute for folder in (ROOT, ROOT / "ssl_bench")]
        assert (
            name in ssl_bench.__all__
            or any(path.is_dir() or path.with_suffix(".py").is_file() for path in whole)
            or any(path.parent.with_suffix(".py").is_file() for path in whole)
        ), name
    fenced = "".join(re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    for command in re.findall(r"`ssl-bench ([a-z]+)", text) + re.findall(r"^ssl-bench ([a-z]+)", fenced, re.MULTILINE):
        assert command in COMMANDS, command


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"]({page.name})" in index for page in (ROOT / "docs").glob("*.md") if page.name != "index.md")


def commands(page: Path) -> list[list[str]]:
    """Words of the commands in fenced blocks, comments and what `...` abbreviates left out."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", current(page), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [command for line in lines for command in re.findall(r"ssl-bench (?:fit|evaluate) (?:(?!\$\()[^)])*", line)]
    return [shlex.split(command, comments=True)[1:] for command in found]


FILES_OF_YOURS = ("my_package.", "my.yaml", "RUN/")  # which a parser would read


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_have_the_options_that_they_show(page: Path) -> None:
    """The parsers accept every `fit` and `evaluate` that a page shows, whatever runs are evaluated."""
    for command, *words in commands(page):
        if any(part in word for word in words for part in FILES_OF_YOURS) or "..." in words:
            continue
        first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
        try:
            parse_fit(words, {}) if command == "fit" else parse_evaluate(["pixels", *words[first:]], {})
        except SystemExit as stop:
            assert not stop.code, words
