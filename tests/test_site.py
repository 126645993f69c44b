"""The site: its navigation has every page, its links lead somewhere, what it documents exists. mkdocs is not needed."""

import importlib
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from paths import ROOT

CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
PAGES = {path.name for path in (ROOT / "docs").glob("*.md")}


def entries(nav: list[Any]) -> Iterator[str]:
    for item in nav:
        for value in item.values() if isinstance(item, dict) else [item]:
            yield from entries(value) if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def hooks() -> Any:
    """mkdocs_hooks.py, whose one import of mkdocs is for its types and for the building."""
    given = types.ModuleType("mkdocs.structure.files")
    given.File = given.Files = object  # type: ignore[attr-defined]
    names = {"mkdocs": types.ModuleType("mkdocs"), "mkdocs.structure": types.ModuleType("mkdocs.structure")}
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {**names, "mkdocs.structure.files": given}.items():
            patch.setitem(sys.modules, name, module)
        patch.syspath_prepend(ROOT)
        yield importlib.import_module("mkdocs_hooks")


def test_the_navigation_has_every_page_once(hooks: Any) -> None:
    listed = [*entries(CONFIG["nav"])]
    assert sorted(listed) == sorted({*PAGES, *hooks.ELSEWHERE.values()})


def anchors(text: str) -> set[str]:
    """Of headings, as Markdown's table of contents names them."""
    plain = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    cleaned = (re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)) for heading in headings)
    return {re.sub(r"[-\s]+", "-", heading.strip().lower()) for heading in cleaned}


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_anchors_of_links_are_headings(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\(([^):]*)#([^)]*)\)", text):
        there = (page.parent / target) if target else page
        assert anchor in anchors(there.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_what_the_reference_documents_exists() -> None:
    named = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) > 25
    for name in named:
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute, None) or importlib.import_module(name)
        assert found.__doc__, name


def test_the_reference_has_the_whole_api() -> None:
    import ssl_bench

    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    functions = [name for name in ssl_bench.__all__ if name not in ("heads", "losses", "optim", "schedules", "views")]
    assert all(re.search(rf"\.{name}$", text, re.MULTILINE) for name in functions if not name.startswith("list_"))
    assert "::: ssl_bench.api.listing" in text


@pytest.mark.parametrize(
    ("source", "page", "link", "moved"),
    [
        ("docs/start.md", "start.md", "data.md#splits", "data.md#splits"),
        ("docs/start.md", "start.md", "../README.md#install", "project/readme.md#install"),
        ("README.md", "project/readme.md", "docs/data.md", "../data.md"),
        ("README.md", "project/readme.md", "docs/demo.png", "../demo.png"),
        ("examples/photos.ipynb", "notebooks/photos.md", "../docs/data.md", "../data.md"),
        ("docs/python.md", "python.md", "../examples/photos.ipynb", "notebooks/photos.md"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(
    hooks: Any, source: str, page: str, link: str, moved: str
) -> None:
    there = types.SimpleNamespace(file=types.SimpleNamespace(src_uri=page))
    assert hooks.on_page_markdown(f"See [it]({link}).", there, {}, None) == f"See [it]({moved})."
    outside = "[a](https://x.org/y) and [b](#here)"
    assert hooks.on_page_markdown(outside, there, {}, None) == outside


def test_a_notebook_becomes_a_page(hooks: Any) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Text."]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": [{"data": {"text/plain": ["2"]}}]},
        {"cell_type": "code", "source": ["print(3)"], "outputs": [{"name": "stdout", "text": ["3\n"]}]},
        {"cell_type": "code", "source": ["t"], "outputs": [{"data": {"text/html": ["<style>x</style>\n", "<table>"]}}]},
        {"cell_type": "code", "source": ["p"], "outputs": [{"data": {"image/png": "AAAA\n"}}]},
    ]
    page = hooks.notebook_as_markdown(json.loads(json.dumps({"cells": cells})))
    assert page.startswith("# Title\n\nText.\n\n```python\n1 + 1\n```\n\n```text\n2\n```\n\n```python\nprint(3)")
    assert "```text\n3\n```" in page and "<table>" in page and "<style>" not in page
    assert page.endswith("![What the cell draws](data:image/png;base64,AAAA)\n")
