"""What a run will take, before it begins: parameters, memory, the largest batch, steps, FLOPs, hours.

Parameters, gradients and optimiser state are counted after a step that was really taken; activations are what the loss
really keeps for its backward pass, in the run's number format on this machine; the rate is that of a few batches.
"""

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import pytorch_lightning as pl
import torch

from ssl_bench.config.options import DryRunOptions, TrainerOptions
from ssl_bench.data.module import DataModule
from ssl_bench.data.order import Order
from ssl_bench.errors import UserError
from ssl_bench.models.pretrained import Weights
from ssl_bench.pretraining.building import build, require_images
from ssl_bench.pretraining.dry_run.activation_memory import ActivationMemory, KeptForBackward
from ssl_bench.pretraining.dry_run.measured_steps import StepClock, take_steps
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.run_record import training_flops
from ssl_bench.pretraining.trainer import prepare_process
from ssl_bench.runtime.acceleration import effective_precision
from ssl_bench.runtime.devices import check_trainer
from ssl_bench.runtime.launch import requested_processes, several_processes

GIB = 2**30
LOOKED_AT = 8  # images of the batch whose activations are counted
STEPS = 10  # batches that tell the rate
SECONDS = 30.0  # that these take at most, roughly
LEFT_FREE = 0.1  # of a memory: for what libraries and unusable gaps take


@dataclass(frozen=True)
class Parameters:
    """Numbers of them.

    Args:
        backbone: Of the network that is evaluated.
        trained: Of all that the optimiser moves: backbone and heads.
        following: Of what it does not: teachers, fixed positions.
    """

    backbone: int
    trained: int
    following: int


@dataclass(frozen=True)
class Memory:
    """Bytes on each device.

    Args:
        weights: Parameters and buffers, teachers' too.
        gradients: Of all that is trained.
        optimizer: Its state.
        exchanged: Copies of the gradients that several devices exchange.
        activations: What a batch keeps.
        batch: All of it together, with the run's batch.
        available: Of a device.
        largest_batch: Images of a batch that fit into it, a tenth left free; 0 if none.
    """

    weights: int
    gradients: int
    optimizer: int
    exchanged: int
    activations: ActivationMemory
    batch: float
    available: float
    largest_batch: int


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Args:
        images: That there are to train on.
        devices: That train together.
        batch_size: Images of a batch on a device.
        step_images: Of an optimiser step: over devices and accumulated batches.
        steps_per_epoch: Optimiser steps.
        epochs: Passes over the images.
        steps: Optimiser steps in all.
        images_seen: In all.
    """

    images: int
    devices: int
    batch_size: int
    step_images: int
    steps_per_epoch: int
    epochs: int
    steps: int
    images_seen: int


@dataclass(frozen=True)
class DryRun:
    """What a run will take.

    Args:
        method: Its name.
        backbone: Its network's name; empty where a tokenizer is trained.
        image_size: Pixels of its largest views.
        device: On which it was measured.
        precision: Number format, likewise.
        optimizer: Its name.
        parameters: Numbers of them.
        memory: Bytes.
        length: Steps and images.
        flops_per_image: Forward and backward.
        flops: Of the whole run.
        images_per_second: Of all devices together.
        measured_batch: Images of the batches whose rate was measured; None where the rate was given.
        hours: Of the whole run, without reading the images and the online probe.
    """

    method: str
    backbone: str
    image_size: int
    device: str
    precision: str
    optimizer: str
    parameters: Parameters
    memory: Memory
    length: Length
    flops_per_image: float
    flops: float
    images_per_second: float
    measured_batch: int | None
    hours: float

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts and numbers."""
        return asdict(self)


def dry_run(config: dict[str, Any], asked: DryRunOptions, weights: Weights | None = None) -> DryRun:
    """Build everything that a run has, take a few steps on one device, and say what the run will take.

    Args:
        config: Of the run.
        asked: Memory of a device and rate, where they are not those of this machine.
        weights: What `--backbone.weights` names, if it does.

    Raises:
        UserError: The configuration does not fit the data or the network.
    """
    if several_processes():
        raise UserError("--dry-run is one process: start it alone; --trainer.devices and --trainer.num_nodes say more")
    options = TrainerOptions(**config["trainer"])
    check_trainer(replace(options, devices="auto"))
    prepare_process()
    pl.seed_everything(config["seed"], verbose=False)
    data, method, module = build(config, weights)
    devices = requested_processes(options.devices, options.accelerator) * options.num_nodes
    require_images(method, len(data.pretrain), module.options, devices, options.sync_batchnorm)
    length = _length(len(data.pretrain), module.options.batch_size, devices, options)
    flops = training_flops(method)
    long = max(options.max_epochs, STEPS)  # a run of one step says nothing of its rate
    alone = replace(options, devices=1, num_nodes=1, max_epochs=long, max_steps=-1)
    kept, state = KeptForBackward(method.min_images), OptimizerState()
    looked_at = min(max(LOOKED_AT, method.min_images), length.batch_size)
    once = replace(alone, accumulate_grad_batches=1)
    seconds = _take(looked_at, once, method, module, 3, kept, state).seconds_each
    memory = _memory(method, kept.memory, state, length, asked.memory)
    rate = asked.rate
    measured: int | None = None
    if rate is None:
        fits = max(memory.largest_batch, looked_at)
        quick = int(SECONDS / STEPS / seconds * looked_at)
        measured = min(length.batch_size, fits, max(looked_at, quick))
        rate = devices * measured / _take(measured, alone, method, module, STEPS).seconds_each
    return DryRun(
        method=config["method"]["name"],
        backbone=config["backbone"]["name"] if "backbone" in config else "",
        image_size=max(view.size for view in method.views()),
        device=state.device.type,
        precision=effective_precision(options.precision, options.accelerator),
        optimizer=method.optim.name,
        parameters=_parameters(method),
        memory=memory,
        length=length,
        flops_per_image=flops,
        flops=flops * length.images_seen,
        images_per_second=rate,
        measured_batch=measured,
        hours=length.images_seen / rate / 3600,
    )


@final
class OptimizerState(pl.Callback):
    """Looks at what an optimiser keeps after a step, and on which device."""

    def __init__(self) -> None:
        self.bytes = 0
        self.device = torch.device("cpu")

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
        kept = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
        self.bytes, self.device = sum(tensor.nbytes for tensor in kept), module.device


def _take(
    batch_size: int, options: TrainerOptions, method: Method, module: DataModule, batches: int, *callbacks: pl.Callback
) -> StepClock:
    """A few batches of another size."""
    module.options = replace(module.options, batch_size=batch_size)
    return take_steps(options, method, module, batches, *callbacks)


def _length(images: int, batch_size: int, devices: int, options: TrainerOptions) -> Length:
    """Steps of a run, as its loader and its trainer count them."""
    order = Order(images, batch_size, seed=0, world_size=devices)
    batches, limit = len(order), options.limit_train_batches
    if limit is not None:
        batches = min(batches, limit) if isinstance(limit, int) else max(1, int(batches * limit))
    accumulated = min(options.accumulate_grad_batches, batches)
    each = math.ceil(batches / accumulated)
    steps = options.max_epochs * each
    seen = options.max_epochs * batches * order.batch_size * devices
    if 0 < options.max_steps < steps:
        whole, rest = divmod(options.max_steps, each)
        seen = (whole * batches + min(rest * accumulated, batches)) * order.batch_size * devices
        steps = options.max_steps
    step_images = accumulated * order.batch_size * devices
    return Length(images, devices, order.batch_size, step_images, each, options.max_epochs, steps, seen)


def _memory(method: Method, kept: ActivationMemory, state: OptimizerState, length: Length, gib: float | None) -> Memory:
    weights = sum(tensor.nbytes for tensor in (*method.parameters(), *method.buffers()))
    gradients = sum(parameter.nbytes for parameter in method.parameters() if parameter.requires_grad)
    exchanged = gradients if length.devices > 1 else 0
    whole = weights + gradients + state.bytes + exchanged
    available = gib * GIB if gib is not None else memory_of(state.device)
    largest = kept.most_images(available * (1 - LEFT_FREE) - whole)
    batch = whole + kept.of(length.batch_size)
    return Memory(weights, gradients, state.bytes, exchanged, kept, batch, available, largest)


def memory_of(device: torch.device) -> float:
    """Bytes of a GPU, or of this machine as far as this process may use it."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    if device.type == "mps":
        return float(torch.mps.recommended_max_memory())
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(whole, int(text)) if text.isdecimal() else whole


def _parameters(method: Method) -> Parameters:
    trained = sum(parameter.numel() for parameter in method.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in method.parameters())
    backbone = sum(p.numel() for p in method.backbone.parameters()) if method.product == "backbone" else 0
    return Parameters(backbone, trained, everything - trained)
