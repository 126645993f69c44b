"""Synchronised norms: how they come and go. What they compute in two processes: methods/test_joint_training.py."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paths import ROOT, SUPPORT
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.runtime import distributed as collectives
from ssl_bench.runtime.distributed import (
    Agreement,
    SyncedBatchNorm,
    SyncNorms,
    all_reduce_sum,
    gather,
    is_lost_process,
    largest_over_processes,
    mean_over_processes,
    rank,
    world_size,
)


class Network(nn.Module):
    """A convolution and a linear layer with their norms, on a trainer's device."""

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.3))
        self.head = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5))
        self.head[1].bias.requires_grad_(False)
        self.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).mean((2, 3)))
        return out


def test_one_process_gathers_and_sums_nothing() -> None:
    x = torch.rand(3, 2)
    assert (world_size(), rank()) == (1, 0)
    assert gather(x) is x
    assert all_reduce_sum(x) is x


def test_norms_are_replaced_around_the_same_tensors_and_put_back() -> None:
    network = Network()
    before = dict(network.named_parameters()), list(network.state_dict())
    assert SyncNorms().apply(network) is network
    assert [type(m) for m in (network.conv[1], network.head[1])] == [SyncedBatchNorm] * 2
    assert all(p is before[0][name] for name, p in network.named_parameters())
    assert list(network.state_dict()) == before[1]
    assert SyncNorms().revert(network) is network
    assert [type(m) for m in (network.conv[1], network.head[1])] == [nn.BatchNorm2d, nn.BatchNorm1d]
    assert (network.conv[1].eps, network.conv[1].momentum) == (1e-3, 0.3)
    assert all(p is before[0][name] for name, p in network.named_parameters())
    assert list(network.state_dict()) == before[1]


def test_gpus_get_torchs_own() -> None:
    network = Network("cuda")
    SyncNorms().apply(network)
    assert isinstance(network.conv[1], nn.SyncBatchNorm)


def test_formula_is_that_of_batch_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the sum over devices left out, the synchronised path must give one device's batch norm."""
    plain, synced = Network(), Network()
    SyncNorms().apply(synced)
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives, "all_reduce_sum", lambda values: values)
    x = torch.rand(6, 3, 8, 8)
    for _ in range(2):
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        expected, actual = plain(a), synced(b)
        torch.testing.assert_close(actual, expected)
        (expected**2).sum().backward()
        (actual**2).sum().backward()
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(synced.state_dict()[name], value)
    with torch.autocast("cpu", torch.bfloat16):
        assert synced.conv[1](x.bfloat16()[:, :1].expand(-1, 4, -1, -1)).dtype == torch.bfloat16


def test_a_norm_that_does_more_than_norm_is_refused() -> None:
    """timm's BatchNormAct2d holds an activation, which torch's conversion would drop without a word."""
    network: Any = Backbone(BackboneOptions("skresnet18", img_size=32))
    network.trainer = Network().trainer
    with pytest.raises(UserError, match="BatchNormAct2d, which cannot be synchronised: --trainer.sync_batchnorm false"):
        SyncNorms().apply(network)


@pytest.mark.integration
def test_two_processes_agree(tmp_path: Path) -> None:
    """On the largest wish, a call later or at once; on means, values, buffers."""
    path = os.pathsep.join([str(ROOT), str(SUPPORT)])
    command = [sys.executable, str(SUPPORT / "two_processes.py"), str(tmp_path)]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=True, timeout=240)
    for rank_of in range(2):
        found = torch.load(tmp_path / f"rank{rank_of}.pt", weights_only=True)
        assert found["later"] == [0, 0, 1, 3, 0]
        assert found["now"] == [2, 4, 0]
        assert found["mean"] == 0.5 and found["values"].tolist() == [0.0, 1.0] and found["largest"] == 10
        assert found["buffer"].tolist() == [1.0, 1.0]


def test_alone_a_wish_is_known_at_once() -> None:
    agreed = Agreement()
    assert [agreed.later(2), agreed.later(0), agreed.now(1)] == [2, 0, 1]
    assert mean_over_processes(torch.tensor(3.0)) == 3
    assert largest_over_processes(7, torch.device("cpu")) == 7


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("Timed out waiting 600000ms for recv operation to complete"), True),
        (torch.distributed.DistBackendError("NCCL communicator was aborted"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (UserError("broken image"), False),
    ],
)
def test_a_lost_process_is_told_from_a_fault(error: Exception, lost: bool) -> None:
    assert is_lost_process(error) == lost
