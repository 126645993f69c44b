"""The contract of a method: views + parts + loss. Everything else that pretraining needs is composed around it.

Shapes: B images per device, C x H x W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_bench.augment.views import Views
from ssl_bench.config.method_facts import FAMILIES, Family, MethodKind
from ssl_bench.config.options import Optim
from ssl_bench.data.batch import Batch
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import Classifier
from ssl_bench.models.module_backbone import ModuleBackbone
from ssl_bench.optim.optimizers import StepSchedule, build_optimizer, clip_gradients, parameter_groups
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.image_batches import IMAGENET, ImageBatches
from ssl_bench.pretraining.layer_rates import decayed_by_layer
from ssl_bench.pretraining.reconstruction import Reconstruction
from ssl_bench.pretraining.training_steps import TrainingSteps, training_steps
from ssl_bench.runtime.acceleration import keep_freed_memory, write_out_attention


class Method(pl.LightningModule, ABC):
    """Self-supervised pretraining of a backbone.

    A subclass builds its parts in ``__init__`` (typed, with the paper's numbers as defaults), describes its ``views``
    and computes its ``loss``. A `EMATeacher` among its parts is updated after each optimiser step. It can be trained by
    any Lightning Trainer on any loader of images, of which it makes its views itself (`image_batches`).

    Args:
        backbone: The network being pretrained; None where the product is a tokenizer.
        optim: The recipe of its optimiser; a subclass gives the paper's as default.
    """

    kind: MethodKind = "other"  # what keeps its representations apart; `ssl-bench list methods` is in that order
    families: tuple[Family, ...] = FAMILIES  # of networks that it takes with its own options
    standardize: bool = True  # whether views have the data's mean subtracted and are divided by its deviation
    product: Literal["backbone", "tokenizer"] = "backbone"  # what is saved; a tokenizer's method has one of that name
    needs_labels: bool = False  # whether it trains on labelled images and `loss` is given their (B,) `labels`
    unlabelled_too: bool = False  # if so, whether on the other images as well, whose label is -1
    min_images: int = 1  # of a step's batch, over all devices, for the loss to mean anything
    no_weight_decay: Collection[str] = ()  # names of parameters without weight decay, besides biases and norms

    backbone: Backbone
    start: Mapping[str, Any] | None = None  # `ssl_bench.models.pretrained.Start` of a run that begins with weights
    image_batches: ImageBatches | None = None  # makes views of batches of plain images
    batch_size: int | None = None  # images of such a batch on a device, where the loader does not say

    def __init__(self, backbone: Backbone | None, optim: Optim) -> None:
        super().__init__()
        if backbone is not None:
            self.backbone = backbone
        self.optim = optim
        self._schedule: StepSchedule | None = None
        self._steps: TrainingSteps | None = None

    @abstractmethod
    def views(self) -> Views:
        """Describe the augmentation; the data module runs it."""

    @abstractmethod
    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Scalar loss of a batch of views.

        What a loss draws at random (masks, noise) it also takes as keyword, so that it can be compared with an oracle.
        """

    @property
    def evaluated(self) -> nn.Module:
        """The backbone that evaluations receive when not asked for another; the student's."""
        return self.backbone

    @property
    def branches(self) -> dict[str, Backbone]:
        """Name -> each network that could be evaluated, `evaluated` first: the encoder, or student and teacher."""
        followers = (module for part in self.children() if isinstance(part, EMATeacher) for module in part.modules())
        teachers: list[Any] = [module for module in followers if isinstance(module, Backbone | ModuleBackbone)]
        named = {"student": self.backbone, "teacher": teachers[0]} if teachers else {"encoder": self.backbone}
        return dict(sorted(named.items(), key=lambda item: item[1] is not self.evaluated))

    @property
    def evaluated_classifier(self) -> Classifier | None:
        """What tells classes apart on the evaluated backbone's features, kept beside it; None without labels."""
        return None

    def masks(self, batch: int) -> Tensor | None:
        """(V, B, N) bool, True for the hidden patches of the first V views; None if nothing is hidden.

        Drawn as `loss` draws them, before anything else: with the same seed they are those that it learns from.
        """
        return None

    def reconstruction(self, images: Tensor, **drawn: Any) -> Reconstruction | None:
        """What the method makes of (B, 3, H, W) images, normalised as views are; None if it predicts no pixels.

        It takes the keywords of `loss`.

        Raises:
            UserError: What it predicts here cannot be shown.
        """
        return None

    def starting_weights(self, earlier: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights to start from, under this method's names, out of the state of an earlier run (`--init RUN`).

        All of it, if the earlier run is the same method's; a later stage of training picks what it needs.
        """
        return earlier

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser treats alike, in `build_optimizer`'s terms; as a rule, what decays and what does not."""
        return parameter_groups(self, self.no_weight_decay)

    @property
    def progress(self) -> float:
        """Part of training that is done, in [0, 1]."""
        return self.trainer.global_step / max(1, self.total_steps)

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return int(self.trainer.estimated_stepping_batches)

    def on_fit_start(self) -> None:
        """What makes steps on a CPU fast and changes nothing."""
        if self.device.type == "cpu":
            keep_freed_memory()
            if "bf16" in str(self.trainer.precision):
                write_out_attention(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._steps is not None:
            checkpoint["training_steps"] = asdict(self._steps)  # how many images a step had, for the record

    def training_step(self, batch: Any, number: int) -> Tensor:
        seen = batch if isinstance(batch, Batch) else self._with_views(batch, number)
        loss = self.loss(seen.views, **({"labels": seen.labels} if self.needs_labels else {}))
        self.log("loss", loss.detach(), batch_size=len(seen.index), prog_bar=True)
        self.log("lr", self.schedule.lr(self.trainer.global_step))
        return loss

    def _with_views(self, batch: Any, number: int) -> Batch:
        """The views of a batch of plain images, normalised as ImageNet's are where nothing else was said."""
        if self.image_batches is None:
            statistics = IMAGENET if self.standardize else ((0.0,) * 3, (1.0,) * 3)
            self.image_batches = ImageBatches(self.views(), *statistics, torch.initial_seed())
        return self.image_batches(batch, self.current_epoch, number, self.global_rank, self.needs_labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        self._steps = steps = training_steps(self.trainer, self.batch_size, self.optim.warmup_epochs)
        groups = self.parameter_groups()
        if self.optim.layer_decay is not None:
            groups = decayed_by_layer(self.backbone, groups, self.optim.layer_decay)
        optimizer = build_optimizer(self, self.optim, groups=groups)
        self._schedule = StepSchedule(self.optim, steps.images, self.total_steps, steps.per_epoch)
        self._schedule.apply(optimizer, self.trainer.global_step)
        return optimizer

    @property
    def steps(self) -> TrainingSteps:
        """What makes up a step and an epoch; known once training begins."""
        assert self._steps is not None
        return self._steps

    @property
    def schedule(self) -> StepSchedule:
        """Learning rate and weight decay of each step; known once training begins."""
        assert self._schedule is not None
        return self._schedule

    def configure_gradient_clipping(
        self, optimizer: torch.optim.Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        # Lightning calls this after unscaling (16-mixed) and once per optimiser step.
        if gradient_clip_val is not None:  # the Trainer's own, which whoever made it wants
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        parts: dict[Any, list[Tensor]] = {}  # whose gradients have a norm together: as a rule, all
        for group in optimizer.param_groups:
            parts.setdefault(group.get("part"), []).extend(group["params"])
        for parameters in parts.values():
            clip_gradients(parameters, self.optim.clip, self.optim.clip_per)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        step = self.trainer.global_step  # of the update that is about to happen
        self.schedule.apply(optimizer, step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for part in self.children():
            if isinstance(part, EMATeacher) and not part.moved_by_loss:
                part.update(step, self.total_steps)
