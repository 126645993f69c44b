"""A run folder written before options and records were renamed is read as one of today.

`tests/golden/run_before_renaming` was written by commit b6d3b15: a DINO of one epoch on digits with `fit`, `evaluate`
of its teacher by six protocols with options of their old names, and of its student and of raw pixels by k-NN.
"""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from ssl_bench.cli.main import main
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.leaderboard.render import FORMATS, leaderboard, write_page
from ssl_bench.records.renamed import current, current_options
from ssl_bench.records.store import load_runs

OLD = ROOT / "tests" / "golden" / "run_before_renaming"
NAME = "dino-digits-vit_pico_patch4_32-s0-2f4e7e1d"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    shutil.copytree(OLD, tmp_path / "runs")
    return tmp_path / "runs"


def test_records_have_the_names_of_today(runs: Path) -> None:
    (run,) = load_runs([runs / NAME])
    found = {(result.protocol, result.branch): result for result in run.results}
    assert len(found) == 7 and run.info.options["data"]["val_fraction"] == 0.2
    linear = found["linear", "teacher"]
    assert (linear.primary, linear.options["feature_types"]) == ("chosen", ["cls"])
    assert linear.selected.at_grid_boundary and linear.selected.selected_on == "validation"
    assert linear.splits["validation"].name == "validation 4773deba" and "selection" not in linear.splits
    assert linear.data.fingerprint["images"]["validation"] == 257
    assert found["knn", "teacher"].options["primary_k"] == 10 and found["knn", "student"].primary == "k10"
    assert found["fewshot", "teacher"].options["primary_shots"] == 5
    assert found["diagnostics", "teacher"].diagnostics["rankme"] > 1
    texts = json.dumps([vars(result) for result in run.results], default=str) + json.dumps(run.info.options)
    for old in ("headline", "selection", "monitors", "on_edge", "'kinds'"):
        assert old not in texts


def test_it_is_in_the_leaderboard_and_on_the_page(runs: Path, capsys: Capture) -> None:
    for format in FORMATS:
        assert "79.6" in (text := leaderboard([runs], format)) or "0.796" in text
    assert main(["compare", str(runs), "--protocol", "knn"]) == 0
    assert "dino" in capsys.readouterr().out
    page = write_page([runs], runs / "page").read_text(encoding="utf-8")
    assert "rankme" in page and "Differs from recipe" in page and "val_fraction" in page
    assert "selection_fraction" not in page and "leave it out" not in capsys.readouterr().err


def test_its_configuration_is_parsed(runs: Path) -> None:
    config = parse_fit(["-c", str(runs / NAME / "config.yaml")], {}).config
    assert config["data"]["val_fraction"] == 0.2 and "selection_fraction" not in config["data"]
    assert config["method"]["name"] == "dino"


@pytest.mark.integration
def test_it_is_evaluated_as_before_or_again(runs: Path, capsys: Capture) -> None:
    protocols = ["--protocols=knn,ridge", "--knn.primary_k=10", "--ridge.feature_types=[cls]"]
    before = {name: (runs / NAME / "results" / f"{name}.json").read_bytes() for name in ("knn", "ridge")}
    assert main(["evaluate", str(runs / NAME), "--branch=teacher", *protocols]) == 0
    text = capsys.readouterr()
    assert "Traceback" not in text.err
    after = {name: json.loads((runs / NAME / "results" / f"{name}.json").read_bytes()) for name in before}
    for name, content in before.items():
        old = current(json.loads(content))
        assert after[name]["value"] == pytest.approx(old["value"], abs=0.01)


def test_names_of_options_nested_and_dotted() -> None:
    nested = {"data": {"name": "digits", "selection_fraction": 0.1}, "linear": {"kinds": ["cls"]}, "optim": {"lr": 1}}
    new = {"data": {"name": "digits", "val_fraction": 0.1}, "linear": {"feature_types": ["cls"]}, "optim": {"lr": 1}}
    assert current_options(nested) == new
    dotted = {"data.selection_fraction": 0.1, "knn.headline_k": 5, "kinds": 1}
    assert current_options(dotted) == {"data.val_fraction": 0.1, "knn.primary_k": 5, "kinds": 1}
    assert current_options({"kinds": ["cls"], "seed": 0}, "ridge") == {"feature_types": ["cls"], "seed": 0}


def test_an_old_configuration_is_yaml_of_old_names() -> None:
    """That this file tests what it says."""
    assert "selection_fraction" in yaml.safe_load((OLD / NAME / "config.yaml").read_text())["data"]
