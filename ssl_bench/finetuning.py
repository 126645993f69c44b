"""Training a copy of a backbone on labels: the network with a head, layer-wise rates, augmented batches, the loop.

The recipe is the published one of He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022
(https://arxiv.org/abs/2111.06377; https://github.com/facebookresearch/mae, FINETUNE.md), the same for every method.
RandAugment, random erasing, mixup and cutmix are timm's. A batch and what happens to it follow from (seed, epoch,
batch) alone, and the process's own random numbers are left where they were. Nothing is shared between processes:
those that torchrun started all do the same work and come to the same.

Shapes: B images of a batch, 3 x s x s pixels, P prefix tokens, N patches, D features, K classes, L blocks.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, final

import ssl_bench.torchvision_guard  # noqa: F401  before timm, which imports torchvision

# isort: split
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.layers.drop import DropPath
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_bench.augment.executors import CropInWorker
from ssl_bench.augment.geometry import crop_resize, draw_boxes
from ssl_bench.backbone import Backbone
from ssl_bench.data.decode import BrokenImage
from ssl_bench.data.geometry import see_batch, see_image
from ssl_bench.data.loaders import evaluation_batches
from ssl_bench.data.pool import Pool, ResidentPool
from ssl_bench.data.splits import SelectionSplit, Split, TrainSplit
from ssl_bench.errors import UserError
from ssl_bench.features import FrozenBackbone, full_precision, progress
from ssl_bench.optim import clip_gradients
from ssl_bench.randomness import derive
from ssl_bench.schedules import warmup_cosine
from ssl_bench.speed import effective_precision, write_out_attention
from ssl_bench.views import View

# What `derive` is given besides the seed, so that no two things draw the same numbers.
HEAD, ORDER, CROP, MIX, STEP = range(5)
POINTS = 20  # times at most that accuracy on the selection split is taken along the way


@dataclass(frozen=True)
class Recipe:
    """How a network is trained on labels; MAE's published numbers for ViT-B.

    Args:
        epochs: Passes over the images.
        warmup_epochs: Of them, with a rate that grows linearly from 0.
        batch_size: Images per step at most; a little fewer where that leaves fewer images out of an epoch.
        lr: For 256 images: multiplied by the images of a step / 256. A cosine takes it to `min_lr`, step by step.
        layer_decay: Factor on the rate per block, from the head down to the patch embedding; per stage in ResNets.
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


# --- the network


@final
class Tuned(nn.Module):
    """A backbone that learns, pooling, a norm where the pooling has none, and a linear head.

    avg: the mean patch before the final norm, through a fresh norm, as MAE, SimMIM and CAE are fine-tuned; the final
    norm is gone. A Swin's tokens are averaged after its norm, a ResNet's map is averaged (SimMIM, SimCLR).

    Args:
        backbone: To train; from `FrozenBackbone.trainable`, changed in place.
        classes: K.
        pooling: avg, or cls for the class token after the final norm; of ViTs.
        drop_path: Stochastic depth at the last block, growing linearly from 0, whatever the network was built with.
        seed: Of the head's first weights.
        first: A layer between the pooled features and the head that pretraining has trained on the headline kind of
            features, which then are what is pooled.
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
            self.kind = backbone.headline_kind
            with torch.no_grad():
                width = first.eval()(torch.zeros(1, width, device=device)).shape[1]
        elif not backbone.is_vit:
            self.kind = backbone.headline_kind
        elif pooling == "cls":
            if "cls" not in backbone.kinds:
                raise UserError("this backbone has no class token: pooling must be avg")
            self.kind = "cls"
        else:
            self.kind = "avg_raw"
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
        return self._logits(self.backbone.features(images, (self.kind,))[self.kind])

    @property
    def pooling(self) -> str:
        """What was pooled: avg, cls or gap."""
        return self.kind.removesuffix("_raw")

    def classify(self, tokens: Tensor) -> Tensor:
        """(B, P + N, D) tokens that the last block gave, before any norm, or a ResNet's last map -> (B, K) logits."""
        network: Any = self.backbone.model
        if self.backbone.is_resnet:
            return self._logits(network.forward_head(tokens))
        if self.kind == "avg_raw":
            return self._logits(tokens[:, self.backbone.prefix :].mean(1))
        tokens = network.norm(tokens)
        return self._logits(tokens[:, 0] if self.kind == "cls" else tokens[:, self.backbone.prefix :].mean(1))

    def _logits(self, pooled: Tensor) -> Tensor:
        pooled = self.fc_norm(pooled)  # (B, D)
        logits: Tensor = self.head(pooled if self.first is None else self.first(pooled))
        return logits


def blocks(backbone: Backbone) -> list[nn.Module]:
    """A network's residual blocks, the first first."""
    network: Any = backbone.model
    if backbone.is_swin:
        return [block for stage in network.layers for block in stage.blocks]
    if backbone.is_resnet:
        return [block for block in network.modules() if isinstance(block, BasicBlock | Bottleneck)]
    return list(network.blocks)


def set_drop_path(backbone: Backbone, last: float) -> None:
    """Stochastic depth of each block: 0 at the first, growing linearly to ``last``; whatever there was goes."""
    every = blocks(backbone)
    for block, chance in zip(every, torch.linspace(0, last, len(every)).tolist(), strict=True):
        places = [(m, n) for m in block.modules() for n in ("drop_path", "drop_path1", "drop_path2") if hasattr(m, n)]
        assert places, f"{type(block).__name__} has no place for stochastic depth"
        for module, name in places:
            setattr(module, name, DropPath(chance) if chance > 0 else nn.Identity())


# --- layer-wise rates


def layer_ids(model: Tuned) -> tuple[dict[str, int], int]:
    """Each parameter's layer, and the head's, which is the largest.

    0 is what makes tokens or the first map: patch embedding, positions, class token, a ResNet's stem. i is the i-th
    block, counted through a Swin's stages, whose merging of patches belongs to the block before it, or a ResNet's stage
    i. All else is the head's (MAE `util/lr_decay.py`, SimMIM `optimizer.py`).
    """
    backbone, network = model.backbone, cast(Any, model.backbone.model)
    top = (4 if backbone.is_resnet else len(blocks(backbone))) + 1
    depths = [len(stage.blocks) for stage in network.layers] if backbone.is_swin else []
    return {
        name: _layer(name.removeprefix("backbone.model."), top, depths) for name, _ in model.named_parameters()
    }, top


def _layer(name: str, top: int, depths: list[int]) -> int:
    part, *rest = name.split(".")
    if part in ("cls_token", "reg_token", "mask_token", "pos_embed", "absolute_pos_embed", "patch_embed", "norm_pre"):
        return 0
    if part == "blocks":
        return int(rest[0]) + 1
    if part == "layers":  # timm's stage begins with the merging that ends the stage before in the papers' code
        before = sum(depths[: int(rest[0])])
        return before + int(rest[2]) + 1 if rest[1] == "blocks" else before
    if part in ("conv1", "bn1"):
        return 0
    return int(part.removeprefix("layer")) if part.removeprefix("layer").isdigit() else top


def groups(model: Tuned, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
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


def optimizer(model: Tuned, recipe: Recipe) -> torch.optim.Optimizer:
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


# --- the images


class Batch(NamedTuple):
    """What a step learns from."""

    images: Tensor  # (B, 3, s, s) normalised, on the device
    targets: Tensor  # (B, K) float32 probabilities; all 0 for images without label


@final
class Batches:
    """Augmented training images, batch after batch: what (epoch, batch) gives follows from the seed and these two.

    Each epoch is a permutation of the images, cut into equal, even batches of at most the recipe's size; the few images
    that fill none are left out of that epoch.

    Args:
        split: The images.
        recipe: Augmentation, batch size, seed.
        classes: K.
        frozen: Normalises, and says where batches go and how many processes may prepare them.
        labelled: (N,) bool, which images have labels that may be used; all when not given.

    Raises:
        UserError: There are no images, or too few to mix.
    """

    def __init__(
        self,
        split: TrainSplit,
        recipe: Recipe,
        classes: int,
        frozen: FrozenBackbone,
        labelled: np.ndarray | None = None,
    ) -> None:
        if len(split) == 0:
            raise UserError("there are no training images to fine-tune on")
        self.recipe, self.classes, self.frozen = recipe, classes, frozen
        self.steps = -(-len(split) // recipe.batch_size)
        self.batch_size = len(split) // self.steps
        if recipe.mixup > 0 or recipe.cutmix > 0:
            self.batch_size -= self.batch_size % 2  # images are mixed in pairs
            if self.batch_size == 0:
                raise UserError("mixup and cutmix need two images per step at least: set both to 0")
        labels = torch.as_tensor(split.labels)
        if labelled is not None:
            labels = torch.where(torch.as_tensor(labelled), labels, -1)
        # Small images wait for no disk: on a processor other processes would only take the network's cores.
        workers = 0 if isinstance(split.pool, ResidentPool) and frozen.device.type == "cpu" else frozen.num_workers
        self._workers = min(workers, os.cpu_count() or 1)
        self._prepared = _Prepared(split, labels, recipe, frozen.img_size, frozen.mean, self.batch_size)
        self._keys = _Keys(self.steps)
        self._loader: DataLoader[tuple[Tensor, Tensor]] | None = None

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch."""
        if self._loader is None:
            self._loader = DataLoader(
                self._prepared,
                batch_size=None,
                sampler=self._keys,
                num_workers=self._workers,
                persistent_workers=self._workers > 0,
                pin_memory=self.frozen.device.type == "cuda",
                generator=torch.Generator(),  # its own: the global one stays as it is
            )
        self._keys.epoch = number
        for batch, (images, labels) in enumerate(self._loader):
            yield self.finish(images, labels, derive(self.recipe.seed, MIX, number, batch))

    def close(self) -> None:
        """End the processes that prepare batches, which otherwise live on between epochs."""
        self._loader = None

    def finish(self, images: Tensor, labels: Tensor, seed: int) -> Batch:
        """(B, 3, s, s) uint8 crops and (B,) labels, -1 for none -> normalised, erased, mixed."""
        recipe, device = self.recipe, self.frozen.device
        values = self.frozen.normalized(images.to(device, non_blocking=True).float() / 255)
        labels = labels.to(device, non_blocking=True)
        with drawing(seed, device):
            if recipe.erase > 0:
                values = RandomErasing(recipe.erase, mode="pixel", device=str(device))(values)  # type: ignore[no-untyped-call]
            if recipe.mixup > 0 or recipe.cutmix > 0:
                mix: Any = Mixup(  # type: ignore[no-untyped-call]
                    recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=self.classes
                )
                values, targets = mix(values, labels.clamp_min(0))
            else:
                targets = mixup_target(labels.clamp_min(0), self.classes, 1.0, recipe.smoothing)  # type: ignore[no-untyped-call]
        return Batch(values, targets * (labels >= 0)[:, None])


@final
class _Keys(Sampler[tuple[int, int]]):
    """The batches of an epoch, for workers that outlive epochs."""

    def __init__(self, steps: int) -> None:
        self.steps, self.epoch = steps, 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, batch) for batch in range(self.steps)])


@final
class _Prepared(Dataset[tuple[Tensor, Tensor]]):
    """(epoch, batch) -> (B, 3, s, s) uint8 images, cropped, mirrored and changed by RandAugment, and (B,) labels."""

    def __init__(
        self, split: Split, labels: Tensor, recipe: Recipe, size: int, mean: tuple[float, ...], batch_size: int
    ) -> None:
        self.pool, self.rows, self.labels = split.pool, torch.as_tensor(split.rows), labels
        self.recipe, self.size, self.batch_size = recipe, size, batch_size
        self.augment: Callable[[Image.Image], Image.Image] | None = None
        if recipe.randaugment is not None:
            fill = tuple(min(255, round(255 * value)) for value in mean)
            hparams = {"translate_const": int(size * 0.45), "img_mean": fill}
            try:
                augment: Any = rand_augment_transform(
                    recipe.randaugment, hparams | {"interpolation": Image.Resampling.BICUBIC}
                )
            except (AssertionError, ValueError, KeyError) as error:
                raise UserError(f"randaugment {recipe.randaugment!r} is none of timm's ({error})") from None
            for op in augment.ops:
                op.aug_fn = posterize if op.aug_fn is timm_posterize else op.aug_fn
            self.augment = augment

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, batch = key
        order = torch.Generator().manual_seed(derive(self.recipe.seed, ORDER, epoch))
        places = torch.randperm(len(self.rows), generator=order)[batch * self.batch_size :][: self.batch_size]
        cut = self._resident if isinstance(self.pool, ResidentPool) else self._photographs
        with drawing(derive(self.recipe.seed, CROP, epoch, batch)):
            return cut(self.pool, self.rows[places]), self.labels[places]

    def _resident(self, pool: Pool, rows: Tensor) -> Tensor:
        assert isinstance(pool, ResidentPool)
        images, recipe = pool.images[rows], self.recipe
        if recipe.scale is None:
            values = see_batch(images, self.size)
        else:
            generator = torch.default_generator
            height, width = images.shape[2:]
            boxes = draw_boxes(len(rows), height, width, recipe.scale, View(self.size).ratio, generator)
            flip = torch.rand(len(rows)) < recipe.flip
            values = crop_resize(images, boxes, self.size, "bicubic", flip)
        pixels = values.mul(255).round_().to(torch.uint8)
        if self.augment is None:
            return pixels.contiguous()
        return _tensor([self.augment(Image.fromarray(p)) for p in pixels.permute(0, 2, 3, 1).contiguous().numpy()])

    def _photographs(self, pool: Pool, rows: Tensor) -> Tensor:
        return _tensor([self._photograph(pool, row) for row in rows.tolist()])

    def _photograph(self, pool: Pool, row: int) -> Image.Image:
        try:
            image = pool.image(row)
        except BrokenImage:
            raise UserError(
                f"broken image {pool.ids[row]}: evaluations need every image, so mend or remove it"
            ) from None
        if self.recipe.scale is None:
            pixels = see_image(image, self.size)
        else:
            view = View(self.size, scale=self.recipe.scale, interpolation="bicubic", flip=self.recipe.flip)
            pixels = CropInWorker([view])(image, torch.default_generator)[0]
        cropped = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        return cropped if self.augment is None else self.augment(cropped)


def posterize(image: Image.Image, bits: int, **given: Any) -> Image.Image:
    """timm's, which asks for 0 bits at full strength: black, as it was until Pillow 13 refused it."""
    if bits < 1:
        return Image.new(image.mode, image.size)
    posterized: Image.Image = timm_posterize(image, bits, **given)  # type: ignore[no-untyped-call]
    return posterized


def _tensor(images: list[Image.Image]) -> Tensor:
    """B images -> (B, 3, s, s) uint8."""
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()


@contextmanager
def drawing(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Python's, NumPy's and torch's random numbers follow from the seed inside, and go on as before afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # milliseconds less than torch's function where CUDA lies asleep
        if device is not None and device.type != "cpu":
            torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def refused_pooling(backbone: FrozenBackbone, pooling: str) -> str | None:
    """Why a backbone cannot be pooled so; None if it can."""
    assert isinstance(backbone.network, Backbone)
    if pooling == "cls" and not backbone.network.is_resnet and "cls" not in backbone.kinds:
        return "it has no class token to pool"
    return None


# --- the loop

SELECTION = "selection accuracy"


class Diverged(UserError):
    """Training came to a loss that is no number: the rate was too high."""


Loss = Callable[[Tensor, Batch], Tensor]  # of (B, K) float32 logits


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Of soft targets, the mean over the images that have one."""
    labelled = (batch.targets > 0).any(1).sum().clamp_min(1)
    return -(batch.targets * F.log_softmax(logits, 1)).sum() / labelled


def mixed(recipe: Recipe, device: torch.device) -> bool:
    """Whether the recipe's forward passes are in bf16 here."""
    return effective_precision(recipe.precision, device.type) == "bf16-mixed"


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """The recipe's number format."""
    return torch.autocast(device.type, torch.bfloat16) if mixed(recipe, device) else nullcontext()


def tune(
    model: Tuned,
    batches: Batches,
    recipe: Recipe,
    selection: SelectionSplit | None = None,
    loss: Loss = cross_entropy,
    what: str = "fine-tuning",
) -> dict[str, list[float]]:
    """Train a model in place; it is left in eval mode, as after the last epoch.

    Args:
        model: To train.
        batches: What it learns from.
        recipe: How.
        selection: Images on which accuracy is taken after some epochs, the last among them; none when not given.
        loss: To minimise.
        what: The progress bar says.

    Returns:
        epoch, training loss and, given a selection split, selection accuracy: the series that were taken.

    Raises:
        Diverged: The loss is not a number.
    """
    frozen, device = batches.frozen, batches.frozen.device
    if mixed(recipe, device) and device.type == "cpu":
        write_out_attention(model)
    optim = optimizer(model, recipe)
    trained = [p for group in optim.param_groups for p in group["params"]]
    watched = {round(recipe.epochs * point / POINTS) for point in range(1, POINTS + 1)} | {recipe.epochs}
    curve: dict[str, list[float]] = {
        name: [] for name in ("epoch", "loss", *([] if selection is None else [SELECTION]))
    }
    with full_precision(), closing(batches), progress(what, recipe.epochs * batches.steps, "steps") as bar:
        for epoch in range(recipe.epochs):
            model.train()
            total = torch.zeros((), device=device)
            for number, batch in enumerate(batches.epoch(epoch)):
                step = epoch * batches.steps + number
                set_rate(optim, rate(recipe, step, batches.steps, batches.batch_size))
                with drawing(derive(recipe.seed, STEP, step), device):
                    with autocast(recipe, device):
                        logits = model(batch.images)
                    value = loss(logits.float(), batch)
                    optim.zero_grad()
                    torch.autograd.backward(value)
                clip_gradients(trained, recipe.clip, "model")
                optim.step()
                total += value.detach()
                bar.update()
            if epoch + 1 in watched:
                mean = float(total) / batches.steps
                if not np.isfinite(mean):
                    raise Diverged(f"{what} diverged by epoch {epoch + 1}: give a smaller lr than {recipe.lr}")
                curve["epoch"].append(epoch + 1.0)
                curve["loss"].append(mean)
                if selection is not None:
                    curve[SELECTION].append(accuracy(logits_of(model, frozen, selection), selection))
    optim.zero_grad()  # gradients would be kept as long as the model is
    model.eval()
    return curve


def logits_of(model: nn.Module, frozen: FrozenBackbone, split: Split) -> Tensor:
    """(N, K) float32 logits of a split's images, in its order, on the processor: eval mode, full precision.

    An image's logits do not depend on which others there are.
    """
    training = model.training
    model.eval()
    batches = evaluation_batches(split, frozen.img_size, frozen.batch_size, frozen.num_workers)
    with torch.inference_mode(), full_precision():
        found = [model(frozen.normalized(images)).float().cpu() for images, _ in batches]
    model.train(training)
    return torch.cat(found)


def accuracy(logits: Tensor, split: Split) -> float:
    """Share of a split's images whose largest of (N, K) logits is their class's."""
    return float((logits.argmax(1) == torch.as_tensor(split.labels)).double().mean())


def mean_loss(logits: Tensor, split: Split) -> float:
    """Cross entropy of (N, K) logits; images of a class that no training image had are left out."""
    labels = torch.as_tensor(split.labels)
    known = labels < logits.shape[1]
    return float(F.cross_entropy(logits[known].double(), labels[known]))
