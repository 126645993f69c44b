"""Suites: each shipped one names data sets and protocols that fit together, and stands for several commands."""

from pathlib import Path

import pytest

from ssl_bench.config import registry
from ssl_bench.config.class_constants import class_constant
from ssl_bench.config.suites import expanded, find_suite, suites
from ssl_bench.data.catalogue import CATALOGUE, MASKED
from ssl_bench.errors import UserError

NAMES = sorted(suites())


def test_suites_are_counted() -> None:
    assert NAMES == ["dense", "fine-grained", "small", "vtab-natural"]


@pytest.mark.parametrize("name", NAMES)
def test_its_protocols_fit_its_data(name: str) -> None:
    suite = find_suite(name)
    assert set(suite.data) <= set(CATALOGUE) and len(set(suite.data)) == len(suite.data)
    masked = {CATALOGUE[data].loader.startswith(MASKED) or data == "textures-mosaic" for data in suite.data}
    needs = {class_constant(registry.find("evaluations", each), "needs", "classes") for each in suite.protocols}
    assert needs == {"masks" if found else "classes" for found in masked}
    header = [line for line in suites()[name].read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert f"ssl-bench evaluate runs/... --suite {name}" in header[-1]


def test_one_command_per_data_set() -> None:
    found = expanded(["runs/a", "--suite", "small", "--device", "cpu"])
    rest = ["runs/a", "--device", "cpu", "--protocols", "knn,logistic", "--data.name"]
    assert found == [[*rest, "digits"], [*rest, "digits-canvas"], [*rest, "textures"]]
    own = expanded(["runs/a", "--suite=small", "--protocols=ridge"])
    assert own[0] == ["runs/a", "--protocols=ridge", "--data.name", "digits"] and len(own) == 3
    assert expanded(["runs/a", "--data", "digits"]) == [["runs/a", "--data", "digits"]]
    assert len(expanded(["--suite", "small", "--help"])) == 1


def test_a_file_of_the_users(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: [digits]\nprotocols: [knn, ridge]\n")
    assert expanded(["r", "--suite", str(file)]) == [["r", "--protocols", "knn,ridge", "--data.name", "digits"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("data: [digits]\n", "protocols is a list of names"),
        ("data: digits\nprotocols: [knn]\n", "data is a list of names"),
        ("data: [digits]\nprotocol: [knn]\n", "'protocol'; did you mean 'protocols'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=said):
        expanded(["r", "--suite", str(file)])
    with pytest.raises(UserError, match="no suite 'smal'; did you mean 'small'"):
        expanded(["r", "--suite", "smal"])
    with pytest.raises(UserError, match="--suite names the data sets"):
        expanded(["r", "--suite", "small", "--data", "digits"])
