"""A grid of runs: planned without torch, done once, and not stopped by one that fails."""

from pathlib import Path

import pytest
import yaml
from tiny import TINY

from ssl_bench.benchmark import Job, find_file, parse_benchmark, plan
from ssl_bench.cli import main
from ssl_bench.configuration import flatten, read_yaml
from ssl_bench.errors import UserError

Capture = pytest.CaptureFixture[str]
FIT = dict(flag.removeprefix("--").split("=") for flag in TINY)


def write(tmp_path: Path, **tree: object) -> Path:
    shared = {k: yaml.safe_load(v) for k, v in FIT.items() if k.startswith(("trainer", "probe", "data.batch"))}
    shared |= {"optim.warmup_epochs": 1}
    methods = [{"name": "mae", "method": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}}, "simclr"]
    evaluate = {"protocols": ["knn", "linear"], "linear": {"iterations": 20, "batch_size": 64, "views": 0, "epochs": 0}}
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


# Stages

TUNED = {"name": "simclrv2-finetune", "data": {"label_fraction": 0.5}, "trainer": {"max_epochs": 1}}
FEWER = {**TUNED, "data": {"label_fraction": 0.2}}
DISTILLED = {"name": "simclrv2-distill", "method": {"teacher": "$previous"}, "backbone": {"name": "resnet_nano"}}


def value(job: Job, option: str) -> str | None:
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in job.argv[1:])
    return flags.get(option)


def test_followers_start_from_the_run_before(tmp_path: Path) -> None:
    chain = {"name": "simclrv2", "optim": {"base_lr": 3}, "then": [{**TUNED, "then": [DISTILLED]}, FEWER]}
    file = write(tmp_path, methods=[chain], backbones=[{"name": "resnet_micro", "width": 2}])
    benchmark = parse_benchmark(["-c", str(file), "--runs", str(tmp_path / "runs"), "--dry-run"])
    assert len(benchmark.fits) == 4 * 2
    for first, tuned, distilled, fewer in (benchmark.fits[:4], benchmark.fits[4:]):
        assert first.after is None and value(first, "init") is None
        assert tuned.after == fewer.after == first.folder and distilled.after == tuned.folder
        assert value(tuned, "init") == value(fewer, "init") == str(first.folder)
        assert (value(distilled, "init"), value(distilled, "method.teacher")) == (None, str(tuned.folder))
        assert value(tuned, "backbone.width") == "2" and value(tuned, "optim.base_lr") is None
        assert (value(distilled, "backbone.name"), value(distilled, "backbone.width")) == ("resnet_nano", None)
        assert len({value(job, "seed") for job in (first, tuned, distilled, fewer)}) == 1
    assert len({job.folder for job in benchmark.fits}) == 8
    (evaluation,) = benchmark.evaluations
    assert {str(job.folder) for job in benchmark.fits} <= set(evaluation.argv)
    randoms = [a.removeprefix("random:") for a in evaluation.argv if a.startswith("random:")]
    assert randoms == [str(benchmark.fits[i].folder) for i in (0, 2, 4, 6)]  # each network once


def test_chains_that_begin_alike_share_the_run(tmp_path: Path) -> None:
    chains = [{"name": "simclrv2", "then": [tuned]} for tuned in (TUNED, FEWER)]
    file = write(tmp_path, methods=chains, backbones=[{"name": "resnet_micro"}], seeds=[0])
    benchmark = parse_benchmark(["-c", str(file), "--runs", str(tmp_path / "runs"), "--dry-run"])
    assert [job.title.split()[0] for job in benchmark.fits] == ["simclrv2", "simclrv2-finetune", "simclrv2-finetune"]


def test_a_runs_identity_is_the_same_wherever_the_run_before_lies(tmp_path: Path) -> None:
    chain = {"name": "simclrv2", "then": [{**TUNED, "then": [DISTILLED]}]}
    file = write(tmp_path, methods=[chain], backbones=[{"name": "resnet_micro"}], seeds=[0])
    names = [
        [job.folder.name for job in parse_benchmark(["-c", str(file), "--runs", runs, "--dry-run"]).fits if job.folder]
        for runs in ("here", str(tmp_path / "there"))
    ]
    assert names[0] == names[1]


def test_a_failed_stage_fails_its_followers_only(tmp_path: Path, capfd: Capture) -> None:
    broken = {"name": "simclrv2", "method": {"projection_layers": 1}, "then": [{**TUNED, "then": [DISTILLED]}]}
    good = {"name": "simclrv2", "then": [FEWER]}  # one layer is too few to start from: the second stage fails
    file = write(
        tmp_path, methods=[broken, good], backbones=[{"name": "resnet_micro"}], seeds=[0], baselines=["pixels"]
    )
    tree = yaml.safe_load(file.read_text())
    tree["evaluate"] = {"protocols": ["classifier"]}
    file.write_text(yaml.safe_dump(tree))
    argv = ["benchmark", "-c", str(file), "--runs", str(tmp_path / "runs")]
    assert main(argv) == 1
    shown = capfd.readouterr()
    jobs = parse_benchmark(argv[1:]).fits
    assert [job.done for job in jobs] == [True, False, False, True, True]
    assert "no projection head of more than 1 layers" in shown.err
    assert f"not begun: {jobs[1].folder} is not finished" in shown.err
    assert len(list((tmp_path / "runs").glob("*/results/classifier.json"))) == 1


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ([{"name": "simclrv2", "then": "simclrv2-finetune"}], "`then: [...]`"),
        ([{"name": "simclrv2", "then": [{"data": {"label_fraction": 0.1}}]}], "needs a name"),
        ([{"name": "simclrv2", "then": ["simclrv2-finetun"]}], "did you mean 'simclrv2-finetune'?"),
    ],
)
def test_wrong_followers(methods: list[object], message: str) -> None:
    with pytest.raises(UserError) as error:
        plan({"methods": methods, "data": ["digits"]}, Path("runs"))
    assert message in str(error.value)


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


def test_the_budget_of_the_leaderboards_blocks(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("{methods: [mae], data: [digits], by: epochs}")
    assert parse_benchmark(["-c", str(file)]).by == "epochs"
    file.write_text("{methods: [mae], data: [digits], by: epoch}")
    with pytest.raises(UserError, match="no budget 'epoch'; did you mean 'epochs'"):
        parse_benchmark(["-c", str(file)])
