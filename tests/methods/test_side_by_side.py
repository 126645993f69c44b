"""docs/methods.md speaks of every method."""

import re

import pytest
from paths import ROOT

from ssl_bench.config import registry

PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", [name for name, found in registry.names("methods").items() if "ssl_bench" in found.module]
)
def test_a_method_is_on_the_page(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("title", re.findall(r"^## (.*)$", PAGE, re.MULTILINE))
def test_tables_name_only_methods(title: str) -> None:
    section = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([\w-]+)`", row.split("|")[1])}
    assert named
    assert named <= set(registry.names("methods"))


def test_every_recipe_of_ours_that_pretrains_is_in_each_table() -> None:
    first = PAGE.partition("## What is learned")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^\| `([\w-]+)`", first, re.MULTILINE))
    elsewhere = {"dvae", "simclrv2-finetune", "simclrv2-distill"}
    ours = {name for name, found in registry.names("methods").items() if found.module.startswith("ssl_bench.methods.")}
    assert listed == ours - elsewhere
