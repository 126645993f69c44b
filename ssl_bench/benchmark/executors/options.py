"""Options of executors, `--executor.*`: what the cluster is asked for. Torch-free."""

from dataclasses import dataclass
from typing import Annotated

from ssl_bench.config.constraints import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Range


@dataclass(frozen=True)
class SlurmOptions:
    """What SLURM is asked for. Jobs of one kind that can start at the same time are one job array.

    Args:
        partition: Where jobs run; the cluster's default when not given.
        account: Who pays.
        qos: Quality of service.
        constraint: Features that a node must have.
        time: Minutes of a job; one that needs more saves itself before, is queued again, and continues.
        gpus: Of each job; a run takes all of them.
        cpus: Of each job.
        memory: GB of each job; the cluster's default when not given.
        array_size: Most tasks of one job array; clusters have a limit (`scontrol show config`, MaxArraySize).
        signal: Seconds before the end of its time at which a job saves itself.
        setup: Shell commands before each job, such as `module load cuda`.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    time: Annotated[int, Range(min=1, max=525_600)] = 1440
    gpus: NonNegativeInt = 1
    cpus: PositiveInt = 8
    memory: PositiveFloat | None = None
    array_size: Annotated[int, Range(min=1, max=100_000)] = 1000
    signal: Annotated[int, Range(min=10, max=65_535)] = 120
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class RayOptions:
    """What Ray is asked for.

    Args:
        address: Of the cluster: `auto` for the one that this machine belongs to, `local` to start one here, or
            `host:port`.
        cpus: Of each job.
        gpus: Of each job; a part of one shares it.
        memory: GB of each job, which Ray counts but does not enforce.
        restarts: Times that a job is begun again, on another node, when its node is gone.
    """

    address: str = "auto"
    cpus: PositiveFloat = 1.0
    gpus: NonNegativeFloat = 0.0
    memory: PositiveFloat | None = None
    restarts: NonNegativeInt = 10


OPTIONS: dict[str, type | None] = {"local": None, "slurm": SlurmOptions, "ray": RayOptions}
