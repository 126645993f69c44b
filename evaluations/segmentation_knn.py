"""Segmentation without training: each patch is of the classes that its nearest labelled patches have.

Retrieval from a bank of patches as in Balazevic et al., "Towards In-Context Scene Understanding", NeurIPS 2023
(https://arxiv.org/abs/2306.01667): patches of training images with the part that each class has of their pixels;
for a patch of a test image the k = 30 nearest by cosine similarity s, weighted exp(s / 0.02); the weighted mean of
their parts is brought to the image's size by bilinear interpolation, and the largest wins. k, the temperature and the
size of the bank were fixed beforehand, so nothing is chosen and the bank takes patches of the validation images too.

Ours, and why:
- The search is exact (`ssl_bench/evaluation/solvers/knn_search.py`), where theirs is approximate.
- Where there are more patches than `bank_size`, a random draw of them is the bank, the same for every network with as
  many patches. They draw patches of rare classes more often.

Shapes: N images, T patches of the test images, M in the bank, D features, K classes, G x F patches of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config.constraints import PositiveFloat, PositiveInt, Seed
from ssl_bench.data.masks import IGNORE, Mask
from ssl_bench.data.splits import LabelledSplit, TestImages, TrainSplit, ValidationSplit
from ssl_bench.data.whole_images import cell_shares
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.patch_features import PatchFeatures, patch_features, why_no_places
from ssl_bench.evaluation.segmentations import Segmentations
from ssl_bench.evaluation.solvers.knn_search import neighbours
from ssl_bench.runtime.seeds import derive

AT_ONCE = 2**25  # float32 values of patches at a time: 128 MiB


@dataclass(frozen=True)
class Bank:
    """Labelled patches.

    Args:
        parts: Features of the splits they are from.
        rows: Which of each split's patches.
        shares: (M, K) uint8, the part of each class in 255ths.
    """

    parts: list[PatchFeatures]
    rows: list["np.ndarray"]
    shares: Tensor

    def chunks(self) -> Iterator[Tensor]:
        """(<= n, D) vectors of length 1 at a time."""
        for features, rows in zip(self.parts, self.rows, strict=True):
            count = max(1, AT_ONCE // features.dim)
            for at in range(0, len(rows), count):
                yield F.normalize(features.rows(rows[at : at + count]), dim=1)


@final
class SegmentationKnn(Evaluation[Bank]):
    """Weighted k-NN of patches: mean IoU, frequency-weighted IoU, pixel accuracy.

    Args:
        k: Neighbours.
        temperature: Of the weights exp(s / T).
        bank_size: Patches, at most.
        short_side: Pixels that images' short side is brought to; a small image's own size, or the network's, when not
            given.
        seed: Of the draw of patches.
    """

    metric: ClassVar[str] = "mIoU"
    needs: ClassVar[Literal["classes", "masks"]] = "masks"

    def __init__(
        self,
        k: PositiveInt = 30,
        temperature: PositiveFloat = 0.02,
        bank_size: PositiveInt = 1_000_000,
        short_side: PositiveInt | None = None,
        seed: Seed = 0,
    ) -> None:
        self.k = k
        self.temperature = temperature
        self.bank_size = bank_size
        self.short_side = short_side
        self.seed = seed

    def refusal(self, backbone: FeatureExtractor) -> str | None:
        return why_no_places(backbone)

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Bank]:
        splits: list[LabelledSplit] = [split for split in (train, validation) if len(split)]
        parts = [patch_features(backbone, split, 1, self.short_side) for split in splits]
        classes = class_count(splits)
        shares, known = zip(*(labelled_patches(s, f, classes) for s, f in zip(splits, parts, strict=True)), strict=True)
        everyone = np.flatnonzero(np.concatenate(known))
        if not len(everyone):
            raise UserError("every pixel of the training images is of no class")
        if len(everyone) > self.bank_size:
            order = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(derive(self.seed)))
            everyone = np.sort(everyone[order[: self.bank_size].numpy()])
        ends = np.cumsum([0, *map(len, known)])
        rows = [everyone[(everyone >= a) & (everyone < b)] - a for a, b in zip(ends, ends[1:], strict=False)]
        chosen = torch.cat([own[torch.as_tensor(some)] for own, some in zip(shares, rows, strict=True)])
        return Fit(Bank(parts, rows, chosen))

    def predict(self, backbone: FeatureExtractor, fit: Fit[Bank], test: TestImages) -> Segmentations:
        features = patch_features(backbone, test, 1, self.short_side)
        count = max(1, AT_ONCE // features.dim)

        def queries() -> Iterator[Tensor]:
            return (F.normalize(part, dim=1) for part in features.chunks(count))

        similarity, row = neighbours(queries, fit.state.chunks(), self.k)  # (T, k) each
        fit.diagnostics["patches in the bank"] = float(len(fit.state.shares))
        fit.diagnostics["mean cosine of the nearest"] = float(similarity[:, 0].mean())
        starts = features.starts

        def mask(place: int) -> Mask:
            own = slice(int(starts[place]), int(starts[place + 1]))
            found = voted(similarity[own], row[own].cpu(), fit.state.shares, self.temperature)
            return upsampled(found.view(*features.grids[place].tolist(), -1), features.sizes[place].tolist())

        return Segmentations(fit.state.shares.shape[1], mask)


def class_count(splits: Sequence[LabelledSplit]) -> int:
    """K: one more than the largest class in the masks."""
    largest = -1
    for split in splits:
        for place in range(len(split)):
            mask = split.mask(place)
            known = mask[mask != IGNORE]
            largest = max(largest, int(known.max()) if len(known) else -1)
    if largest < 0:
        raise UserError("every pixel of the training images is of no class")
    return largest + 1


def labelled_patches(split: LabelledSplit, features: PatchFeatures, classes: int) -> tuple[Tensor, "np.ndarray"]:
    """Of a split's patches, (T, K) uint8 the part that each class has of their pixels, and (T,) whether any has."""
    shares, known = [], []
    for place in range(len(split)):
        rows, columns = features.grids[place].tolist()
        share, total = cell_shares(torch.as_tensor(np.array(split.mask(place))), rows, columns, classes)
        shares.append((255 * share).round().to(torch.uint8).flatten(0, 1))
        known.append((total > 0).flatten().numpy())
    return torch.cat(shares), np.concatenate(known)


def voted(similarity: Tensor, row: Tensor, shares: Tensor, temperature: float) -> Tensor:
    """(T, K) mean of the parts of (T, k) neighbours, weighted exp(s / T)."""
    weight = (similarity.double().cpu() / temperature).softmax(1).float()  # (T, k)
    return torch.einsum("tk,tkc->tc", weight, shares[row].float() / 255)


def upsampled(scores: Tensor, size: Sequence[int]) -> Mask:
    """(G, F, K) scores of patches -> (H, W) the class with the largest, bilinear between patches."""
    high, wide = size
    found = F.interpolate(scores.permute(2, 0, 1)[None], (high, wide), mode="bilinear", align_corners=False)
    mask: Mask = found[0].argmax(0).to(torch.uint8).cpu().numpy()
    return mask
