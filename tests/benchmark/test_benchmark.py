"""A grid of runs: planned without torch, done once, and not stopped by one that fails."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from tiny import TINY
from wandb_server import WandbServer

from ssl_bench.benchmark.executors.local import LocalExecutor, gpu_count
from ssl_bench.benchmark.grid import Grid
from ssl_bench.benchmark.job import Job
from ssl_bench.benchmark.plan import plan
from ssl_bench.benchmark.runner import Benchmark, parse_benchmark
from ssl_bench.cli.main import main
from ssl_bench.config import registry
from ssl_bench.config.class_constants import class_constant
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.layers import flatten, read_yaml
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import parse_evaluate

Capture = pytest.CaptureFixture[str]
MAE: dict[str, Any] = {"name": "mae", "method": {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}}
FIT = dict(flag.removeprefix("--").split("=") for flag in TINY)


def write(tmp_path: Path, **tree: object) -> Path:
    shared = {k: yaml.safe_load(v) for k, v in FIT.items() if k.startswith(("trainer", "probe", "data.batch"))}
    shared |= {"optim.warmup_epochs": 1}
    methods = [MAE, "simclr"]
    evaluate = {"protocols": ["knn", "linear"], "linear": {"iterations": 20, "batch_size": 64, "views": 0, "epochs": 0}}
    backbones = [{"name": "vit_pico_patch4_32", "img_size": 8, "patch_size": 2, "depth": 1}]
    whole = {"methods": methods, "data": ["digits"], "backbones": backbones, "seeds": [0, 1], "fit": shared}
    file = tmp_path / "grid.yaml"
    file.write_text(yaml.safe_dump({**whole, "evaluate": evaluate, **tree}))
    return file


def targets_of(benchmark: Benchmark) -> dict[str, str | None]:
    """What is evaluated -> the run that has to be finished first."""
    jobs = [job for job in benchmark.jobs if job.folder is None]
    return {job.argv[1]: None if job.after is None else str(job.after) for job in jobs}


def test_the_plan_is_the_product(tmp_path: Path) -> None:
    benchmark = parse_benchmark(["-c", str(write(tmp_path)), "--runs", str(tmp_path / "runs"), "--dry-run"])
    assert len(benchmark.fits) == 2 * 2
    assert len({job.folder for job in benchmark.fits}) == 4
    folders = [str(job.folder) for job in benchmark.fits]
    targets = targets_of(benchmark)
    randoms = {"random:vit_pico_patch4_32@0": None, "random:vit_pico_patch4_32@1": None}  # the methods share networks
    assert targets == {**{folder: folder for folder in folders}, **randoms, "pixels": None}
    random = next(job for job in benchmark.jobs if "random:vit_pico_patch4_32@1" in job.argv)
    assert {"--backbone.img_size=8", "--backbone.depth=1"} < set(random.argv)


def test_a_file_may_have_no_baselines(tmp_path: Path) -> None:
    benchmark = parse_benchmark(["-c", str(write(tmp_path, baselines=[])), "--runs", str(tmp_path / "runs")])
    assert len(benchmark.jobs) == 2 * len(benchmark.fits) and not any("pixels" in job.title for job in benchmark.jobs)


def test_k_means_is_planned_once_for_each_seed(tmp_path: Path) -> None:
    file = write(tmp_path, baselines=["kmeans-patches"])
    targets = targets_of(parse_benchmark(["-c", str(file), "--runs", str(tmp_path / "runs")]))
    assert {name for name in targets if "kmeans" in name} == {"kmeans-patches@0", "kmeans-patches@1"}


@pytest.mark.integration
def test_what_failed_is_told_where_no_run_began(tmp_path: Path, capfd: Capture) -> None:
    data = [{"name": "folder", "root": str(tmp_path / "nowhere")}]
    file = write(tmp_path, methods=[MAE], seeds=[0], data=data, baselines=["pixels"])
    assert main(["benchmark", "-c", str(file), "--runs", str(tmp_path / "runs")]) == 1
    said = capfd.readouterr().err
    assert said.count("\nfailed: ") == 3 and said.count(f"{tmp_path}/nowhere") > 2 and "not begun" in said
    assert "no leaderboard: no run in" in said and "--retry-failed" in said


@pytest.mark.integration
def test_a_plan_says_which_protocols_are_recorded(tmp_path: Path, capfd: Capture) -> None:
    def planned(protocols: list[str], iterations: int = 5) -> Benchmark:
        linear = {"iterations": iterations, "batch_size": 64, "views": 0, "epochs": 0}
        options = {"linear": linear} if "linear" in protocols else {}
        file = write(tmp_path, methods=[MAE], seeds=[0], evaluate={"protocols": protocols, **options})
        return parse_benchmark(["-c", str(file), "--runs", str(tmp_path / "runs")])

    def left(protocols: list[str]) -> list[list[str]]:
        benchmark = planned(protocols)
        return [job.left(benchmark.logs) for job in benchmark.jobs if job.asked]

    def carry_out(benchmark: Benchmark) -> None:
        assert all(main(list(job.argv)) == 0 for job in benchmark.jobs)

    protocols = ["knn", "linear", "attentive"]
    assert left(protocols) == [protocols] * 3  # of the run, of its network at random, of the pixels
    carry_out(planned(["knn"]))
    assert left(protocols) == [["linear", "attentive"]] * 3
    carry_out(planned(["linear"], iterations=4))
    assert left(protocols) == [["linear", "attentive"]] * 3  # recorded with other options
    carry_out(planned(["linear"]))
    assert left(protocols) == [["attentive"]] * 3
    (tmp_path / "runs" / "logs").mkdir()
    (tmp_path / "runs" / "logs" / "evaluate-pixels-on-digits.log").write_text("attentive: left out: raw pixels\n")
    assert left(protocols) == [["attentive"], ["attentive"], []]
    capfd.readouterr()
    carry_out(planned(["knn", "linear"]))
    assert capfd.readouterr().err.count("recorded before") == 2 * 3  # evaluate says the same


@pytest.mark.parametrize("name", sorted(registry.names("evaluations")))
def test_a_protocol_is_read_as_it_is(name: str) -> None:
    found = registry.find("evaluations", name)
    cls: Any = registry.load(found)
    assert (class_constant(found, "version", 1), class_constant(found, "trains", False)) == (cls.version, cls.trains)
    given = parse_evaluate(["pixels", f"--protocols={name}"], {}).protocols[name]
    made = cls(**{option: tuple(value) if isinstance(value, list) else value for option, value in given.items()})
    assert json.dumps(made.options(), sort_keys=True) == json.dumps(given, sort_keys=True)


def test_pictures_are_drawn_of_the_first_seed_after_its_evaluation(tmp_path: Path) -> None:
    evaluate = {"protocols": ["knn"], "device": "cpu"}
    file = write(tmp_path, figures=True, seeds=[3, 0, 1], evaluate=evaluate)
    argv = ["-c", str(file), "--runs", str(tmp_path / "runs")]
    jobs = parse_benchmark([*argv, "--wandb=offline"]).jobs
    first = [job for job in jobs if job.config and job.config["seed"] == 3]
    drawn = [job for job in jobs if job.argv[0] == "figures"]
    assert [job.argv[1] for job in drawn] == [str(job.folder) for job in first] and len(first) == 2
    assert all({"--device=cpu", "--wandb=offline"} < set(job.argv) for job in drawn)
    for job in drawn:
        assert job.behind is not None and job.behind.argv[:2] == ("evaluate", str(job.after))
    assert not any(job.argv[0] == "figures" for job in plan({"methods": ["mae"], "data": ["digits"]}, tmp_path))
    with pytest.raises(UserError, match="figures are true or false, not 'yes'"):
        plan({"methods": ["mae"], "data": ["digits"], "figures": "yes"}, tmp_path)


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")
@pytest.mark.parametrize("drawn", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_from_a_file_to_the_leaderboard_and_wandb(
    drawn: bool, server: WandbServer, tmp_path: Path, capfd: Capture
) -> None:
    evaluate = {"protocols": ["knn"]}
    file = write(tmp_path, methods=[MAE], seeds=[0], baselines=["pixels"], evaluate=evaluate, figures=drawn)
    wandb = ["--wandb=online", "--wandb_project=team/p", "--wandb_group=grid"]
    argv = ["-c", str(file), "--runs", str(tmp_path / "runs"), "--jobs=2", *wandb]
    folder = parse_benchmark(argv).fits[0].folder
    assert folder is not None
    (folder / "figures").mkdir(parents=True)
    if not drawn:
        Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / "figures" / "reconstruction.png")
    assert main(["benchmark", *argv]) == 0
    said = capfd.readouterr()
    assert "1 runs, 0 of them done; 2 evaluations" in said.err and ("[4/4]" if drawn else "[3/3]") in said.err
    assert "pixels" in said.out and "mae" in said.out
    logs = "".join(log.read_text() for log in (tmp_path / "runs" / "logs").glob("*.log"))
    assert "warning" not in logs
    arrived = {run.config["method_name"]: run for run in server.runs.values()}
    assert set(arrived) == {"mae", "pixels"}
    run = arrived["mae"]
    assert run.fields["groupName"] == "grid" and run.summary["status"] == "finished"
    assert run.summary["knn/accuracy"] > 0 and "figures/reconstruction" in run.summary
    steps = [row["_step"] for row in run.history]
    assert steps == sorted(set(steps))
    page = (tmp_path / "runs" / "leaderboard.html").read_text()
    copy = next((tmp_path / "runs" / "leaderboard-images").glob("*-reconstruction.png"))
    assert f"leaderboard-images/{copy.name}" in page
    if not drawn:
        assert main(["benchmark", *argv, "--dry-run", "--no-estimate"]) == 0
        again = capfd.readouterr()
        assert "1 runs, 1 of them done" in again.err and again.out.startswith("done  mae")
        assert [line.partition("  ")[0] for line in again.out.splitlines()] == ["done"] * 3
        assert main(["benchmark", *argv, "--dry-run"]) == 0
        assert capfd.readouterr().out.endswith("together: 0 s\n")


# Slots. Commands that answer at once stand for runs: what is tested is which are begun, and when.


def grid(tmp_path: Path, jobs: list[Job], slots: int = 1, retry: bool = False) -> dict[str, str]:
    """Title of what failed -> the end of its log."""
    found = Grid(jobs, tmp_path / "logs", LocalExecutor(slots), retry).run()
    assert not list((tmp_path / "logs").glob("*.claim"))
    return {job.title: tail for job, tail in found.items()}


def job(name: str, *argv: str, folder: Path | None = None, after: Path | None = None) -> Job:
    return Job(name, argv or ("list", "methods"), name, folder, after)


def begun(tmp_path: Path) -> list[str]:
    logs = sorted((tmp_path / "logs").glob("*.log"), key=lambda log: log.stat().st_mtime_ns)
    return [log.stem for log in logs]


@pytest.mark.integration
def test_a_damaged_mark_of_a_failure_has_the_job_tried_again(tmp_path: Path) -> None:
    jobs = [job("breaks", "list", "nonsense")]
    first = grid(tmp_path, jobs)
    assert grid(tmp_path, jobs) == first and (tmp_path / "logs" / "breaks.log").stat().st_size
    for damage in (b"{", b"\xff", b"[]", b'{"argv": 1}'):
        (tmp_path / "logs" / "breaks.failed").write_bytes(damage)
        assert Grid(jobs, tmp_path / "logs", LocalExecutor(1)).waiting == jobs


@pytest.mark.integration
def test_what_fails_stops_its_followers_only(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    jobs = [
        job("breaks", "list", "nonsense", folder=a),
        job("works", folder=b),
        job("evaluation of a", after=a),
        job("evaluation of b", after=b),
        job("pixels"),
    ]
    failed = grid(tmp_path, jobs)
    assert begun(tmp_path) == ["breaks", "works", "evaluation of b", "pixels"]
    assert "nothing called 'nonsense'" in failed["breaks"]
    assert failed["evaluation of a"] == f"  not begun: {a} is not finished" and len(failed) == 2


@pytest.mark.integration
def test_what_failed_is_taken_up_when_asked(tmp_path: Path) -> None:
    jobs = [job("breaks", "list", "nonsense"), job("works")]
    first = grid(tmp_path, jobs)
    for log in (tmp_path / "logs").glob("*.log"):
        log.unlink()
    assert grid(tmp_path, jobs) == first
    assert begun(tmp_path) == ["works"]
    assert grid(tmp_path, jobs, retry=True) == first
    assert begun(tmp_path) == ["breaks", "works"]  # evaluations skip what they have done themselves
    mended = [job("breaks", "list", "methods")]  # another command is another chance
    assert grid(tmp_path, mended) == {} and not list((tmp_path / "logs").glob("*.failed"))


@pytest.mark.integration
def test_what_is_behind_another_waits_for_its_end(tmp_path: Path) -> None:
    for slots in (1, 2):
        first = job("breaks", "list", "nonsense")
        jobs = [replace(job("behind it"), behind=first), first]
        assert list(grid(tmp_path / str(slots), jobs, slots)) == ["breaks"]
        assert begun(tmp_path / str(slots)) == ["breaks", "behind it"]


class Process:
    """Takes a moment; its environment is noted when it starts, and the time when it has ended."""

    made: list["Process"] = []

    def __init__(self, command: list[str], stdout: object, stderr: object, env: dict[str, str], cwd: Path) -> None:
        self.env, self.begin, self.end = env, time.monotonic(), float("inf")
        self.made.append(self)

    def poll(self) -> int | None:
        if time.monotonic() - self.begin < 0.3:
            return None
        self.end = min(self.end, time.monotonic())
        return 0


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[Process]:
    monkeypatch.setattr(Process, "made", [])
    monkeypatch.setattr("ssl_bench.benchmark.executors.local.subprocess.Popen", Process)
    monkeypatch.setattr("ssl_bench.benchmark.executors.local.os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return Process.made


@pytest.mark.integration
def test_slots_work_side_by_side_and_share_the_cores(tmp_path: Path, processes: list[Process]) -> None:
    assert grid(tmp_path, [job(str(i)) for i in range(6)], slots=2) == {}
    at_a_time = [sum(p.begin <= each.begin < p.end for p in processes) for each in processes]
    assert len(processes) == 6 and max(at_a_time) == 2  # never three at once
    assert at_a_time.count(2) >= 2
    assert {each.env["OMP_NUM_THREADS"] for each in processes} == {"4"}


def test_each_slot_has_a_gpu_of_its_own(
    tmp_path: Path, processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssl_bench.benchmark.executors.local.gpu_count", lambda: 2)
    assert grid(tmp_path, [job(str(i)) for i in range(6)], slots=3) == {}
    seen = [each.env["CUDA_VISIBLE_DEVICES"] for each in processes]
    assert set(seen[:3]) == {"0", "1"} and set(seen) == {"0", "1"}


def test_gpus_that_the_user_has_chosen_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert gpu_count() == 0


# Data


@pytest.mark.integration
def test_two_folders_have_jobs_of_their_own(tmp_path: Path) -> None:
    data = [{"name": "folder", "root": f"/{place}"} for place in ("a/x", "b/y")]
    jobs = parse_benchmark(["-c", str(write(tmp_path, data=data)), "--runs", str(tmp_path)]).jobs
    for names in ([job.log for job in jobs], [job.title for job in jobs if job.asked]):
        assert len(set(names)) == len(names)
    one = parse_benchmark(["-c", str(write(tmp_path, data=data[:1])), "--runs", str(tmp_path)]).jobs
    assert "evaluate-pixels-on-folder" in {job.log for job in one}
    turned = parse_benchmark(["-c", str(write(tmp_path, data=data[::-1])), "--runs", str(tmp_path)]).jobs
    assert {(job.title, job.log) for job in turned} == {(job.title, job.log) for job in jobs}


@pytest.mark.integration
@pytest.mark.parametrize(
    "second", ["digits", {"name": "digits", "num_workers": 0}, {"name": "digits", "download": True}]
)
def test_images_named_twice_are_planned_once(second: object, tmp_path: Path) -> None:
    shared = {"fit": {"trainer": {"max_epochs": 1}}}
    jobs, twice = (
        parse_benchmark(["-c", str(write(tmp_path, data=data, **shared)), "--runs", str(tmp_path)]).jobs
        for data in (["digits"], ["digits", second])
    )
    assert [job.argv for job in jobs] == [job.argv for job in twice]
    other = ["digits", {"name": "digits", "split_seed": 1}]
    more = parse_benchmark(["-c", str(write(tmp_path, data=other, **shared)), "--runs", str(tmp_path)]).jobs
    assert len(more) == 2 * len(jobs)


# Axes


def test_axes_vary_any_option(tmp_path: Path) -> None:
    file = write(tmp_path, methods=[MAE], axes={"method.mask_ratio": [0.5, 0.75], "seed": [3, 4, 5]})
    jobs = parse_benchmark(["-c", str(file), "--runs", str(tmp_path)]).fits
    found = {(job.config["method"]["mask_ratio"], job.config["seed"]) for job in jobs if job.config}
    assert found == {(ratio, seed) for ratio in (0.5, 0.75) for seed in (3, 4, 5)} and len(jobs) == 6
    assert "method.mask_ratio=0.5" in jobs[0].title


def test_groups_of_axes_follow_each_other(tmp_path: Path) -> None:
    axes = [{"method.mask_ratio": [0.5, 0.75]}, {"method.decoder_depth": [1, 2], "method.norm_pix": [True, False]}]
    file = write(tmp_path, methods=[{**MAE, "method": {**MAE["method"], "mask_ratio": 0.75}}], axes=axes, seeds=[0])
    jobs = parse_benchmark(["-c", str(file), "--runs", str(tmp_path)]).fits
    names = ("mask_ratio", "decoder_depth", "norm_pix")
    found = [tuple(job.config["method"][name] for name in names) for job in jobs if job.config]
    usual = (0.75, 1, True)
    assert found == [(0.5, 1, True), usual, (0.75, 1, False), (0.75, 2, True), (0.75, 2, False)]  # the usual one once


def test_axes_vary_the_first_stage_of_a_chain(tmp_path: Path) -> None:
    chain = {"name": "simclrv2", "then": [TUNED]}
    axes = {"backbone.width": [1, 2]}
    file = write(tmp_path, methods=[chain], backbones=[{"name": "resnet_micro"}], seeds=[0], axes=axes)
    jobs = parse_benchmark(["-c", str(file), "--runs", str(tmp_path)]).fits
    assert [job.config["backbone"]["width"] for job in jobs if job.config] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ([["method.mask_ratio"]], "axes are `option: [values]`"),
        ({"method.mask_ratio": 0.5}, "method.mask_ratio needs a list of values"),
        ({"method.mask_ratio": []}, "method.mask_ratio needs a list of values"),
    ],
)
def test_wrong_axes(axes: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        plan({"methods": ["mae"], "data": ["digits"], "axes": axes}, Path("runs"))
    assert message in str(error.value)


def test_an_axis_that_no_method_has(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        plan({"methods": ["mae"], "data": ["digits"], "axes": {"method.mask_ratoi": [0.5]}}, Path("runs"))
    assert "did you mean 'method.mask_ratio'" in capsys.readouterr().err


# Stages

TUNED = {"name": "simclrv2-finetune", "data": {"label_fraction": 0.5}, "trainer": {"max_epochs": 1}}
FEWER = {**TUNED, "data": {"label_fraction": 0.2}}
DISTILLED = {"name": "simclrv2-distill", "method": {"teacher": "$previous"}, "backbone": {"name": "resnet_nano"}}


def value(job: Job, option: str) -> str | None:
    flags = dict(flag.removeprefix("--").split("=", 1) for flag in job.argv[1:])
    return flags.get(option)


def test_every_job_logs_to_the_same_place(tmp_path: Path) -> None:
    flags = ["--wandb=offline", "--wandb_project=lab/digits", "--wandb_group=first", "--wandb_checkpoints=true"]
    jobs = parse_benchmark(["-c", str(write(tmp_path)), "--runs", str(tmp_path / "runs"), *flags]).jobs
    wanted = {*flags[:3], "--wandb_checkpoints=True"}
    assert all({flag for flag in job.argv if flag.startswith("--wandb")} == wanted for job in jobs)
    assert parse_fit(jobs[0].argv[1:]).wandb.group == "first" and parse_evaluate(jobs[-1].argv[1:]).wandb.checkpoints
    silent = parse_benchmark(["-c", str(write(tmp_path)), "--runs", str(tmp_path / "runs")]).jobs
    assert not any("wandb" in flag for job in silent for flag in job.argv)


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
    targets = targets_of(benchmark)
    assert {str(job.folder) for job in benchmark.fits} <= set(targets)
    randoms = {target for target in targets if target.startswith("random:")}
    assert randoms == {f"random:{name}@{seed}" for name in ("resnet_micro", "resnet_nano") for seed in (0, 1)}


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


def test_a_wrong_option_of_an_evaluation_is_found_before_anything_is_pretrained(capsys: Capture) -> None:
    evaluate = {"protocols": ["linear"], "linear": {"iteration": 10}}
    with pytest.raises(SystemExit):
        plan({"methods": ["mae"], "data": ["digits"], "evaluate": evaluate}, Path("runs"))
    assert "did you mean 'linear.iterations'" in capsys.readouterr().err


CONFIGS = registry.folder("configs")
SHIPPED = sorted([*CONFIGS.glob("benchmarks/*.yaml"), *CONFIGS.glob("studies/*.yaml")])


@pytest.mark.integration
@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_benchmark_can_be_planned(file: Path) -> None:
    jobs = plan(read_yaml(file), Path("runs"))
    assert {job.folder is None for job in jobs} == {True, False}
    assert flatten(read_yaml(file), str(file))


def test_the_budget_of_the_leaderboards_blocks(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("{methods: [mae], data: [digits], by: epochs}")
    assert parse_benchmark(["-c", str(file)]).by == "epochs"
    file.write_text("{methods: [mae], data: [digits], by: epoch}")
    with pytest.raises(UserError, match="no budget 'epoch'; did you mean 'epochs'"):
        parse_benchmark(["-c", str(file)])
