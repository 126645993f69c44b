"""A benchmark's grouping is remembered beside its runs, and followed unless another is asked for."""

import json
from pathlib import Path

import made
import pytest

from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.leaderboard.render import leaderboard, write_page
from ssl_bench.records.benchmark import BenchmarkInfo, benchmark_of, write_benchmark

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two methods of two seeds, each with two budgets."""
    for method in ("mae", "simclr"):
        for epochs in (10.0, 20.0):
            for seed in range(2):
                folder = f"{method}-{epochs:.0f}-s{seed}"
                made.full_run(tmp_path / "runs", method, seed, 0.0, ("knn",), 60, folder=folder, epochs=epochs)
    return tmp_path / "runs"


def blocks(runs: Path, *options: str) -> int:
    return len(json.loads(leaderboard([runs], "json", *options))["blocks"])


def test_what_is_remembered_is_followed_everywhere(runs: Path, capsys: Capture) -> None:
    assert blocks(runs) == 1
    write_benchmark(runs, BenchmarkInfo("views", ["ssl-bench", "benchmark", "-c", "my file.yaml"]))
    assert blocks(runs) == 2 and blocks(runs, "nothing") == 1
    page = write_page([runs], runs / "page.html").read_text(encoding="utf-8")
    assert page.count('<h2 id="block-') == 2 and "benchmark -c &#x27;my file.yaml&#x27;" in page
    assert main(["compare", str(runs), "--format=json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["blocks"]) == 2
    assert main(["compare", str(runs), "--format=json", "--by=nothing"]) == 0
    assert len(json.loads(capsys.readouterr().out)["blocks"]) == 1
    folders = [str(folder) for folder in sorted(runs.iterdir()) if folder.is_dir()]
    assert main(["leaderboard", *folders, "--format=json"]) == 0  # run by run
    assert len(json.loads(capsys.readouterr().out)["blocks"]) == 2


def test_runs_of_several_benchmarks_have_none(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    made.full_run(tmp_path / "others", "mae", 0, 0.0, ("knn",), 60)
    write_benchmark(runs, BenchmarkInfo("views"))
    write_benchmark(tmp_path / "others", BenchmarkInfo("epochs"))
    assert benchmark_of([runs, tmp_path / "others"]) is None
    assert "of several benchmarks" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"by": 3}'])
def test_a_damaged_memory_is_named_and_costs_nothing(runs: Path, content: str, capsys: Capture) -> None:
    (runs / "benchmark.json").write_text(content)
    assert blocks(runs) == 1
    assert "benchmark.json is damaged" in capsys.readouterr().err


def test_a_grouping_that_there_is_not(runs: Path) -> None:
    with pytest.raises(UserError, match="no budget 'view'; did you mean 'views'"):
        leaderboard([runs], by="view")


def test_an_option_that_is_not_given_makes_no_other_row(runs: Path) -> None:
    """An older run does not have it, a newer one has it as None; where it ran or what it logged does not matter."""

    def rows() -> int:
        return sum(len(block["rows"]) for block in json.loads(leaderboard([runs], "json"))["blocks"])

    before = rows()
    for folder in sorted(runs.glob("*-s1")):
        record = json.loads((folder / "run.json").read_text())
        trainer = record["options"].setdefault("trainer", {})
        trainer.update({"callbacks": None, "ema": None, "profiler": "simple", "checkpoint_activations": True})
        record["options"]["operations"] = None
        (folder / "run.json").write_text(json.dumps(record))
    assert rows() == before
    trainer["ema"] = 0.9
    (folder / "run.json").write_text(json.dumps(record))
    assert rows() == before + 1
