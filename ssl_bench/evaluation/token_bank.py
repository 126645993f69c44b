"""Tokens of a split's images, kept as half-precision numbers in memory: what heads that attend to tokens learn from.

Shapes: N images of a split, B of a batch, M asked for, T tokens, D features.
"""

import dataclasses
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from ssl_bench.data.evaluation_batches import augmented_batches, evaluation_batches
from ssl_bench.data.splits import Split
from ssl_bench.evaluation.cost import Cost, progress, split_name
from ssl_bench.evaluation.feature_extractor import FeatureExtractor, crops


@final
class TokenBank:
    """Tokens of images, rounded to float16, and kept in memory as far as they fit; never on disk.

    Each token has a scale of its own, a power of two, so that neither large nor tiny ones leave float16's range.

    Args:
        backbone: Whose tokens.
        memory: Bytes that may be kept.
        unit: What tokens are divided by.
    """

    def __init__(self, backbone: FeatureExtractor, memory: int, unit: float = 1.0) -> None:
        self.backbone, self.memory, self.unit = backbone, memory, unit
        self._kept: dict[tuple[str, int | None], tuple[Tensor, Tensor]] = {}

    def batches(
        self, split: Split, view: int | None, order: Tensor, batch_size: int, again: bool = False
    ) -> Iterator[Tensor]:
        """(B, T, D) float32 tokens, batch after batch.

        Args:
            split: The images.
            view: Number of the random crop of each; None for the images as they are.
            order: (M,) indices in the split.
            batch_size: B; the last batch may be smaller.
            again: Whether they will be asked for again: they are kept then, if they fit.
        """
        key = split_name(split), view
        if again and key not in self._kept:
            self._keep(split, view)
        if key in self._kept:
            halves, scales = self._kept[key]
            for indices in order.to(self.backbone.device).split(batch_size):
                yield self._restored(halves[indices], scales[indices])
            return
        for part in self._rounded(split, view, order, batch_size):
            yield self._restored(*part)

    def _restored(self, halves: Tensor, scales: Tensor) -> Tensor:
        return halves.float().mul_(scales / self.unit)

    def _rounded(
        self, split: Split, view: int | None, order: Tensor, batch_size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, T, D) float16 and (B, T, 1) float32, whose product the tokens are."""
        part = dataclasses.replace(split, rows=split.rows[order.numpy()])
        size, workers = self.backbone.img_size, self.backbone.num_workers
        if view is None:
            found = evaluation_batches(part, size, batch_size, workers)
        else:
            found = augmented_batches(part, crops(size), view, batch_size, workers)
        for images, _ in found:
            cost = Cost(len(images), len(images) * self.backbone.flops_per_image)
            self.backbone.used["tokens"] = self.backbone.used.get("tokens", Cost()) + cost
            pieces = [rounded(self.backbone.tokens(some)) for some in images.split(self.backbone.batch_size)]
            yield torch.cat([halves for halves, _ in pieces]), torch.cat([scales for _, scales in pieces])

    def _keep(self, split: Split, view: int | None) -> None:
        """All of a split's, unless they do not fit."""
        size = self.backbone.img_size
        _, count, dim = self.backbone.tokens(torch.zeros(1, self.backbone.channels, size, size)).shape
        needed = len(split) * count * (2 * dim + 4)
        if needed > self.memory:
            return
        self.memory -= needed
        halves = torch.empty(len(split), count, dim, dtype=torch.float16, device=self.backbone.device)
        scales = torch.empty(len(split), count, 1, device=self.backbone.device)
        at, batch_size = 0, self.backbone.batch_size
        with progress(f"tokens of the {split_name(split)} images", len(split)) as bar:
            for some, scale in self._rounded(split, view, torch.arange(len(split)), batch_size):
                halves[at : at + len(some)], scales[at : at + len(some)] = some, scale
                at += len(some)
                bar.update(len(some))
        self._kept[split_name(split), view] = halves, scales


def rounded(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, D) -> (B, T, D) float16 within [-1, 1] and the (B, T, 1) powers of two that it is multiplied by."""
    exponent = tokens.abs().amax(2, keepdim=True).frexp().exponent.clamp(-126, 127)
    scale = torch.ldexp(torch.ones_like(exponent, dtype=tokens.dtype), exponent)
    return (tokens / scale).half(), scale
