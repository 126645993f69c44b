"""Who started this process, and with whom it works: a launcher's word is taken or refused, never ignored."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_bench.errors import UserError
from ssl_bench.runtime.launch import Launch, adopt_launcher, requested_processes, settled_devices

SLURM = {"SLURM_NTASKS": "6", "SLURM_PROCID": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "12345"}


def test_alone_there_is_no_launcher() -> None:
    assert adopt_launcher({}) is None
    assert adopt_launcher({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert adopt_launcher({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive", "SLURM_PROCID": "0"}) is None


def test_torchruns_word_is_taken() -> None:
    environ = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x"}
    launch = adopt_launcher(environ)
    assert launch == Launch(3, 4, 1, 2, "torchrun")
    assert launch.nodes == 2


@pytest.mark.parametrize(
    ("more", "local_size", "address"),
    [
        ({"SLURM_NTASKS_PER_NODE": "3", "SLURM_NNODES": "2", "SLURM_NODELIST": "gpu[07-08]"}, 3, "gpu07"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x3)", "SLURM_STEP_NUM_NODES": "3", "SLURM_NODELIST": "a1,b2,c3"}, 2, "a1"),
        ({"SLURM_TASKS_PER_NODE": "6"}, 6, "127.0.0.1"),
        ({}, 6, "127.0.0.1"),
    ],
)
def test_sruns_tasks_get_torchruns_variables(more: dict[str, str], local_size: int, address: str) -> None:
    environ = SLURM | more
    launch = adopt_launcher(environ)
    assert launch == Launch(4, 6, 1, local_size, "srun")
    told = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    assert [environ[name] for name in told] == ["4", "6", "1", str(local_size), address]
    assert 1024 < int(environ["MASTER_PORT"]) < 2**16
    assert adopt_launcher(environ) == launch, "asked again, it says the same"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (SLURM | {"ENVIRONMENT": "BATCH"}, "put srun in front"),
        ({"SLURM_NTASKS": "2"}, "put srun in front"),
        (SLURM | {"SLURM_STEP_TASKS_PER_NODE": "4,2", "SLURM_NNODES": "2"}, "--ntasks-per-node"),
        (SLURM | {"SLURM_NNODES": "4"}, "--ntasks-per-node"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "not mpirun"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "numbered from 0"),
        ({"RANK": "0", "WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2"}, "every machine must have as many"),
    ],
)
def test_what_cannot_be_taken_is_refused(environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        adopt_launcher(dict(environ))


@pytest.mark.parametrize(
    ("devices", "count"), [(1, 1), (2, 2), ("2", 2), ("0,2", 2), ("[0, 2, 3]", 3), ("0,", 1), ("auto", 1), (-1, 1)]
)
def test_devices_are_counted(devices: int | str, count: int) -> None:
    assert requested_processes(devices, "cpu") == count


def test_options_may_repeat_a_launcher_and_not_contradict_it() -> None:
    launch = Launch(0, 4, 0, 2, "torchrun")
    assert settled_devices(None, "auto", 1, "cpu") == ("auto", 1)
    assert settled_devices(launch, "auto", 1, "cpu") == (2, 2)
    assert settled_devices(launch, 2, 2, "cpu") == (2, 2)
    assert settled_devices(launch, "1,3", 1, "gpu") == ("1,3", 2)
    with pytest.raises(UserError, match="--trainer.devices 4: torchrun started 2 processes on this machine"):
        settled_devices(launch, 4, 1, "cpu")
    with pytest.raises(UserError, match="--trainer.num_nodes 3: torchrun started processes on 2"):
        settled_devices(launch, "auto", 3, "cpu")


CHILD = """
import os, signal, sys, time
from pathlib import Path
rank, how, folder = int(os.environ["RANK"]), sys.argv[2], Path(sys.argv[3])
(folder / f"{rank}").write_text(os.environ["WORLD_SIZE"] + os.environ["LOCAL_RANK"])
def note(number, frame):
    (folder / f"signal{rank}").write_text(str(number))
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, note)
signal.signal(signal.SIGINT, note)
if how == "well":
    sys.exit(0)
if how == "fails" and rank == 1:
    sys.exit(2)
if how == "killed" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
(folder / f"ready{rank}").write_text("")
time.sleep(60)
"""
PARENT = """
import sys
from ssl_bench.runtime import launch
launch.GRACE_SECONDS = launch.LOST_SECONDS = 0.5
launch._this_program = lambda: [sys.executable, sys.argv[1]]
sys.exit(launch.run_processes(["fit", *sys.argv[2:]], 2))
"""


def parent(tmp_path: Path, how: str) -> "subprocess.Popen[str]":
    child = tmp_path / "child.py"
    child.write_text(CHILD)
    folder = tmp_path / "said"
    folder.mkdir()
    argv = [sys.executable, "-c", PARENT, str(child), how, str(folder)]
    return subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)


@pytest.mark.integration
@pytest.mark.parametrize(("how", "code"), [("well", 0), ("fails", 2), ("killed", 1)])
def test_processes_end_together(how: str, code: int, tmp_path: Path) -> None:
    process = parent(tmp_path, how)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert [(tmp_path / "said" / str(rank)).read_text() for rank in range(2)] == ["20", "21"]
    line = "ssl-bench: error: process 1 of 2 was ended by SIGKILL; the same command continues"
    assert said.splitlines() == ([line] if how == "killed" else [])


@pytest.mark.integration
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_reach_all(number: int, code: int, tmp_path: Path) -> None:
    from processes import wait_until

    process = parent(tmp_path, "sleeps")
    wait_until(lambda: all((tmp_path / "said" / f"ready{rank}").exists() for rank in range(2)))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")
    assert [(tmp_path / "said" / f"signal{rank}").read_text() for rank in range(2)] == [str(int(number))] * 2
