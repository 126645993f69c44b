"""A grid of runs: planned without torch, done once, and not stopped by one that fails."""

from pathlib import Path

import pytest
import yaml
from tiny import TINY

from ssl_bench.benchmark import find_file, parse_benchmark, plan
from ssl_bench.cli import main
from ssl_bench.configuration import flatten, read_yaml
from ssl_bench.errors import UserError

Capture = pytest.CaptureFixture[str]
FIT = dict(flag.removeprefix("--").split("=") for flag in TINY)


def write(tmp_path: Path, **tree: object) -> Path:
    shared = {k: yaml.safe_load(v) for k, v in FIT.items() if k.startswith(("trainer", "probe", "data.batch"))}
    shared |= {"optim.warmup_epochs": 1}
    methods = [{"name": "mae", "method": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}}, "simclr"]
    evaluate = {"protocols": ["knn", "linear"], "linear": {"iterations": 20, "batch_size": 64}}
    backbones = [{"name": "vit_pico_patch4_32", "img_size": 8, "depth": 1}]
    whole = {"methods": methods, "data": ["digits"], "backbones": backbones, "seeds": [0, 1], "fit": shared}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({**whole, "evaluate": evaluate, **tree}))
    return file


def test_the_plan_is_the_product(tmp_path: Path) -> None:
    benchmark = parse_benchmark(["-c", str(write(tmp_path)), "--runs", str(tmp_path / "runs"), "--dry-run"])
    assert len(benchmark.fits) == 2 * 2
    assert len({job.folder for job in benchmark.fits}) == 4
    (evaluation,) = benchmark.evaluations
    runs = {str(job.folder) for job in benchmark.fits}
    assert {a for a in evaluation.argv if a in runs} == runs
    assert {a.removeprefix("random:") for a in evaluation.argv if a.startswith("random:")} == runs
    assert evaluation.argv.count("pixels") == 1


def test_grid_runs_reports_failure_and_skips_what_is_done(tmp_path: Path, capfd: Capture) -> None:
    broken = {"name": "mae", "method": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 3}}
    good = {"name": "mae", "method": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}}
    file = write(tmp_path, methods=[broken, good], seeds=[0])
    argv = ["benchmark", "-c", str(file), "--runs", str(tmp_path / "runs"), "--jobs", "2"]
    assert main(argv) == 1
    first = capfd.readouterr()
    assert "no multiple of decoder_heads 3" in first.err and "again: ssl-bench fit" in first.err
    assert "random" in first.out and "mae" in first.out
    assert (tmp_path / "runs" / "leaderboard.html").exists()
    file = write(tmp_path, methods=[good], seeds=[0])
    assert main(["benchmark", "-c", str(file), "--runs", str(tmp_path / "runs")]) == 0
    assert "1 runs, 1 of them done" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"method": ["mae"]}, "no key 'method'; did you mean 'methods'?"),
        ({"methods": ["mae"]}, "needs `data: [...]`"),
        ({"methods": "mae", "data": ["digits"]}, "needs `methods: [...]`"),
        ({"methods": [{"optim": {}}], "data": ["digits"]}, "needs a name"),
        ({"methods": ["mea"], "data": ["digits"]}, "did you mean 'mae'?"),
        ({"methods": ["mae"], "data": ["digits"], "baselines": ["randm"]}, "did you mean 'random'?"),
        ({"methods": ["mae"], "data": ["digits"], "evaluate": {"protocols": ["kn"]}}, "did you mean 'knn'?"),
    ],
)
def test_a_wrong_file(tree: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as error:
        plan(tree, Path("runs"))
    assert message in str(error.value)


@pytest.mark.parametrize("file", sorted((find_file("demo").parent).rglob("*.yaml")), ids=lambda file: file.stem)
def test_every_shipped_benchmark_can_be_planned(file: Path) -> None:
    fits, evaluations = plan(read_yaml(file), Path("runs"))
    assert fits and evaluations
    assert flatten(read_yaml(file), str(file))
