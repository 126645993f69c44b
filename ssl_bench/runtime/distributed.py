"""What devices compute together, with exact gradients: rows gathered, batch norm over the images of all.

Where gradients are averaged over devices afterwards (DDP), a loss of gathered rows or synchronised norms has the
gradient that one device would compute on the joint batch. All that processes must agree on is in this one module, a
few lines above 300, because each piece is safe only beside the others.

Shapes: B images per device, G on all devices, C channels.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, final

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import ClusterEnvironment
from pytorch_lightning.plugins.layer_sync import LayerSync, TorchSyncBatchNorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_bench.errors import UserError
from ssl_bench.runtime.devices import own_device
from ssl_bench.runtime.launch import Launch, adopt_launcher

TIMEOUT = timedelta(minutes=10)  # for processes to wait for one another


def world_size() -> int:
    """Devices that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This device's place among them."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def distributed_context(device: str) -> Iterator[str]:
    """The device of this process; for as long, processes that torchrun or srun started know of each other.

    Args:
        device: cpu, cuda, cuda:1, mps; auto for a GPU if there is one, each process its own.

    Raises:
        UserError: It is not on this machine.
    """
    launch = adopt_launcher()
    device = own_device(device)
    if launch is None or launch.world_size == 1 or dist.is_initialized():
        yield device
        return
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    try:
        yield device
    finally:
        dist.destroy_process_group()


@final
class LaunchedEnvironment(ClusterEnvironment):
    """Tells Lightning what a launcher said of this process.

    Args:
        launch: That.
    """

    def __init__(self, launch: Launch) -> None:
        super().__init__()
        self.launch = launch

    creates_processes_externally = True

    @property
    def main_address(self) -> str:
        return os.environ.setdefault("MASTER_ADDR", "127.0.0.1")

    @property
    def main_port(self) -> int:
        return int(os.environ.setdefault("MASTER_PORT", "29500"))

    @staticmethod
    def detect() -> bool:
        return False  # it is only ever given

    def world_size(self) -> int:
        return self.launch.world_size

    def set_world_size(self, size: int) -> None:
        assert size == self.launch.world_size

    def global_rank(self) -> int:
        return self.launch.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.launch.rank, "ranks are not numbered machine after machine"

    def local_rank(self) -> int:
        return self.launch.local_rank

    def node_rank(self) -> int:
        return self.launch.rank // self.launch.local_size


@final
class Agreement:
    """The largest of the numbers that processes name, which is the same for all of them.

    They talk over a group of their own on the CPU, so that no GPU is waited for.
    """

    def __init__(self) -> None:
        self._group: Any = None
        self._pending: tuple[Any, Tensor] | None = None

    def later(self, number: int) -> int:
        """The largest that was named at the call before this; nobody waits, since that was a step ago."""
        if world_size() == 1:
            return number
        before = self._settled()
        self._pending = self._ask(number)
        return before

    def now(self, number: int) -> int:
        """The largest named at this call, or at the one before and not known yet."""
        if world_size() == 1:
            return number
        before = self._settled()
        self._pending = self._ask(number)
        return max(before, self._settled())

    def _ask(self, number: int) -> tuple[Any, Tensor]:
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        named = torch.tensor([number])
        return dist.all_reduce(named, dist.ReduceOp.MAX, self._group, async_op=True), named

    def _settled(self) -> int:
        if self._pending is None:
            return 0
        (work, named), self._pending = self._pending, None
        work.wait()
        return int(named)


def mean_over_processes(value: Tensor) -> Tensor:
    """Mean over devices, without gradient."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def values_of_processes(value: Tensor) -> Tensor:
    """A number -> those of all devices, without gradient."""
    return gather(value.detach().reshape(1))


def same_buffers(network: nn.Module) -> None:
    """Give a network the first device's buffers: those of norms that are not synchronised differ."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def largest_over_processes(value: int, device: torch.device) -> int:
    """The largest of the devices' numbers."""
    if world_size() == 1:
        return value
    largest = torch.tensor([value], device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def is_lost_process(error: BaseException) -> bool:
    """Whether an error, where several processes work together, says that another is gone or does not answer."""
    if not isinstance(error, RuntimeError):
        return False
    kinds = r"gloo|nccl|connection (was )?(closed|reset|refused)|broken pipe|timed out|timeout"
    return isinstance(error, dist.DistError) or re.search(kinds, str(error), re.IGNORECASE) is not None


def gather(rows: Tensor) -> Tensor:
    """(B, ...) -> (G, ...), device after device, with gradient to every device's part."""
    return rows if world_size() == 1 else _Gather.apply(rows)  # type: ignore[no-any-return]


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over devices, with gradient to every device's part."""
    return values if world_size() == 1 else _AllReduceSum.apply(values)  # type: ignore[no-any-return]


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)  # every device's loss depends on these rows
        return summed.narrow(0, ctx.count * rank(), ctx.count)


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed


@final
class SyncedBatchNorm(_BatchNorm):
    """Batch norm whose statistics are of all devices' images, on CPUs; torch's own runs on GPUs alone.

    Args:
        norm: The batch norm whose place this takes; parameters and buffers stay the same tensors.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.plain = type(norm)
        take_over(norm, self)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        across = [d for d in range(x.ndim) if d != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        values = x if x.dtype == torch.float64 else x.float()
        count = values.new_tensor([values.numel() / values.shape[1]])
        sums = all_reduce_sum(torch.cat([values.sum(across), count]))  # (C + 1,)
        count = sums[-1]
        mean = sums[:-1] / count  # (C,)
        centred = values - mean.view(shape)
        variance = all_reduce_sum(centred.square().sum(across)) / count  # (C,)
        if self.running_mean is not None and self.running_var is not None:
            assert self.momentum is not None and self.num_batches_tracked is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normalised = normalised * self.weight.view(shape)
        if self.bias is not None:
            normalised = normalised + self.bias.view(shape)
        return normalised.to(x.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2


def take_over(old: _BatchNorm, new: _BatchNorm) -> None:
    """Give the parameters, buffers and mode of one batch norm to another."""
    new.weight, new.bias = old.weight, old.bias
    new.running_mean, new.running_var = old.running_mean, old.running_var
    new.num_batches_tracked = old.num_batches_tracked
    new.training = old.training


@final
class SyncNorms(LayerSync):
    """Lightning's plug-in that makes batch norms synchronised for training, on GPUs and CPUs alike."""

    def __init__(self) -> None:
        self._on_gpu = TorchSyncBatchNorm()

    def apply(self, model: Any) -> nn.Module:
        for name, module in model.named_modules():
            if isinstance(module, _BatchNorm) and type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d):
                # Replacing it by a plain synchronised norm would lose what else it does (timm's have an activation).
                kind = type(module).__name__
                raise UserError(f"{name} is a {kind}, which cannot be synchronised: --trainer.sync_batchnorm false")
        if model.trainer.strategy.root_device.type != "cpu":
            return self._on_gpu.apply(model)
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, _BatchNorm):
                    setattr(parent, name, SyncedBatchNorm(child))
        return model  # type: ignore[no-any-return]

    def revert(self, model: Any) -> nn.Module:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, SyncedBatchNorm):
                    plain = child.plain(child.num_features, child.eps, child.momentum, child.affine)
                    take_over(child, plain)
                    setattr(parent, name, plain)
        return self._on_gpu.revert(model)
