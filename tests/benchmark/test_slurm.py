"""The SLURM executor: what it asks for, and on a real SLURM of one node what becomes of jobs that are stopped."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from processes import SECONDS, wait_until
from tiny import TINY

from ssl_bench.benchmark.executors.executor import State, Task
from ssl_bench.benchmark.executors.options import SlurmOptions
from ssl_bench.benchmark.executors.slurm import SlurmExecutor, SlurmTask
from ssl_bench.benchmark.grid import Grid
from ssl_bench.benchmark.job import Job
from ssl_bench.cli.main import main
from ssl_bench.errors import RunFailed, UserError
from ssl_bench.records.run import read_run

Capture = pytest.CaptureFixture[str]
LONG = [*TINY, "--trainer.max_epochs=100000", "--trainer.limit_train_batches=1", "--probe.every_n_epochs=0"]
REQUEUE_SECONDS = 600.0  # SLURM waits two minutes before it begins a requeued job again


def task(folder: Path, name: str, *argv: str) -> Task:
    (folder / "logs").mkdir(exist_ok=True)
    return Task(argv, folder / "logs" / f"{name}.log", folder / "logs" / f"{name}.claim")


# What is asked for, without SLURM: programs of the same names answer.


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`sbatch` keeps what it is given and says a number, `squeue` says what a file says."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "sbatch": f'cat "$1" >> {tmp_path}/given; echo "Submitted batch job 41"',
        "squeue": f"cat {tmp_path}/queue",
        "srun": "exit 1",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    (tmp_path / "queue").write_text("")
    return folder


def test_an_array_asks_for_what_the_options_say(programs: Path, tmp_path: Path) -> None:
    options = SlurmOptions("gpu", "lab", time=90, gpus=2, cpus=6, memory=1.5, signal=60, setup=("module load cuda",))
    executor = SlurmExecutor(options, tmp_path / "logs", slots=2)
    jobs = executor.submit([task(tmp_path, name, "list", "methods") for name in "abc"])
    assert jobs == ["SLURM job 41_0", "SLURM job 41_1", "SLURM job 41_2"]
    asked = (tmp_path / "given").read_text()
    lines = ("array=0-2%2", "partition=gpu", "account=lab", "time=90", "gpus-per-node=2", "cpus-per-task=6")
    for line in (*lines, "mem=1536MB", "signal=USR2@60", "requeue", "open-mode=append", "ntasks-per-node=1"):
        assert f"#SBATCH --{line}\n" in asked
    assert "\nmodule load cuda\n" in asked and "submitit.core._submit" in asked


def test_arrays_are_cut_at_their_size(programs: Path, tmp_path: Path) -> None:
    executor = SlurmExecutor(SlurmOptions(array_size=2, gpus=0), tmp_path / "logs")
    executor.submit([task(tmp_path, name, "list") for name in "abc"])
    asked = (tmp_path / "given").read_text()
    assert asked.count("#SBATCH --array=0-1%2\n") == 1 and asked.count("#!/bin/bash") == 2 and "gpus" not in asked


def test_states_follow_the_queue(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = SlurmExecutor(SlurmOptions(), tmp_path / "logs")
    executor.submit([task(tmp_path, name, "list") for name in "ab"])
    (tmp_path / "queue").write_text("41_0 RUNNING\n41_1 PENDING\n7 RUNNING\n")
    assert executor.states() == {"a": State("running"), "b": State("waiting")}
    (programs / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert set(executor.states()) == {"a", "b"}  # a controller that does not answer has ended nothing
    (programs / "squeue").write_text("#!/bin/sh\n")
    assert executor.states() == {"a": State("running"), "b": State("running")}  # its result may be on its way
    monkeypatch.setattr("ssl_bench.benchmark.executors.slurm.LATE_SECONDS", -1.0)
    assert executor.states() == {"a": State("ended", None), "b": State("ended", None)} and executor.states() == {}


def test_what_sbatch_refuses_is_said_in_one_line(programs: Path, tmp_path: Path) -> None:
    (programs / "sbatch").write_text('#!/bin/sh\necho "error: invalid partition specified: nowhere" >&2\nexit 1\n')
    executor = SlurmExecutor(SlurmOptions("nowhere"), tmp_path / "logs")
    grid = Grid([Job("a", ("list",), "a")], tmp_path / "logs", executor)
    with pytest.raises(RunFailed, match="sbatch: .*invalid partition specified: nowhere"):
        grid.run()
    assert not list((tmp_path / "logs").glob("*.claim"))


def test_without_slurm_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no `sbatch` here"):
        SlurmExecutor(SlurmOptions(), tmp_path)
    file = tmp_path / "grid.yaml"
    file.write_text("{methods: [mae], data: [digits], executor: {name: slurm, partition: gpu}}")
    argv = ["benchmark", "-c", str(file), "--runs", str(tmp_path / "runs")]
    assert main(argv) == 2 and "--executor slurm: there is no `sbatch` here" in capfd.readouterr().err
    for flags, message in (
        (["--executor=slrum"], "--executor.name: slrum must be one of local, slurm, ray; did you mean 'slurm'?"),
        (["--executor.partiton=x"], "no option --executor.partiton; did you mean 'executor.partition'?"),
        (["--executor.time=0"], "--executor.time: 0 must be from 1 to 525600"),
        (["--executor=local", "--executor.time=5"], "no option --executor.time"),
    ):
        assert main([*argv, *flags]) == 2
        said = capfd.readouterr().err
        assert message in said


def test_sigusr2_has_the_run_save_itself_and_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print('up', flush=True)"
    monkeypatch.setattr(Task, "command", [sys.executable, "-c", f"{program}; time.sleep(60)"])
    job = SlurmTask(task(tmp_path, "a"), 30.0)
    begun: list[object] = []

    def interrupt(number: int, frame: object) -> None:
        begun.append(job.checkpoint())
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR2, interrupt)
    pid = os.fork()
    if pid == 0:  # the signal comes once the program is there
        wait_until(lambda: (tmp_path / "logs" / "a.log").exists() and "up" in job.task.log.read_text())
        os.kill(os.getppid(), signal.SIGUSR2)
        os._exit(0)
    try:
        with pytest.raises(KeyboardInterrupt):
            job()
    finally:
        signal.signal(signal.SIGUSR2, before)
        os.waitpid(pid, 0)
    assert job.child is not None and job.child.returncode == 143
    (again,) = begun
    assert isinstance(again.function, SlurmTask) and again.function.task == job.task  # type: ignore[attr-defined]


# On SLURM itself


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not slurm_cluster.available():
        pytest.skip("needs SLURM, munge and root")
    with slurm_cluster.slurm_cluster(tmp_path_factory.mktemp("slurm") / "s") as environment:
        os.environ["SLURM_CONF"] = environment["SLURM_CONF"]
        yield
        del os.environ["SLURM_CONF"]


def options(partition: str = "low", cpus: int = 2) -> SlurmOptions:
    return SlurmOptions(partition, time=30, gpus=0, cpus=cpus, signal=60)


def ended(executor: SlurmExecutor, name: str) -> State:
    found: dict[str, State] = {}

    def look() -> bool:
        found.update(executor.states())
        return found[name].phase == "ended"

    wait_until(look)
    return found[name]


def says(log: Path, text: str, seconds: float = SECONDS) -> None:
    wait_until(lambda: log.exists() and text in log.read_text(), seconds=seconds)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_benchmark_on_slurm(cluster: None, tmp_path: Path, capfd: Capture) -> None:
    fit = dict(flag.removeprefix("--").split("=") for flag in TINY if not flag.startswith(("--data=", "--backbone")))
    file = tmp_path / "grid.yaml"
    network = "{name: vit_pico_patch4_32, img_size: 8, patch_size: 2, depth: 1}"
    shared = ", ".join(f"{name}: {value}" for name, value in fit.items())
    file.write_text(
        f"methods: [mae]\ndata: [digits]\nseeds: [0, 1]\nbackbones: [{network}]\nfit: {{{shared}}}\n"
        "baselines: [pixels]\nevaluate: {protocols: [knn], device: cpu}\n"
        "executor: {name: slurm, partition: low, gpus: 0, cpus: 1, time: 30}\n"
    )
    argv = ["benchmark", "-c", str(file), "--runs", str(tmp_path / "runs")]
    assert main(argv) == 0
    said = capfd.readouterr()
    assert "[5/5]" in said.err and "pixels" in said.out and "mae" in said.out
    assert not list((tmp_path / "runs").rglob("*claim*"))
    assert main(argv) == 0  # nothing is submitted for what is recorded
    assert capfd.readouterr().err.count("done before") == 3


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_warned_job_saves_itself_is_queued_again_and_goes_on(cluster: None, tmp_path: Path) -> None:
    executor = SlurmExecutor(options(), tmp_path / "logs")
    given = task(tmp_path, "fit", "fit", "--method=mae", f"--runs={tmp_path}", *LONG)
    (job,) = (each.removeprefix("SLURM job ") for each in executor.submit([given]))
    says(given.log, "epoch ")
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    says(given.log, "ended by SIGTERM; the same command continues")
    says(given.log, "going on from step", REQUEUE_SECONDS)
    (record,) = tmp_path.glob("*/run.json")
    assert read_run(record.parent).steps > 0
    follower = SlurmExecutor(options(), tmp_path / "logs")  # another command, elsewhere
    assert follower.adopt(given, f"SLURM job {job}") and follower.states()["fit"].phase == "running"
    subprocess.run(["scancel", job], check=True)
    assert ended(follower, "fit").code is None
    wait_until(lambda: read_run(record.parent).status == "interrupted")  # SIGTERM came before SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_preempted_job_saves_itself_and_goes_on_when_there_is_room(cluster: None, tmp_path: Path) -> None:
    low, high = SlurmExecutor(options(cpus=4), tmp_path / "logs"), SlurmExecutor(options("high", 4), tmp_path / "logs")
    given = task(tmp_path, "fit", "fit", "--method=mae", f"--runs={tmp_path}", *LONG)
    (job,) = (each.removeprefix("SLURM job ") for each in low.submit([given]))
    says(given.log, "epoch ")
    urgent = task(tmp_path, "urgent", "list", "methods")
    high.submit([urgent])
    assert ended(high, "urgent").code == 0 and "mae" in urgent.log.read_text()
    assert "ended by SIGTERM; the same command continues" in given.log.read_text()
    says(given.log, "going on from step", REQUEUE_SECONDS)
    assert low.states()["fit"].phase == "running"
    time.sleep(0.5)
    subprocess.run(["scancel", job], check=True)
    assert ended(low, "fit").code is None


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_benchmark_left_to_slurm(cluster: None, tmp_path: Path, capfd: Capture) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "{methods: [mae], data: [digits], baselines: [pixels], evaluate: {protocols: [knn]},"
        " fit: {method.nonsense: 1}, executor: {name: slurm, gpus: 0, cpus: 1, time: 30}}"
    )
    argv = ["benchmark", "-c", str(file), "--runs", str(tmp_path / "runs"), "--detach"]
    assert main(argv) == 2  # what is wrong is found before it is left
    file.write_text(file.read_text().replace(" fit: {method.nonsense: 1},", f" fit: {{data.root: {tmp_path}/no}},"))
    capfd.readouterr()
    assert main(argv) == 0
    assert "carries on; it says how far it is in" in capfd.readouterr().err
    says(tmp_path / "runs" / "logs" / "benchmark.log", "runs, 0 of them done")
    subprocess.run(["scancel", "--user=root"], check=True)
