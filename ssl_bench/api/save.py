"""From a pretrained method or module to a run folder, which `evaluate` and `leaderboard` take."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

import ssl_bench
from ssl_bench.api.images import Data, data_options
from ssl_bench.api.methods import load_method
from ssl_bench.api.runs import Run
from ssl_bench.config.fit_config import dump
from ssl_bench.config.options import DataOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.module_backbone import ModuleBackbone
from ssl_bench.models.saved_backbone import describe_backbone, write_backbone
from ssl_bench.models.weights_files import plain_file, read_pickled
from ssl_bench.pretraining.checkpoint import write_backbones
from ssl_bench.pretraining.image_batches import IMAGENET
from ssl_bench.pretraining.last_checkpoint import write_checkpoint
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.run_record import default_branch, now
from ssl_bench.records.files import write_json, write_text, writing_folder
from ssl_bench.records.run import DataRecord, RunInfo, write_run
from ssl_bench.runtime.distributed import rank
from ssl_bench.runtime.environment import describe


@dataclass(frozen=True)
class Trained:
    """How far pretraining came.

    Args:
        epochs: Passes over the images; None when unknown.
        steps: Of the optimiser.
        images: Drawn in all.
    """

    epochs: float | None = None
    steps: int = 0
    images: int = 0


def save_run(
    source: Method | str | PathLike[str],
    path: str | PathLike[str],
    *,
    data: Data | None = None,
    backbone: nn.Module | None = None,
    overwrite: bool = False,
) -> Run:
    """A run folder of a method that a Trainer of one's own has pretrained.

    With several processes each may call it; the first alone writes.

    Args:
        source: The method, or the file of a checkpoint that the Trainer has written of it.
        path: The folder that is made.
        data: The images it was pretrained on, as for `fit`, if they can be named so: they are recorded, and evaluations
            use them where no others are named.
        backbone: For a checkpoint: the module that was pretrained, if it was one of one's own.
        overwrite: Replace a run that is there.

    Raises:
        UserError: No such checkpoint, a folder that is there or cannot be written, or images that cannot be read.
    """
    target = Path(path).expanduser()
    if isinstance(source, Method):
        method, trained = source, _trained(source)
    else:
        method, trained = load_method(source, backbone), _trained_of(Path(source))
    try:
        if rank() == 0:
            if target.exists() and not overwrite:
                raise UserError(f"{target} is there already: choose another path, or overwrite=True")
            write(method, target, data, trained)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # none reads what is not there yet
    return Run(target)


def write(source: Method | ModuleBackbone, target: Path, data: Data | None, trained: Trained = Trained()) -> None:
    """The folder of a method, or of a network that was pretrained elsewhere, normalised as ImageNet is."""
    method = source if isinstance(source, Method) else None
    network: Any = method.backbone if method is not None else source
    made: Mapping[str, Any] = method.hparams if method is not None else {}
    record, chosen = _recorded(data)
    title = data_options(data).get("name", "own images") if record is None else record.title
    name = str(made.get("name") or type(source if method else network.model).__name__)
    views = method.views() if method is not None else []
    options = {
        "method": {"name": name, **made.get("method", {})},
        "backbone": dict(made.get("backbone") or asdict(network.options)),
        **({"optim": asdict(method.optim)} if method is not None else {}),
        **({"imported": {"file": network.architecture, "format": "module"}} if method is None else {}),
        **({"data": chosen} if chosen else {}),
    }
    info = RunInfo(
        status="finished",
        kind="pretrained" if method is not None else "imported",
        method=name,
        data=record or DataRecord(title),
        options=options,
        backbone=describe_backbone(network.options.name, network),
        seed=int(made.get("seed") or 0),
        epochs=trained.epochs,
        steps=trained.steps,
        images_seen=trained.images,
        views_per_image=sum(v.count * v.size**2 for v in views) / max(v.size**2 for v in views) if views else 1.0,
        created=now(),
        finished=now(),
        command=[Path(sys.argv[0]).name],
        version=ssl_bench.__version__,
        branch=default_branch(method) if method is not None else "",
    )
    with writing_folder(target, over=target.exists()) as folder:
        write_json(folder / "environment.json", describe())
        if method is None:
            write_backbone(folder, network, *IMAGENET)
        else:
            write_backbones(folder, method, *statistics_of(method))
            write_checkpoint(folder / "checkpoints" / "last.ckpt", {"state_dict": method.state_dict()})
            if isinstance(network, Backbone):
                config = {**options, "seed": info.seed}
                use = "pretrained by a Trainer of one's own; `ssl-bench fit -c` with --init begins where it ended"
                write_text(folder / "config.yaml", f"# {use}\n{dump(config)}")
        write_run(folder, info)


def statistics_of(method: Method) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation that the method's network sees its images normalised with."""
    if method.image_batches is not None:
        return method.image_batches.mean, method.image_batches.std
    return IMAGENET if method.standardize else ((0.0,) * 3, (1.0,) * 3)


def _recorded(data: Data | None) -> tuple[DataRecord | None, dict[str, Any]]:
    """The record of images that can be read, and the options that find them again."""
    from ssl_bench.data.dataset import load_dataset

    given = data_options(data)
    if not given:
        return None, {}
    options = DataOptions(**given)
    opened = load_dataset(options)
    return DataRecord(opened.title, opened.fingerprint), asdict(options)


def _trained(method: Method) -> Trained:
    if method._trainer is None or method._steps is None:
        return Trained()
    return _amount(method.trainer.global_step, method._steps.images, method._steps.per_epoch)


def _trained_of(checkpoint: Path) -> Trained:
    entries = read_pickled(plain_file(checkpoint))
    steps = entries.get("training_steps")
    return _amount(int(entries["global_step"]), steps["images"], steps["per_epoch"]) if steps else Trained()


def _amount(steps: int, images: int, per_epoch: int) -> Trained:
    return Trained(round(steps / per_epoch, 3), steps, steps * images)
