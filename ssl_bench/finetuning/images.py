"""The augmented batches that fine-tuning learns from.

RandAugment, random erasing, mixup and cutmix are timm's. A batch and what happens to it follow from (seed, epoch,
batch) alone, and the process's own random numbers are left where they were.

Shapes: B images of a batch, 3 x s x s pixels, K classes.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, final

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import posterize as timm_posterize
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ssl_bench.augment.executors import CropInWorker
from ssl_bench.augment.geometry import crop_resize, draw_boxes
from ssl_bench.augment.views import View
from ssl_bench.data.decode import BrokenImage
from ssl_bench.data.files.left_out import UnreadableImage
from ssl_bench.data.geometry import see_batch, see_image
from ssl_bench.data.pool import Pool, ResidentPool
from ssl_bench.data.splits import Split, TrainSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.finetuning.model import CROP, MIX, ORDER, Recipe
from ssl_bench.runtime.seeds import derive


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
        frozen: FeatureExtractor,
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
        """(B, C, s, s) crops from 0 to 255 and (B,) labels, -1 for none -> normalised, erased, mixed."""
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
        if recipe.randaugment is not None and split.pool.channels == 3:  # its operations are of colours
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
        indices = torch.randperm(len(self.rows), generator=order)[batch * self.batch_size :][: self.batch_size]
        cut = self._resident if isinstance(self.pool, ResidentPool) else self._photographs
        with drawing(derive(self.recipe.seed, CROP, epoch, batch)):
            return cut(self.pool, self.rows[indices]), self.labels[indices]

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
        pixels = values.mul(255)
        if images.dtype == torch.uint8:
            pixels = pixels.round_().to(torch.uint8)
        if self.augment is None:
            return pixels.contiguous()
        return _tensor([self.augment(Image.fromarray(p)) for p in pixels.permute(0, 2, 3, 1).contiguous().numpy()])

    def _photographs(self, pool: Pool, rows: Tensor) -> Tensor:
        return torch.stack([self._photograph(pool, row) for row in rows.tolist()])

    def _photograph(self, pool: Pool, row: int) -> Tensor:
        """(C, s, s), of the kind that the pool's images are."""
        try:
            image = pool.image(row)
        except BrokenImage as error:
            raise UnreadableImage.of(pool.ids[row], str(error)) from None
        if self.recipe.scale is None:
            pixels = see_image(image, self.size)
        else:
            view = View(self.size, scale=self.recipe.scale, interpolation="bicubic", flip=self.recipe.flip)
            pixels = CropInWorker([view])(image, torch.default_generator)[0]
        if self.augment is None:
            return pixels
        return _tensor([self.augment(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))])[0]


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
