"""A run folder, opened to be drawn: its images, its method with the weights that training left, its network.

Shapes: B images, N images of a split, 3 x s x s pixels.
"""

import contextlib
import io
import pickle
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from ssl_bench.augment.executors import CropInWorker
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.options import DataOptions
from ssl_bench.data.batch import Batch
from ssl_bench.data.dataset import Dataset
from ssl_bench.data.evaluation_batches import evaluation_batches
from ssl_bench.data.loaders import PhotographLoader, ResidentLoader
from ssl_bench.data.module import DataModule
from ssl_bench.data.order import Order
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import LabelledSplit, Split, TestSplit, TrainSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.networks import default_network
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.models.weights_files import plain_file, read_pickled
from ssl_bench.pretraining.building import build_on
from ssl_bench.pretraining.method import Method
from ssl_bench.records.run import RunInfo
from ssl_bench.runtime.seeds import derive

MOST_VALUES = 1 << 28  # of a batch's views: a GiB; of a larger batch its first images alone are looked at
FEW = 64  # so many


class LeftOut(Exception):
    """A picture that this run cannot have, and why."""


@dataclass(frozen=True)
class _Clock:
    """What a method asks of a trainer while it draws: the epoch."""

    current_epoch: int


@dataclass(frozen=True)
class _Built:
    """A method with its weights, and what feeds it."""

    data: Dataset
    method: Method
    module: DataModule
    clock: _Clock


@final
@dataclass(frozen=True)
class OpenedRun:
    """What pictures are drawn from; each part is opened when first asked for.

    Args:
        folder: The run's.
        info: Its record.
        data: The images, opened.
        options: That opened them, batch size and workers included.
        own: Whether the run was pretrained on them.
        device: Where networks run.
        named_classes: Class paths that its configuration may have, since the user named them.
    """

    folder: Path
    info: RunInfo
    data: Dataset
    options: DataOptions
    own: bool
    device: str
    named_classes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The method's name, cut where it is endless."""
        name = self.info.method
        return name if len(name) <= 40 else name[:39] + "…"

    @cached_property
    def network(self) -> FeatureExtractor:
        """The network that is evaluated by default.

        Raises:
            LeftOut: There is none.
        """
        if self.info.kind == "tokenizer":
            raise LeftOut("it is a tokenizer's run, which has no backbone")
        if self.info.kind != "baseline" and not (self.folder / "backbone.safetensors").exists():
            raise LeftOut(f"its run is {self.info.status}: there is no backbone yet")
        return default_network(self.folder, self.data, self.options.num_workers, self.device)

    @property
    def _built(self) -> "_Built":
        if isinstance(self._attempt, LeftOut):
            raise LeftOut(*self._attempt.args)
        return self._attempt

    @cached_property
    def _attempt(self) -> "_Built | LeftOut":
        """The method, built once; or why it cannot be."""
        last = self.folder / "checkpoints" / "last.ckpt"
        if not last.is_file():
            kinds = {
                "baseline": "it is a baseline: no method trained it",
                "imported": "its encoder alone was imported",
            }
            return LeftOut(kinds.get(self.info.kind, "it has no checkpoints/last.ckpt"))
        data, messages = self.data, io.StringIO()
        try:
            written = plain_file(self.folder / "config.yaml", self.folder)
            with contextlib.redirect_stderr(messages):
                config = parse_fit(["-c", str(written)], {}, named_classes=self.named_classes).config
            config |= {"init": None, "seed": self.info.seed}  # the weights are all in the checkpoint
            if (self.folder / "backbone.json").is_file():
                backbone, mean, std = load_backbone(self.folder)
                config["backbone"] = asdict(backbone.options) | {"img_size": backbone.img_size}
                if self.info.kind == "imported":  # whose images were normalised otherwise
                    data = replace(data, mean=mean, std=std)
            data, method, module = build_on(data, config)
        except SystemExit:
            reason = messages.getvalue().rpartition("error: ")[2].strip()
            return LeftOut(f"its config.yaml is not of this version: {reason}")
        except FileNotFoundError:
            return LeftOut("it has no config.yaml")
        except UserError as error:
            return LeftOut(f"its method cannot be built again: {error}")
        _load(method, last)
        clock = _Clock(self.epoch)
        method.trainer = clock  # type: ignore[assignment]  # which is held weakly there
        return _Built(data, method.to(self.device).eval(), module, clock)

    @property
    def method(self) -> Method:
        """The run's method, with its weights, in eval mode and in its last epoch.

        Raises:
            LeftOut: It cannot be built, or was never trained here.
        """
        return self._built.method

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation that the method's views are normalised with."""
        return self._built.data.mean, self._built.data.std

    @property
    def epoch(self) -> int:
        """The last that training began, from 0."""
        return max(0, int(np.ceil(self.info.epochs or 1)) - 1)

    @cached_property
    def batch(self) -> tuple[Batch, Tensor]:
        """The last epoch's first batch, as one device gets it, and its first FEW images before they became views."""
        built = self._built
        pool, views = built.data.pretrain, built.method.views()
        size = min(self.options.batch_size, len(pool))
        if size * sum(3 * view.count * view.size**2 for view in views) > MOST_VALUES:
            size = min(FEW, size)  # these images are the first of the whole batch
        order = Order(len(pool), size, self.info.seed, epoch=lambda: self.epoch)
        if isinstance(pool, ResidentPool):
            raw = next(iter(ResidentLoader(pool, order)))
        else:
            raw = next(iter(PhotographLoader(pool, order, CropInWorker(views), num_workers=0)))
        images: Any = raw.images
        moved = images.to(self.device) if isinstance(images, Tensor) else [crops.to(self.device) for crops in images]
        batch = built.module.on_after_batch_transfer(raw._replace(images=moved, rows=raw.rows.to(self.device)), 0)
        first = TrainSplit(pool, batch.index[:FEW].cpu().numpy())
        return batch, self.seen(first, np.arange(len(first)), max(view.size for view in views))

    def masks(self) -> Tensor:
        """(V, B, N), the masks of that batch.

        Raises:
            LeftOut: The method hides nothing.
        """
        method, count = self.method, len(self.batch[0].index)
        with torch.random.fork_rng():
            torch.manual_seed(derive(self.info.seed, self.epoch, 0, 0, 1))  # as training does before each batch
            masks = method.masks(count)
        if masks is None:
            raise LeftOut(f"{self.title} hides no patches")
        return masks

    def unnormalised(self, views: Tensor) -> Tensor:
        """(B, 3, s, s) views -> in [0, 1]."""
        mean, std = (torch.tensor(values, device=views.device).view(-1, 1, 1) for values in self.statistics)
        return (views.float() * std + mean).clamp(0, 1)

    @property
    def shown(self) -> LabelledSplit:
        """The split whose images are shown: test, or all training images where there is none."""
        if self.data.test is not None:
            return self.data.test
        return TrainSplit(self.data.pretrain, np.arange(len(self.data.pretrain)))

    def chosen(self, count: int) -> np.ndarray:
        """Indices of so many images of `shown`, the same for every run on these data: of each class in turn, if any."""
        split = self.shown
        order = np.random.default_rng(0).permutation(len(split))
        if split.pool.labels is None:
            return np.sort(order[:count])
        labels = split.labels[order]
        turn = np.zeros(len(order), dtype=np.int64)  # of an image among those of its class
        for label in np.unique(labels):
            where = labels == label
            turn[where] = np.arange(where.sum())
        return order[np.lexsort((labels, turn))[:count]]

    def seen(self, split: Split, indices: np.ndarray, size: int) -> Tensor:
        """(B, 3, size, size) in [0, 1], images of a split as evaluations see them."""
        part = type(split)(split.pool, split.rows[indices])
        return torch.cat([images for images, _ in evaluation_batches(part, size, 64, 0)])

    def images_shown(self) -> str:
        """`test images of cifar10`."""
        return f"{'test' if isinstance(self.shown, TestSplit) else 'training'} images of {self.data.title}"


def _load(method: Method, last: Path) -> None:
    """Weights of the checkpoint, all of them.

    Raises:
        UserError: The file is damaged or does not fit.
    """
    try:
        method.load_state_dict(read_pickled(last, last.parent.parent)["state_dict"])
    except UserError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{last} is damaged or of another configuration ({type(error).__name__}: {reason})") from None
