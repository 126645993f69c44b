"""The tool that asks whether the tests notice careless changes (`make mutants`)."""

import ast

import mutants
import pytest
from paths import ROOT

CODE = """
from typing import TYPE_CHECKING

def draw(seed: int | None, epoch, batch, *, smooth=True):
    say("drawn" + "!")
    generator = rng((seed, epoch, batch), kind=1)
    total = 0
    total += 2
    if not smooth and any(x < 3 for x in generator):
        generator.close()
    return total if total != 4 else max(total, epoch)
"""
CHANGES = {
    "pass",
    "rng((epoch, batch), kind=1)",
    "rng((seed, epoch), kind=1)",
    "rng((seed, epoch, batch))",
    "2",
    "(not smooth or any((x < 3 for x in generator)))",
    "smooth",
    "all((x < 3 for x in generator))",
    "(x <= 3)",
    "(max(total, epoch) if total != 4 else total)",
    "(total == 4)",
    "min(total, epoch)",
    "False",
}


def test_careless_changes_of_every_kind_are_made(tmp_path) -> None:
    file = tmp_path / "module.py"
    file.write_text(CODE)
    found = mutants.mutants_of(file, tmp_path)
    assert {m.new for m in found} >= CHANGES
    assert not any("drawn" in m.new or "None" in m.new for m in found)  # messages and annotations stay
    for mutant in found:
        changed = mutants.applied(mutant, CODE.encode())
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(CODE)), mutant


@pytest.mark.parametrize("package", ["data", "methods", "evaluations", "statistics"])
@pytest.mark.integration
def test_a_sample_is_of_the_package_and_repeats(package: str) -> None:
    drawn = mutants.sample(package, 30, seed=0)
    assert len(set(drawn)) == 30 and drawn == mutants.sample(package, 30, seed=0)
    assert drawn != mutants.sample(package, 30, seed=1)
    for mutant in drawn:
        source = (ROOT / mutant.file).read_bytes()
        assert f"{package}/" in mutant.file and ast.parse(mutants.applied(mutant, source))


@pytest.mark.parametrize(
    ("file", "tests"),
    [
        ("methods/mae.py", [["tests/methods/test_mae.py"], ["tests/methods"]]),
        ("ssl_bench/data/sources/textures.py", [["tests/data/sources/test_textures.py"], ["tests/data"]]),
        ("ssl_bench/records/no_such_test.py", [["tests/records"]]),
    ],
)
def test_the_tests_of_a_file(file: str, tests: list[list[str]]) -> None:
    assert mutants.tests_of(file) == tests


def test_what_is_excused_has_a_reason() -> None:
    assert all(reason.strip() for reason in mutants.equivalent().values())
