"""A copy of a backbone that learns from labels: the recipe, the network with its head, layer-wise rates.

The recipe is the published one of He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022
(https://arxiv.org/abs/2111.06377; https://github.com/facebookresearch/mae, FINETUNE.md), the same for every method.

Shapes: B images of a batch, 3 x s x s pixels, P prefix tokens, N patches, D features, K classes, L blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, final

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.stages import blocks, layers
from ssl_bench.optim.schedules import warmup_cosine
from ssl_bench.runtime.seeds import derive

# What `derive` is given besides the seed, so that no two things draw the same numbers.
HEAD, ORDER, CROP, MIX, STEP = range(5)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on labels; MAE's published numbers for ViT-B.

    Args:
        epochs: Passes over the images.
        warmup_epochs: Of them, with a rate that grows linearly from 0.
        batch_size: Images per step at most; a little fewer where that leaves fewer images out of an epoch.
        lr: For 256 images: multiplied by the images of a step / 256. A cosine takes it to `min_lr`, step by step.
        layer_decay: Factor on the rate per block, from the head down to the patch embedding; per stage in networks
            without patches.
        drop_path: Stochastic depth at the last block, growing linearly from 0.
        weight_decay: On tensors of two or more dimensions but tokens and positions.
        min_lr: Where the rate of the head ends; that of lower blocks ends lower by their factor.
        optimizer: adamw, or sgd with Nesterov's momentum.
        betas: Of adamw.
        momentum: Of sgd.
        clip: Largest gradient norm; None leaves gradients alone.
        mixup: Alpha of mixup; 0 for none.
        cutmix: Alpha of cutmix; 0 for none. Where both are on, half of the batches get each.
        smoothing: Part of each target that is spread over all classes.
        randaugment: timm's description of RandAugment; None for none.
        erase: Chance that a rectangle of an image becomes noise.
        scale: Part of an image's area that a random crop has; None to train on images as evaluations see them.
        flip: Chance that a crop is mirrored.
        precision: auto (bf16-mixed where the hardware has it), bf16-mixed or 32-true.
        seed: Of all that is random.
    """

    epochs: int = 100
    warmup_epochs: float = 5.0
    batch_size: int = 1024
    lr: float = 5e-4
    layer_decay: float = 0.65
    drop_path: float = 0.1
    weight_decay: float = 0.05
    min_lr: float = 1e-6
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    clip: float | None = None
    mixup: float = 0.8
    cutmix: float = 1.0
    smoothing: float = 0.1
    randaugment: str | None = "rand-m9-mstd0.5-inc1"
    erase: float = 0.25
    scale: tuple[float, float] | None = (0.08, 1.0)
    flip: float = 0.5
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size) < 1:
            raise ValueError(f"epochs {self.epochs} and batch_size {self.batch_size} must be at least 1")
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(f"warmup_epochs {self.warmup_epochs} must be below epochs {self.epochs}: lower it")
        if not self.lr > 0 or not 0 < self.layer_decay <= 1 or not 0 <= self.drop_path < 1:
            raise ValueError(
                f"lr {self.lr} must be above 0, layer_decay {self.layer_decay} in (0, 1], drop_path {self.drop_path} "
                "in [0, 1)"
            )
        if self.precision not in ("auto", "bf16-mixed", "32-true"):
            raise ValueError(f"precision {self.precision!r}: auto, bf16-mixed or 32-true")


@final
class FineTuneModel(nn.Module):
    """A backbone that learns, pooling, a norm where the pooling has none, and a linear head.

    avg: the mean patch before the final norm, through a fresh norm, as MAE, SimMIM and CAE are fine-tuned; the final
    norm is gone. A Swin's tokens are averaged after its norm, a ResNet's map is averaged (SimMIM, SimCLR).

    Args:
        backbone: To train; from `FeatureExtractor.trainable`, changed in place.
        classes: K.
        pooling: avg, or cls for the class token after the final norm; of ViTs.
        drop_path: Stochastic depth at the last block, growing linearly from 0, whatever the network was built with.
        seed: Of the head's first weights.
        first: A layer between the pooled features and the head that pretraining has trained on the primary features,
            which then are what is pooled.
        head_std: Deviation of the head's first weights (MAE's); biases are 0.

    Raises:
        UserError: The network has no class token to pool.
    """

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        pooling: Literal["avg", "cls"] = "avg",
        drop_path: float = 0.0,
        seed: int = 0,
        first: nn.Module | None = None,
        head_std: float = 2e-5,
    ) -> None:
        super().__init__()
        self.backbone, self.first = backbone, first
        set_drop_path(backbone, drop_path)
        width, device = backbone.dim, next(backbone.parameters()).device
        self.fc_norm: nn.Module = nn.Identity()
        if first is not None:
            self.feature_type = backbone.primary_feature_type
            with torch.no_grad():
                width = first.eval()(torch.zeros(1, width, device=device)).shape[1]
        elif not backbone.is_vit:
            self.feature_type = backbone.primary_feature_type
        elif pooling == "cls":
            if "cls" not in backbone.feature_types:
                raise UserError("this backbone has no class token: pooling must be avg")
            self.feature_type = "cls"
        else:
            self.feature_type = "avg_raw"
            backbone.model.norm = nn.Identity()
            self.fc_norm = nn.LayerNorm(width, eps=1e-6)
        with torch.random.fork_rng(devices=[]):  # which nn.Linear would otherwise draw from in vain
            self.head = nn.Linear(width, classes)
        generator = torch.Generator().manual_seed(derive(seed, HEAD))
        nn.init.trunc_normal_(self.head.weight, std=head_std, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.to(device).train()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, s, s) normalised images -> (B, K) logits."""
        return self._logits(self.backbone.features(images, (self.feature_type,))[self.feature_type])

    @property
    def pooling(self) -> str:
        """What was pooled: avg, cls or gap."""
        return self.feature_type.removesuffix("_raw")

    def classify(self, tokens: Tensor) -> Tensor:
        """(B, P + N, D) tokens that the last block gave, before any norm, or a ResNet's last map -> (B, K) logits."""
        network: Any = self.backbone.model
        if self.backbone.is_resnet:
            return self._logits(network.forward_head(tokens))
        assert not self.backbone.is_pooled, "it cannot go on from a state"
        if self.feature_type == "avg_raw":
            return self._logits(tokens[:, self.backbone.prefix :].mean(1))
        tokens = network.norm(tokens)
        return self._logits(tokens[:, 0] if self.feature_type == "cls" else tokens[:, self.backbone.prefix :].mean(1))

    def _logits(self, pooled: Tensor) -> Tensor:
        pooled = self.fc_norm(pooled)  # (B, D)
        logits: Tensor = self.head(pooled if self.first is None else self.first(pooled))
        return logits


def set_drop_path(backbone: Backbone, last: float) -> None:
    """Stochastic depth of each block: 0 at the first, growing linearly to ``last``; whatever there was goes.

    Blocks of a network that is known by its features are what timm gave a place for it.
    """
    names = ("drop_path", "drop_path1", "drop_path2", "drop_path3")
    every = blocks(backbone) if not backbone.is_pooled else _holders(backbone, names)
    for block, chance in zip(every, torch.linspace(0, last, len(every)).tolist(), strict=True):
        for module, name in [
            (m, n) for m in block.modules() for n in names if isinstance(getattr(m, n, None), nn.Module)
        ]:
            setattr(module, name, DropPath(chance) if chance > 0 else nn.Identity())


def _holders(backbone: Backbone, names: tuple[str, ...]) -> list[nn.Module]:
    """Modules that have a place for stochastic depth themselves, in the network's order."""
    return [m for m in backbone.modules() if any(isinstance(getattr(m, n, None), nn.Module) for n in names)]


class HasBackbone(Protocol):
    """A network with a backbone in it: what is not the backbone's is the head's."""

    backbone: Backbone

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """As those of a module."""


def layer_ids(model: HasBackbone) -> tuple[dict[str, int], int]:
    """Each parameter's layer, numbered as `ssl_bench.models.stages.layers` does, and the head's, the largest."""
    own, top = layers(model.backbone)
    return {name: own.get(name.removeprefix("backbone."), top) for name, _ in model.named_parameters()}, top


def groups(model: HasBackbone, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters by layer, with and without weight decay; `lr_scale` is the factor on their rate.

    No weight decay: tensors of fewer than two dimensions, tokens, positions, and a Swin's tables of relative ones.
    """
    ids, top = layer_ids(model)
    bare = {"cls_token", "reg_token", "pos_embed", "absolute_pos_embed"}
    bare |= {"relative_position_bias_table"} if model.backbone.is_swin else set()
    found: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = parameter.ndim > 1 and name.rpartition(".")[2] not in bare
            blank = {"params": [], "names": [], "decay": decay, "weight_decay": weight_decay if decay else 0.0}
            group = found.setdefault((ids[name], decay), blank | {"lr_scale": layer_decay ** (top - ids[name])})
            group["params"].append(parameter)
            group["names"].append(name)
    return list(found.values())


def optimizer(model: FineTuneModel, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's, over the model's trainable parameters; `set_rate` gives it its rates."""
    parameters = groups(model, recipe.layer_decay, recipe.weight_decay)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=0.0, momentum=recipe.momentum, nesterov=recipe.momentum > 0)
    return torch.optim.AdamW(parameters, lr=0.0, betas=recipe.betas, fused=True)


def rate(recipe: Recipe, step: int, steps_per_epoch: int, batch_size: int) -> float:
    """The head's learning rate at a step (MAE `util/lr_sched.py`, at the epoch step / steps_per_epoch)."""
    total, warmup = recipe.epochs * steps_per_epoch, recipe.warmup_epochs * steps_per_epoch
    return warmup_cosine(step, total, warmup, recipe.lr * batch_size / 256, recipe.min_lr)  # type: ignore[arg-type]


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The head's rate, times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def refused_pooling(backbone: FeatureExtractor, pooling: str) -> str | None:
    """Why a backbone cannot be pooled so; None if it can."""
    assert isinstance(backbone.network, Backbone)
    has_patches = backbone.network.is_vit or backbone.network.is_swin
    if pooling == "cls" and has_patches and "cls" not in backbone.feature_types:
        return "it has no class token to pool"
    return None
