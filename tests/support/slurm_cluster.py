"""A SLURM cluster of one node on this machine: munged, slurmctld and slurmd of its own, as root."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "squeue", "scontrol", "scancel")
SECONDS = 120.0

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=INFINITE PreemptMode=OFF
"""


def available() -> bool:
    """Whether it can be started here."""
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Run it; the environment that its commands need."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    conf = folder / "slurm.conf"
    conf.write_text(CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(2)))
    environment = {**os.environ, "SLURM_CONF": str(conf)}
    munge = ["--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={key}", "--num-threads=2"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        with open(folder / "daemons.log", "wb") as log:
            for command in (["munged", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
                processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
                time.sleep(1.0)
        deadline = time.monotonic() + SECONDS
        idle = ["sinfo", "--noheader", "--format=%T"]
        while "idle" not in subprocess.run(idle, env=environment, capture_output=True, text=True, check=False).stdout:
            logs = "".join(file.read_text(errors="replace") for file in folder.glob("*.log"))
            assert time.monotonic() < deadline, logs[-5000:]
            time.sleep(0.5)
        yield environment
    finally:
        subprocess.run(["scancel", "--signal=KILL", "--user=root"], env=environment, check=False)
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # slurmd waits for what it has been told to end
                process.kill()
                process.wait()
