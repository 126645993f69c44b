"""Bytes that a step keeps between forward and backward pass, as a function of the images of a batch.

Shapes: B images of a batch on a device.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ssl_bench.data.batch import Batch

DRAWS = 4  # of what a loss hides at random, over which the mean is taken


@dataclass(frozen=True)
class ActivationMemory:
    """What a batch of B images keeps: fixed + per_image x B + per_pair x B^2.

    Args:
        fixed: Bytes, whatever the batch: weights in half precision, say.
        per_image: Bytes of each image: views and activations.
        per_pair: Bytes of each pair of images: similarities of a contrastive loss.
    """

    fixed: float
    per_image: float
    per_pair: float

    def of(self, images: int) -> float:
        """Bytes of a batch."""
        return self.fixed + self.per_image * images + self.per_pair * images**2

    def most_images(self, memory: float) -> int:
        """Of a batch that keeps at most so many bytes; 0 if not even one image fits."""
        free = memory - self.fixed
        if free <= 0 or self.per_image <= 0:
            return 0
        if self.per_pair == 0:
            return int(free / self.per_image)
        root = math.sqrt(self.per_image**2 + 4 * self.per_pair * free)
        return int(2 * free / (self.per_image + root))


def kept_bytes(loss: Callable[[], Tensor], held: Iterable[Tensor], views: Sequence[Tensor]) -> list[int]:
    """Bytes of each tensor that a loss keeps for its backward pass, in the order in which it saves them.

    Args:
        loss: Computes it.
        held: Tensors that are there anyway, such as weights; they do not count.
        views: Do count, saved or not: they stay until the step is over.
    """
    known = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            known.add(storage.data_ptr())
            kept.append(storage.nbytes())
        return tensor  # which stays alive with the graph, and so does its address

    for view in views:
        count(view)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        graph = loss()
    del graph
    return kept


def mean_bytes(draws: Sequence[Sequence[int]]) -> list[float]:
    """Of each tensor over several draws of what is hidden; of their sum where draws have other tensors."""
    same = len({len(draw) for draw in draws}) == 1
    columns: Iterable[Sequence[int]] = zip(*draws, strict=True) if same else [[sum(draw) for draw in draws]]
    return [sum(column) / len(draws) for column in columns]


def fitted(few: Sequence[float], many: Sequence[float], images: tuple[int, int]) -> ActivationMemory:
    """What the bytes of each tensor at two numbers of images say of any number.

    A tensor that does not grow is fixed, one that doubles with the images is of each image, and one that grows fourfold
    is of pairs. What is drawn at random, such as how much is hidden, makes the second kind grow by more or less. Where
    all images of a batch show as few patches as the one that shows fewest (I-JEPA), large batches keep less than this.

    Args:
        few: Bytes of each tensor at the smaller number.
        many: Likewise at the larger one.
        images: Both numbers.
    """
    less, more = images
    if len(few) != len(many):  # other tensors in other batches: only their sums can be compared
        few, many = [sum(few)], [sum(many)]
    fixed = per_image = per_pair = 0.0
    for low, high in zip(few, many, strict=True):
        if low == high:
            fixed += high
        elif high < low * (more / less) ** 1.6:
            per_image += high / more
        else:  # a b^2 + c b, as of the pairs of different images
            pair = (high / more - low / less) / (more - less)
            per_pair += pair
            per_image += high / more - pair * more
    return ActivationMemory(fixed, per_image, per_pair)


@final
class KeptForBackward(pl.Callback):
    """Looks at the first batch of a training: what its loss keeps at two numbers of images.

    Args:
        fewest: Images that the loss needs.
    """

    def __init__(self, fewest: int) -> None:
        self.fewest = fewest
        self.memory = ActivationMemory(0.0, 0.0, 0.0)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Batch, batch_idx: int) -> None:
        if batch_idx > 0:
            return
        most = len(batch.index)
        sizes = (max(self.fewest, most // 2), most)
        draws = [[self._of(trainer, module, batch, size) for _ in range(DRAWS)] for size in sizes]
        few, many = (mean_bytes(of_size) for of_size in draws)
        self.memory = fitted(few, many, sizes) if sizes[0] < most else ActivationMemory(0.0, sum(many) / most, 0.0)

    def _of(self, trainer: pl.Trainer, method: nn.Module, batch: Batch, images: int) -> list[int]:
        views = [view[:images].clone() for view in batch.views]
        labels = {"labels": batch.labels[:images]} if batch.labels is not None else {}
        step: Any = method
        with trainer.precision_plugin.train_step_context():
            held = [*method.parameters(), *method.buffers()]
            return kept_bytes(lambda: step.loss(views, **labels), held, views)
