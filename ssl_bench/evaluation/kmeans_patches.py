"""The baseline that learns without labels and without depth: k-means on whitened patches.

Coates, Ng and Lee, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", AISTATS 2011
(https://proceedings.mlr.press/v15/coates11a.html): patches of 6 x 6 pixels at every place, each normalised and
whitened; how much nearer than usual each centroid is; summed over the four quadrants; standardised. The paper has up to
4,000 centroids, here there are 256, learned in seconds. A pretrained network that is not above it has not paid.

Shapes: B images of 3 x s x s pixels, P patches of d values, K centroids, n x n places of a patch in an image.
"""

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.data.decode import BrokenImage
from ssl_bench.data.geometry import see_batch, see_image
from ssl_bench.data.pool import Pool, ResidentPool
from ssl_bench.errors import UserError
from ssl_bench.runtime.precision import full_precision

CENTROIDS = 256
PATCH = 6  # pixels of a side
IMAGES = 2000  # that patches are drawn from
PATCHES = 100_000
ITERATIONS = 20
CONTRAST = 10 / 255**2  # added to a patch's variance, of pixels in [0, 1]
WHITENING = 0.1  # added to the variance along each principal axis
SPREAD = 0.01  # added to the variance of a feature
AT_ONCE = 8192  # patches, whose distances stay in a processor's cache


@final
class KMeansPatches(nn.Module):
    """How near the patches of an image's quadrants are to each of K centroids.

    Args:
        image_size: Pixels of the data's images, of which 32 at most are looked at.
        mean: Of each channel, as images are normalised before they arrive.
        std: Likewise.
        pool: Training images; their labels are not looked at.
        seed: Of the images, the patches and the first centroids.

    Raises:
        UserError: No image can be decoded.
    """

    baseline = "k-means patches"
    is_resnet = False
    feature_types = ("kmeans",)
    primary_feature_type = "kmeans"

    mean: Tensor  # (C, 1, 1)
    std: Tensor
    patch_mean: Tensor  # (d,)
    whitening: Tensor  # (d, d)
    centroids: Tensor  # (K, d)
    feature_mean: Tensor  # (4K,)
    feature_std: Tensor

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float], pool: Pool, seed: int) -> None:
        super().__init__()
        self.img_size, self.seed = min(image_size, 32), seed
        self.patch, self.channels = min(PATCH, self.img_size), len(mean)
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        with torch.no_grad(), full_precision():
            self._learn(some_images(pool, self.img_size, seed), torch.Generator().manual_seed(seed))
        self.dim = 4 * len(self.centroids)

    def _learn(self, images: Tensor, generator: torch.Generator) -> None:
        """Whitening, centroids, and what standardises features, from (B, 3, s, s) images in [0, 1]."""
        drawn = some_patches(images, self.patch, generator)  # (P, d)
        patch_mean, whitening = zca(drawn)
        self.register_buffer("patch_mean", patch_mean)
        self.register_buffer("whitening", whitening)
        self.register_buffer("centroids", kmeans((drawn - patch_mean) @ whitening, CENTROIDS, ITERATIONS, generator))
        pooled = self._pooled(images)
        variance, feature_mean = torch.var_mean(pooled, dim=0, correction=0)
        self.register_buffer("feature_mean", feature_mean)
        self.register_buffer("feature_std", (variance + SPREAD).sqrt())

    @property
    def spec(self) -> dict[str, Any]:
        """What builds this again, plain types only."""
        args = {"image_size": self.img_size, "patch": self.patch, "centroids": len(self.centroids), "seed": self.seed}
        return {"architecture": "kmeans-patches", "args": args}

    def features(self, images: Tensor, feature_types: Sequence[str]) -> dict[str, Tensor]:
        """(B, 3, s, s) normalised images -> (B, 4K)."""
        pooled = (self._pooled(images * self.std + self.mean) - self.feature_mean) / self.feature_std
        return {feature_type: {"kmeans": pooled}[feature_type] for feature_type in feature_types}

    def token_grid(self, images: Tensor) -> Tensor:
        """(B, 3, s, s) -> (B, 4, K), a token for each quadrant."""
        features = self.features(images, self.feature_types)["kmeans"]
        return features.view(len(images), 4, -1)

    def _pooled(self, images: Tensor) -> Tensor:
        """(B, 3, s, s) in [0, 1] -> (B, 4K), sums over quadrants of max(0, mean distance - distance)."""
        places = self.img_size - self.patch + 1  # n
        if len(images) * places**2 > AT_ONCE and len(images) > 1:
            return torch.cat([self._pooled(part) for part in images.split(max(1, AT_ONCE // places**2))])
        patches = normalised(F.unfold(images, self.patch).transpose(1, 2))  # (B, nn, d)
        white = (patches - self.patch_mean) @ self.whitening
        away = distances(white.flatten(0, 1), self.centroids)  # (Bnn, K)
        nearness = (away.mean(1, keepdim=True) - away).relu().view(len(images), places, places, -1)
        half = (places + 1) // 2
        halves = slice(None, half), slice(half, None)
        return torch.cat([nearness[:, rows, columns].sum((1, 2)) for rows in halves for columns in halves], dim=1)


def some_images(pool: Pool, size: int, seed: int) -> Tensor:
    """(B, 3, s, s) in [0, 1]: at most IMAGES of a pool, as evaluations see them; what cannot be decoded is left out."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(pool))[:IMAGES])
    if isinstance(pool, ResidentPool):
        return see_batch(pool.images[torch.as_tensor(rows)], size)
    found = []
    for row in rows:
        try:
            found.append(see_image(pool.image(int(row)), size))
        except BrokenImage:
            continue  # named when its features are asked for
    if not found:
        raise UserError("kmeans-patches: none of the training images can be decoded")
    return torch.stack(found).float() / 255


def some_patches(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """(P, d) normalised patches at random places of (B, 3, s, s) images, as many in each."""
    places = images.shape[-1] - side + 1
    each = min(places**2, -(-PATCHES // len(images)))
    found = []
    for part in images.split(64):
        patches = F.unfold(part, side).transpose(1, 2)  # (b, nn, d)
        chosen = torch.rand(patches.shape[:2], generator=generator).argsort(1)[:, :each, None]
        found.append(patches.take_along_dim(chosen, 1).flatten(0, 1))
    return normalised(torch.cat(found))


def normalised(patches: Tensor) -> Tensor:
    """(..., d) without their mean, divided by their deviation: brightness and contrast are gone."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + CONTRAST).sqrt()


def zca(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) of (P, d) patches, and the symmetric (d, d) matrix that makes them white."""
    mean = patches.double().mean(0)
    centred = patches.double() - mean
    values, axes = torch.linalg.eigh(centred.T @ centred / len(patches))
    white = axes @ torch.diag((values.clamp(min=0) + WHITENING).rsqrt()) @ axes.T
    return mean.float(), white.float()


def kmeans(points: Tensor, count: int, iterations: int, generator: torch.Generator) -> Tensor:
    """(K, d) centroids of (P, d) points after Lloyd's iterations from K of the points; an empty one stays."""
    centroids = points[torch.randperm(len(points), generator=generator)[:count]].clone()
    for _ in range(iterations):
        nearest = torch.cat([distances(part, centroids).argmin(1) for part in points.split(AT_ONCE)])
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        sizes = nearest.bincount(minlength=len(centroids))[:, None]
        centroids = torch.where(sizes > 0, sums / sizes.clamp(min=1), centroids)
    return centroids


def distances(points: Tensor, centroids: Tensor) -> Tensor:
    """(P, d), (K, d) -> (P, K) Euclidean."""
    squares = points.square().sum(1, keepdim=True) + centroids.square().sum(1)
    return torch.addmm(squares, points, centroids.T, alpha=-2).clamp_(min=0).sqrt_()
