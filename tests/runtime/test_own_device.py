"""Which device a process gets, on machines with any number of GPUs."""

import pytest
import torch

from ssl_bench.errors import UserError
from ssl_bench.runtime.devices import own_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> int:
    count = int(request.param)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return count


TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}
SRUN = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("gpus", "asked", "environ", "device"),
    [
        (0, "auto", {}, "cpu"),
        (0, "cpu", TORCHRUN, "cpu"),
        (2, "cpu", {}, "cpu"),
        (2, "auto", {}, "cuda:0"),
        (2, "cuda", {}, "cuda:0"),
        (2, "cuda:1", {}, "cuda:1"),
        (2, "auto", TORCHRUN, "cuda:1"),
        (2, "cuda", SRUN, "cuda:1"),
        (1, "auto", SRUN, "cuda:0"),
    ],
    indirect=["gpus"],
)
def test_each_process_has_a_device(gpus: int, asked: str, environ: dict[str, str], device: str) -> None:
    assert own_device(asked, environ) == device


@pytest.mark.parametrize(
    ("gpus", "asked", "environ", "message"),
    [
        (0, "cuda", {}, "--device cuda: "),
        (0, "cuda:0", {}, "--device cuda:0: "),
        (2, "cuda:2", {}, "this machine has 2 GPUs, counted from 0"),
        (1, f"cuda:{10**30}", {}, "this machine has 1 GPU,"),
        (0, "mps", {}, "--device mps"),
        (2, "foo", {}, "--device foo: auto, cpu, cuda"),
        (2, "2", {}, "--device 2: auto"),
        (2, "meta", {}, "--device meta: auto"),
        (2, "cuda:-1", {}, "--device cuda:-1: auto"),
        (2, "", {}, "auto, cpu"),
        (2, "cuda:0", SRUN, "several processes cannot share it"),
        (2, "auto", TORCHRUN | {"LOCAL_RANK": "2"}, "more processes than the 2 GPUs"),
    ],
    indirect=["gpus"],
)
def test_what_is_not_there_is_refused(gpus: int, asked: str, environ: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        own_device(asked, environ)
    assert message in str(error.value) and "\n" not in str(error.value)
