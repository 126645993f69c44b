"""The head and the centre against the official DINO code, plain formulas, and two processes."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import assert_close, load, weights
from paths import ROOT
from torch import Tensor, nn

from ssl_bench.models.dino_head import Centre, DINOHead, Prototypes


def head(**given: Any) -> DINOHead:
    torch.manual_seed(0)
    return DINOHead(20, **{"hidden": 40, "bottleneck": 12, "prototypes": 30} | given)


def test_logits_of_the_official_code() -> None:
    """Under the names of its checkpoints; from the features of its backbone for a global and a local crop."""
    c, official = load("dino_weights")[0]["config"], load("dino_weights")[1]
    record, tensors = load("dino_step")
    ours = DINOHead(c["dim"], c["hid"], c["bot"], c["K"], norm_last_layer=c["norm_last"])
    for whose in ("teacher", "student"):
        ours.load_state_dict(weights(official, f"{whose}/head."))
    crops = tensors["out.student_out"].unflatten(0, (-1, c["B"]))
    for features, logits in (("global1", crops[0]), ("local1", crops[2])):
        assert_close(ours(tensors[f"out.student_cls_{features}"]), logits, record["noise"]["student_out"]["max_abs"])


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_logits_are_lengths_times_cosines(layers: int) -> None:
    ours = head(layers=layers, norm_last_layer=False).double()
    nn.init.uniform_(ours.last_layer.weight_g, 0.5, 2)
    x = torch.randn(3, 5, 20, dtype=torch.float64)
    linears = [module for module in ours.mlp if isinstance(module, nn.Linear)]
    assert len(linears) == layers
    logits = ours(x)
    assert logits.shape == (3, 5, 30)
    z = x[1, 2]
    for i, linear in enumerate(linears):
        z = linear.weight @ z + linear.bias
        if i < layers - 1:
            z = z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
    assert_close(ours.bottleneck(x)[1, 2], z / z.square().sum().sqrt())
    for k in (0, 29):
        g, v = ours.last_layer.weight_g[k, 0], ours.last_layer.weight_v[k]
        assert_close(logits[1, 2, k], g * (v @ z) / (v.norm() * z.norm()))


def test_gradients_are_those_of_torchs_weight_norm() -> None:
    ours = Prototypes(6, 9, frozen_length=False)
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False))
    names = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
    with torch.no_grad():
        for own, name in names.items():
            theirs.get_parameter(name).copy_(ours.get_parameter(own))
    x, y = torch.randn(4, 6), torch.randn(4, 9)
    for layer in (ours, theirs):
        (layer(x) - y).square().sum().backward()
    for own, name in names.items():
        assert_close(ours.get_parameter(own).grad, theirs.get_parameter(name).grad)


@pytest.mark.parametrize("frozen", [True, False])
def test_length_one_is_frozen_or_not(frozen: bool) -> None:
    ours = head(norm_last_layer=frozen)
    assert torch.equal(ours.last_layer.weight_g, torch.ones(30, 1))
    assert ours.last_layer.weight_g.requires_grad is not frozen
    assert ours.last_layer.weight_v.requires_grad
    assert ours(100 * torch.randn(50, 20)).abs().max() <= 1 + 1e-6


def test_starts_as_the_official_code_does() -> None:
    torch.manual_seed(0)
    ours = DINOHead(384, prototypes=4096)
    for linear in ours.mlp[::2]:
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.01)
        assert not linear.bias.any()
    assert [tuple(linear.weight.shape) for linear in ours.mlp[::2]] == [(2048, 384), (2048, 2048), (256, 2048)]
    v = ours.last_layer.weight_v
    assert v.shape == (4096, 256)
    assert v.abs().max().item() == pytest.approx(1 / 16, rel=1e-3)  # uniform, not rescaled with the MLP's
    assert v.std().item() == pytest.approx(1 / 16 / math.sqrt(3), rel=0.01)


def test_centre_of_the_official_code() -> None:
    record, tensors = load("dino_step")
    centre = Centre(record["config"]["K"], record["config"]["center_momentum"])
    centre.center.copy_(tensors["center_before"])
    centre.update(tensors["out.teacher_out"])
    assert_close(centre.center, tensors["out.center_after"], record["noise"]["center_after"]["max_abs"])


def test_centre_by_hand() -> None:
    """Means 2 and 4, momentum 0.9: 0.2, then 0.58."""
    centre = Centre(1)
    assert centre.center.shape == (1, 1)
    centre.update(torch.tensor([[1.0], [3.0]]))
    assert centre.center.item() == pytest.approx(0.2)
    centre.update(torch.full((2, 5, 1), 4.0, requires_grad=True))
    assert centre.center.item() == pytest.approx(0.58)
    assert not centre.center.requires_grad
    assert list(centre.state_dict()) == ["center"]


def test_centre_is_float32_whatever_the_logits_are() -> None:
    logits = 1 + torch.rand(1000, 4)
    centre = Centre(4)
    for _ in range(100):
        centre.update(logits.bfloat16())
    assert centre.center.dtype == torch.float32
    assert_close(centre.center[0], logits.bfloat16().double().mean(0) * (1 - 0.9**100))


RANKS = """
import sys, torch, torch.distributed as dist
from torch import multiprocessing
from ssl_bench.models.dino_head import Centre

def one(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    rows = torch.load(f"{folder}/rows.pt", weights_only=True)
    centre = Centre(rows.shape[-1], 0.8)
    for step in rows:
        centre.update(step.chunk(2)[rank])
    torch.save(centre.center, f"{folder}/rank{rank}.pt")

multiprocessing.start_processes(one, (sys.argv[1],), nprocs=2, start_method="fork")
"""


@pytest.mark.integration
def test_centre_is_of_all_devices(tmp_path: Path) -> None:
    rows = torch.randn(3, 8, 5)
    torch.save(rows, tmp_path / "rows.pt")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", RANKS, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    alone = Centre(5, 0.8)
    for step in rows:
        alone.update(step)
    found: list[Tensor] = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert torch.equal(found[0], found[1])
    assert_close(found[0], alone.center)
