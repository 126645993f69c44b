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

pytestmark = pytest.mark.integration

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
    wanted = {
        "simclr",
        "simclrv2",
        "byol",
        "dino",
        "dinov2",
        "ibot",
        "simsiam",
        "barlow-twins",
        "vicreg",
        "moco-v3",
        "moby",
        "swav",
        "lejepa",
    }
    assert {case.method for case in CASES} == wanted & set(registry.names("methods"))


def test_two_processes_give_the_losses_of_simclrs_code_on_two_replicas(ranks: list[dict[str, Found]]) -> None:
    expected = load("simclr_ntxent")[0]["two_replicas"]
    losses = [found["simclr_ntxent"]["loss"] for found in ranks]
    assert_close(torch.stack(losses), torch.tensor(expected["per_replica_loss"]))
    assert_close(sum(losses) / 2, expected["single_process_loss_on_concatenated"])


@pytest.mark.parametrize("method", ["vicreg", "barlow", "moco"])
def test_two_processes_give_losses_and_gradients_of_the_official_codes(
    method: str, ranks: list[dict[str, Found]]
) -> None:
    record, tensors = load("two_processes")
    ours = [found["two_processes"] for found in ranks]
    for rank, found in enumerate(ours):
        assert_close(found[f"{method}.loss"], record["losses_per_rank_float64"][method][rank])
        names = [name for name in tensors if name.startswith(f"out.rank{rank}.{method}.grad_")]
        assert names
        for name in names:
            key = name.removeprefix(f"out.rank{rank}.")
            assert_close(found[key], tensors[name], record["noise"][name]["max_abs"])
    assert_close(sum(found[f"{method}.loss"] for found in ours) / 2, record["whole_batch"][method]["loss_whole_batch"])


def test_barlow_twins_gradient_is_a_devices_share_unless_asked_to_be_exact(ranks: list[dict[str, Found]]) -> None:
    ratio = load("two_processes")[0]["whole_batch"]["barlow"]["ddp_gradient_over_whole_batch_gradient"]
    assert ratio == 0.5
    for found in (found["two_processes"] for found in ranks):
        assert_close(found["barlow.loss"], found["barlow_exact.loss"])
        for name in ("grad_z1", "grad_z2"):
            assert_close(found[f"barlow.{name}"], ratio * found[f"barlow_exact.{name}"])


def test_two_processes_give_the_assignments_of_swavs_code(ranks: list[dict[str, Found]]) -> None:
    record, tensors = load("two_processes")
    for rank, found in enumerate(found["two_processes"] for found in ranks):
        name = f"out.rank{rank}.swav.q"
        assert_close(found["swav.q"], tensors[name], record["noise"][name]["max_abs"])


def test_two_processes_give_the_assignments_and_centres_of_dinov2s_code(ranks: list[dict[str, Found]]) -> None:
    """Of unequal numbers of patches: assignments weigh patches, the centre weighs devices."""
    record, tensors = load("two_processes")
    for rank, found in enumerate(found["two_processes"] for found in ranks):
        for kind in ("dino_q", "ibot_q", "dino_center", "ibot_center"):
            name = f"out.rank{rank}.dinov2.{kind}"
            expected = tensors[name].reshape(found[f"dinov2.{kind}"].shape)
            assert_close(found[f"dinov2.{kind}"], expected, record["noise"][name]["max_abs"])


def test_two_processes_give_the_loss_of_one(case: Case, apart: list[Found], alone: Found) -> None:
    losses = torch.stack([found["losses"] for found in apart])
    assert losses.shape == (2, STEPS)
    assert torch.allclose(losses[0], losses[1]) == (case.method == "barlow-twins")  # whose loss is of sums over devices
    assert_close(losses.mean(0), alone["losses"])


def test_two_processes_give_the_gradients_norms_and_centres_of_one(apart: list[Found], alone: Found) -> None:
    for found in apart:
        assert found.keys() == alone.keys()
    for name in set(alone) - {"losses"}:
        assert torch.equal(apart[0][name], apart[1][name]), name
        # A bias before a batch norm has no gradient but rounding.
        assert_close(apart[0][name], alone[name], noise=1e-13)


def test_there_was_something_to_share(case: Case, alone: Found) -> None:
    headed = ("simclr", "simclrv2", "byol", "moco-v3", "moby", "lejepa")  # with batch norms of their own
    kinds = ["running_mean"] * (case.method in headed or "resnet" in case.backbone)
    kinds += ["queue"] * (case.method == "swav") + ["queues"] * (case.method == "moby")
    kinds += [".center"] * (case.method in ("dino", "ibot"))
    for kind in kinds:
        centred = {"after.predictor.1.running_mean"} if case.method in ("simsiam", "moco-v3") else set()
        shared = [value for name, value in alone.items() if name.endswith(kind) and name not in centred]
        assert shared
        assert all(value.abs().max() > 1e-6 for value in shared)
    assert sum(name.startswith("gradient.") and value.abs().max() > 0 for name, value in alone.items()) > 10
