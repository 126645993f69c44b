"""What features look like without labels: ranks and decay of their spectrum, views, neighbours, CKA of two networks.

Spectra are those of D x D or N x N products in float64, whichever is smaller, never of the N x D features themselves.

Shapes: N images, D features, V views of an image, R = min(N, D) values of a spectrum.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.runtime.precision import full_precision

ROWS = 4096  # images that become float64 at once
FLOAT16_ROUNDING = 2.8e-4  # root mean square of what storing a number as float16 changes, as a part of it
POWER_LAW_RANKS = (5, 99)  # first and last, counted from 1
FEWEST_RANKS = 10  # through which a power law is fitted


def singular_values(features: Tensor, centred: bool = False) -> Tensor:
    """(N, D) features -> (R,) float64 singular values, falling; of the features less their mean if ``centred``."""
    n, dim = features.shape
    mean = _mean(features) if centred else None
    if n < dim:
        (rows,) = _rows(features, mean, n)
        product = rows @ rows.T
    else:
        product = features.new_zeros(dim, dim, dtype=torch.float64)
        for rows in _rows(features, mean):
            product.addmm_(rows.T, rows)
    squares: Tensor = torch.linalg.eigvalsh(product)  # rising
    return squares.flip(0).clamp(min=0).sqrt()


def noise_floor(features: Tensor) -> float:
    """Largest singular value that storing (N, D) features as float16 adds, if they are of like magnitude.

    It is that of an N x D matrix of independent noise. Singular values below it are not the network's.
    """
    square = sum(float(rows.square().sum()) for rows in _rows(features)) / features.numel()
    return FLOAT16_ROUNDING * math.sqrt(square) * (math.sqrt(len(features)) + math.sqrt(features.shape[1]))


def effective_rank(spectrum: Tensor, eps: float = 0.0) -> float:
    """exp of the entropy of the shares that (R,) values have of their sum: from 1 to R.

    Of singular values it is Roy & Vetterli's (EUSIPCO 2007) rank. With eps = 1e-7 added to the shares, and features
    that are not centred, it is RankMe (Garrido et al., ICML 2023).
    """
    share = spectrum / spectrum.sum().clamp(min=1e-300) + eps
    return float(torch.exp(torch.special.entr(share).sum()))


def participation_ratio(variances: Tensor) -> float:
    """(sum)^2 / sum of squares of (R,) variances: how many equal ones would be as spread out."""
    return float(variances.sum().square() / variances.square().sum())


@dataclass(frozen=True)
class PowerLaw:
    """Variances that fall as rank^-alpha, and how well they do.

    Args:
        alpha: Exponent of the decay.
        r2: Part of the variance of log variance that the law explains, over the ranks it was fitted to.
    """

    alpha: float
    r2: float


def power_law(variances: Tensor, least: float = 0.0) -> PowerLaw | None:
    """Decay of (R,) falling variances over ranks 5 to 99, as the authors of alpha-ReQ (NeurIPS 2022) fit it.

    A line through log variance against log rank, the squared error at rank j weighted by 1 / j.

    Args:
        variances: Eigenvalues of a covariance.
        least: Only those above it are looked at.

    Returns:
        None when fewer than 10 ranks are left.
    """
    first, last = POWER_LAW_RANKS
    last = min(last, int((variances > least).sum()))
    if last - first + 1 < FEWEST_RANKS:
        return None
    y = variances[first - 1 : last].log()
    rank = torch.arange(first, last + 1, dtype=y.dtype, device=y.device)
    x, weight = rank.log(), (1 / rank) / (1 / rank).sum()
    x_mean, y_mean = (weight * x).sum(), (weight * y).sum()
    slope = (weight * (x - x_mean) * (y - y_mean)).sum() / (weight * (x - x_mean).square()).sum()
    residual = (y - y_mean - slope * (x - x_mean)).square().sum()
    total = (y - y.mean()).square().sum()
    return PowerLaw(-float(slope), float(1 - residual / total) if total > 0 else 0.0)


def lidar(views: Tensor, delta: float = 1e-4, eps: float = 1e-8) -> float | None:
    """LiDAR (Thilak et al., ICLR 2024) of (N, V, D) features of V views of each of N images.

    The effective rank of Fisher's discriminant, an image's views being a class: of the covariance between images in
    units of that within images. Features are standardised first, so that delta means the same for every network.

    Args:
        views: V at least 2; N should be more than D, since the result cannot exceed N - 1.
        delta: Added to the variance within images.
        eps: Added to the shares of the spectrum.

    Returns:
        None when views of an image differ so little that delta, and not the network, would decide.
    """
    n, count, dim = views.shape
    flat = views.reshape(-1, dim)
    mean, variance = _mean(flat), flat.new_zeros(dim, dtype=torch.float64)
    for rows in _rows(flat, mean):
        variance += rows.square().sum(0) / len(flat)
    variance[variance <= 1e-12 * mean.square()] = torch.inf  # a feature that is constant says nothing
    deviation = variance.sqrt()
    between, within = (flat.new_zeros(dim, dim, dtype=torch.float64) for _ in range(2))
    for some in views.split(max(1, ROWS // count)):
        z = (some.double() - mean) / deviation  # (n, V, D)
        centre = z.mean(1)
        inside = (z - centre[:, None]).flatten(0, 1)
        between.addmm_(centre.T, centre, alpha=1 / n)
        within.addmm_(inside.T, inside, alpha=1 / (n * count))
    if float(within.trace()) <= delta * float(variance.isfinite().sum()):
        return None
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors / (values.clamp(min=0) + delta).sqrt()  # (D, D)
    spectrum = torch.linalg.eigvalsh(whiten.T @ between @ whiten).clamp(min=0)
    return effective_rank(spectrum, eps)


def alignment(views: Tensor) -> float:
    """Mean squared distance of two L2-normalised views of one image, over all pairs of (N, V, D) (Wang & Isola 2020).

    Of V unit vectors with mean m it is 2 V / (V - 1) (1 - |m|^2): no pair is formed.
    """
    count = views.shape[1]
    unit = F.normalize(views.double(), dim=2)
    return float((unit.square().sum(2).mean(1) - unit.mean(1).square().sum(1)).mean()) * 2 * count / (count - 1)


@dataclass(frozen=True)
class Neighbourhood:
    """How images lie to one another, all similarities being cosines.

    Args:
        mean_cosine: Of two different images.
        nearest_cosine: Of an image and the one most similar to it.
        uniformity: log of the mean of exp(-2 d^2) over pairs, d their distance on the unit sphere (Wang & Isola 2020).
        hubness: Skewness of how often an image is among the k nearest of others (Radovanovic et al., JMLR 2010).
    """

    mean_cosine: float
    nearest_cosine: float
    uniformity: float
    hubness: float


def neighbourhood(features: Tensor, k: int = 10) -> Neighbourhood:
    """Of all pairs of (N, D) features."""
    n = len(features)
    exact = F.normalize(features.double(), dim=1)
    unit = exact.float()
    potential, nearest = (unit.new_zeros((), dtype=torch.float64) for _ in range(2))
    chosen = torch.zeros(n, dtype=torch.int64, device=unit.device)  # times an image is among others' nearest
    for at in range(0, n, ROWS // 4):
        with full_precision():
            cosine = unit[at : at + ROWS // 4] @ unit.T  # (n, N)
        cosine.diagonal(at).fill_(-torch.inf)  # no image is its own neighbour
        best = cosine.topk(min(k, n - 1), dim=1)
        nearest += best.values[:, 0].sum(dtype=torch.float64)
        chosen += best.indices.flatten().bincount(minlength=n)
        potential += cosine.sub_(1).mul_(4).exp_().sum(dtype=torch.float64)  # d^2 = 2 - 2 cos
    pairs = exact.sum(0).square().sum() - exact.square().sum()  # sum of all cosines of different images
    off = chosen.double() - chosen.double().mean()
    spread = float(off.square().mean())
    return Neighbourhood(
        float(pairs) / (n * (n - 1)),
        float(nearest) / n,
        math.log(float(potential) / (n * (n - 1))),
        float(off.pow(3).mean()) / spread**1.5 if spread > 0 else 0.0,
    )


def cka(x: Tensor, y: Tensor, unbiased: bool = True) -> float:
    """Linear CKA (Kornblith et al., ICML 2019) of (N, D) and (N, E) features of the same images: 1 if one is the other,
    turned, scaled and moved.

    Args:
        x: N at least 4.
        y: Of another network.
        unbiased: With the unbiased estimate of HSIC (Song et al., JMLR 2012). The plain one finds similarity where
            there are hardly more images than features; the unbiased one is 0 on average where there is none, and can
            be below.
    """
    assert len(x) == len(y) > 3, "the same images, at least 4"
    both, own_x, own_y = _hsic(x, y, unbiased), _hsic(x, x, unbiased), _hsic(y, y, unbiased)
    return both / math.sqrt(own_x * own_y) if own_x > 0 and own_y > 0 else 0.0


def _hsic(x: Tensor, y: Tensor, unbiased: bool) -> float:
    """HSIC of linear kernels K = X X^T and L = Y Y^T up to a factor, without forming the (N, N) kernels.

    Centring the features changes neither estimate, and keeps the differences below from cancelling.
    """
    n = len(x)
    x_mean, y_mean = _mean(x), _mean(y)
    cross = x_mean.new_zeros(x.shape[1], y.shape[1])
    x_sum, y_sum = torch.zeros_like(x_mean), torch.zeros_like(y_mean)
    for a, b in zip(_rows(x, x_mean), _rows(y, y_mean), strict=True):
        cross.addmm_(a.T, b)
        x_sum, y_sum = x_sum + a.sum(0), y_sum + b.sum(0)
    trace = cross.square().sum()  # of K L
    if not unbiased:
        return float(trace)
    k_sum, l_sum, rows = x_sum.square().sum(), y_sum.square().sum(), torch.zeros_like(trace)
    for a, b in zip(_rows(x, x_mean), _rows(y, y_mean), strict=True):
        k_own, l_own = a.square().sum(1), b.square().sum(1)  # the diagonals, which the unbiased estimate leaves out
        trace, k_sum, l_sum = trace - (k_own * l_own).sum(), k_sum - k_own.sum(), l_sum - l_own.sum()
        rows += ((a @ x_sum - k_own) * (b @ y_sum - l_own)).sum()
    return float(trace + k_sum * l_sum / ((n - 1) * (n - 2)) - 2 * rows / (n - 2))


def _mean(features: Tensor) -> Tensor:
    """(N, D) -> (D,) float64."""
    return torch.stack([rows.sum(0) for rows in _rows(features)]).sum(0) / len(features)


def _rows(features: Tensor, mean: Tensor | None = None, count: int = ROWS) -> Iterator[Tensor]:
    """(<= count, D) float64 at a time, less the mean if there is one."""
    for rows in features.split(count):
        yield rows.double() if mean is None else rows.double() - mean
