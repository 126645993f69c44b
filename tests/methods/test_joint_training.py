"""Two processes with half of each batch against one with all of it, for every method that looks beyond its images."""

import os
import subprocess
import sys
from pathlib import Path

import joint_training
import pytest
import torch
from golden_files import assert_close, load
from joint_training import CASES, STEPS, Case
from paths import ROOT, SUPPORT
from torch import Tensor

from ssl_bench.config import registry

Found = dict[str, Tensor]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    """What each process found, by case; the processes start once for all."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(Path(joint_training.__file__)), str(folder)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(params=CASES, ids=str, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def alone(case: Case) -> Found:
    return joint_training.train(case, slice(None), devices=1)


@pytest.fixture
def apart(case: Case, ranks: list[dict[str, Found]]) -> list[Found]:
    return [found[str(case)] for found in ranks]


def test_every_method_whose_batch_is_global_is_here() -> None:
    wanted = {"simclr", "simclrv2", "byol", "dino", "ibot"}
    assert {case.method for case in CASES} == wanted & set(registry.names("methods"))


def test_two_processes_give_the_losses_of_simclrs_code_on_two_replicas(ranks: list[dict[str, Found]]) -> None:
    expected = load("simclr_ntxent")[0]["two_replicas"]
    losses = [found["simclr_ntxent"]["loss"] for found in ranks]
    assert_close(torch.stack(losses), torch.tensor(expected["per_replica_loss"]))
    assert_close(sum(losses) / 2, expected["single_process_loss_on_concatenated"])


def test_two_processes_give_the_loss_of_one(apart: list[Found], alone: Found) -> None:
    losses = torch.stack([found["losses"] for found in apart])
    assert losses.shape == (2, STEPS)
    assert not torch.allclose(losses[0], losses[1])
    assert_close(losses.mean(0), alone["losses"])


def test_two_processes_give_the_gradients_norms_and_centres_of_one(apart: list[Found], alone: Found) -> None:
    for found in apart:
        assert found.keys() == alone.keys()
    for name in set(alone) - {"losses"}:
        assert torch.equal(apart[0][name], apart[1][name]), name
        # A bias before a batch norm has no gradient but rounding.
        assert_close(apart[0][name], alone[name], noise=1e-13)


def test_there_was_something_to_share(case: Case, alone: Found) -> None:
    kinds = ["running_mean"] * (case.method in ("simclr", "simclrv2", "byol") or "resnet" in case.backbone)
    kinds += [".center"] * (case.method in ("dino", "ibot"))
    for kind in kinds:
        shared = [value for name, value in alone.items() if name.endswith(kind)]
        assert shared
        assert all(value.abs().max() > 1e-6 for value in shared)
    assert sum(name.startswith("gradient.") and value.abs().max() > 0 for name, value in alone.items()) > 10
