"""Ranks, decay, LiDAR, alignment, neighbours and CKA against definitions written out in NumPy float64."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from scipy.stats import skew
from torch import Tensor

from ssl_bench.evaluation import representation_metrics as metrics
from ssl_bench.pretraining.online_probe import spread


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(size=shape))


def rotation(dim: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(normal(dim, dim, seed=seed)).Q


def entropy_rank(values: np.ndarray, eps: float = 0.0) -> float:
    share = values / values.sum() + eps
    return float(np.exp(-sum(p * np.log(p) for p in share if p > 0)))


def falling(alpha: float, count: int) -> Tensor:
    return 3.0 * torch.arange(1, count + 1, dtype=torch.float64) ** -alpha


# --- spectra and ranks


@pytest.mark.parametrize("shape", [(300, 12), (12, 12), (9, 30), (9000, 7)])
@pytest.mark.parametrize("centred", [False, True])
def test_singular_values_are_the_svd(shape: tuple[int, int], centred: bool) -> None:
    features = (normal(*shape) * torch.linspace(0.1, 5, shape[1]) + 3).float()
    x = features.double().numpy()
    expected = np.linalg.svd(x - x.mean(0) * centred, compute_uv=False)
    found = metrics.singular_values(features, centred)
    assert found.shape == (min(shape),)
    # A singular value of 0 is one of the root of what rounds in the product.
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-7 * expected[0])


def test_rankme_of_white_features_nears_their_dimension() -> None:
    ranks = [
        metrics.effective_rank(metrics.singular_values(normal(count, 20)), 1e-7) for count in (40, 200, 2000, 40_000)
    ]
    assert ranks == sorted(ranks) and ranks[0] < 19 and 19.99 < ranks[-1] < 20.001


def test_rankme_of_one_direction_is_one() -> None:
    line = normal(500, 1) @ normal(1, 16, seed=1)
    assert metrics.effective_rank(metrics.singular_values(line), 1e-7) == pytest.approx(1, abs=1e-4)
    same = torch.ones(500, 16)
    assert metrics.effective_rank(metrics.singular_values(same), 1e-7) == pytest.approx(1, abs=1e-4)
    assert metrics.effective_rank(metrics.singular_values(same, centred=True)) == 1


def test_rankme_against_the_papers_formula() -> None:
    x = normal(400, 24) * torch.linspace(0, 3, 24) + 1
    values = np.linalg.svd(x.numpy(), compute_uv=False)
    found = metrics.effective_rank(metrics.singular_values(x), 1e-7)
    assert found == pytest.approx(entropy_rank(values, 1e-7), rel=1e-6)


def test_eps_is_added_to_the_shares() -> None:
    assert metrics.effective_rank(torch.tensor([1.0, 1.0, 0.0]).double(), 0.1) == pytest.approx(
        entropy_rank(np.array([1, 1, 0]), 0.1)
    )
    assert metrics.effective_rank(torch.tensor([4.0, 4.0, 4.0, 0.0]).double()) == pytest.approx(3)


def test_participation_ratio_by_hand() -> None:
    assert metrics.participation_ratio(torch.tensor([3.0, 1.0])) == pytest.approx(16 / 10)
    assert metrics.participation_ratio(torch.tensor([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)


def test_the_probe_watches_the_same_rank() -> None:
    x = normal(200, 10) * torch.linspace(0, 1, 10) + 5
    values = np.linalg.svd(x.numpy() - x.numpy().mean(0), compute_uv=False)
    assert spread(x).rank == pytest.approx(entropy_rank(values), rel=1e-6)


@pytest.mark.parametrize("shape", [(2000, 100), (300, 300), (400, 700)])
def test_the_noise_floor_is_what_float16_adds(shape: tuple[int, int]) -> None:
    """The largest singular value of the rounding itself is below it, and by no more than the floor's margin."""
    features = normal(*shape).float()
    rounding = (features.half().float() - features).double().numpy()
    largest = np.linalg.svd(rounding, compute_uv=False)[0]
    assert 0.5 < largest / metrics.noise_floor(features) < 1


# --- alpha-ReQ


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("count", [40, 99, 300])
def test_an_exact_power_law(alpha: float, count: int) -> None:
    law = metrics.power_law(falling(alpha, count))
    assert law is not None
    assert law.alpha == pytest.approx(alpha, rel=1e-9) and law.r2 == pytest.approx(1)


def test_weighted_least_squares_over_ranks_5_to_99() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(np.arange(1, 201.0) ** -1.2 * np.exp(0.3 * rng.normal(size=200)))[::-1].copy()
    rank = np.arange(5, 100)
    y = np.log(values[4:99])
    (slope, constant), _ = np.polyfit(np.log(rank), y, 1, w=rank**-0.5, cov=True)  # its w multiplies residuals
    predicted = constant + slope * np.log(rank)
    law = metrics.power_law(torch.tensor(values))
    assert law is not None
    assert law.alpha == pytest.approx(-slope, rel=1e-9)
    assert law.r2 == pytest.approx(1 - ((y - predicted) ** 2).sum() / ((y - y.mean()) ** 2).sum(), rel=1e-9)


def test_the_authors_library_gives_the_same() -> None:
    """`reptrix.alpha.get_powerlaw(spectrum, np.arange(4, 99))` of reptrix 0.1.0; its range counts from 0."""
    spectrum = falling(1.0, 120) * (1 + 0.5 * torch.sin(torch.arange(120)))
    law = metrics.power_law(spectrum)
    assert law is not None
    assert law.alpha == pytest.approx(0.9244112237406352, rel=1e-6)


def test_what_lies_below_the_noise_is_not_fitted() -> None:
    variances = falling(1.0, 99)
    variances[30:] = variances[30]  # noise
    law = metrics.power_law(variances, least=float(variances[30]))
    assert law is not None and law.alpha == pytest.approx(1) and law.r2 == pytest.approx(1)
    noisy = metrics.power_law(variances)
    assert noisy is not None and noisy.alpha < 0.9 and noisy.r2 < 0.95


def test_too_few_ranks_for_a_law() -> None:
    assert metrics.power_law(falling(1.0, 13)) is None
    assert metrics.power_law(falling(1.0, 14)) is not None
    assert metrics.power_law(torch.zeros(50, dtype=torch.float64)) is None


# --- LiDAR and alignment


def lidar_in_loops(views: np.ndarray, delta: float, eps: float) -> float:
    n, count, dim = views.shape
    flat = views.reshape(-1, dim)
    views = (views - flat.mean(0)) / flat.std(0)
    between, within = np.zeros((dim, dim)), delta * np.eye(dim)
    for image in views:
        centre = image.mean(0)
        between += np.outer(centre, centre) / n
        for view in image:
            within += np.outer(view - centre, view - centre) / (n * count)
    values, vectors = np.linalg.eigh(within)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    return entropy_rank(np.linalg.eigvalsh(root @ between @ root).clip(min=0), eps)


@pytest.mark.parametrize("shape", [(60, 5, 8), (7, 3, 20)])
@pytest.mark.parametrize("delta", [1e-4, 0.1])
def test_lidar_against_loops(shape: tuple[int, int, int], delta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    n, count, dim = shape
    views = 2 * normal(n, 1, dim) * torch.linspace(0.1, 3, dim) + normal(n, count, dim, seed=1) + 4
    expected = lidar_in_loops(views.numpy(), delta, 1e-8)
    for rows in (4096, 4):
        monkeypatch.setattr(metrics, "ROWS", rows)
        assert metrics.lidar(views, delta) == pytest.approx(expected, rel=1e-6)


def test_lidar_counts_the_directions_in_which_images_differ() -> None:
    """Images differ in 4 of 12 directions, their views in all: by more in the others, which RankMe counts."""
    axes = torch.zeros(12).double()
    axes[:4] = 1
    images = normal(2000, 1, 12) * axes
    views = images + normal(2000, 10, 12, seed=1) * torch.where(axes > 0, 0.01, 1.0)
    found = metrics.lidar(views)
    assert found is not None and 3.9 < found < 4.1
    assert metrics.effective_rank(metrics.singular_values(views.flatten(0, 1)), 1e-7) > 11.9


def test_views_that_are_the_same_have_no_lidar() -> None:
    images = normal(50, 1, 6)
    assert metrics.lidar(images.repeat(1, 4, 1)) is None
    assert metrics.lidar(images + 1e-3 * normal(50, 4, 6, seed=1)) is None
    assert metrics.lidar(torch.ones(50, 4, 6)) is None
    assert metrics.lidar(images + 0.1 * normal(50, 4, 6, seed=1)) is not None


def test_lidar_does_not_depend_on_scale_or_on_features_that_are_constant() -> None:
    views = normal(80, 1, 6) + 0.5 * normal(80, 4, 6, seed=1)
    expected = metrics.lidar(views)
    scaled = views * torch.tensor([1e-3, 1, 10, 1e4, 0.5, 2]).double() - 7
    assert metrics.lidar(scaled) == pytest.approx(expected)
    assert metrics.lidar(torch.cat([views, torch.full((80, 4, 2), 3.0)], 2)) == pytest.approx(expected, rel=1e-5)


def test_alignment_is_the_mean_over_pairs_of_views() -> None:
    views = normal(20, 4, 6) + 1
    unit = (views / views.norm(dim=2, keepdim=True)).numpy()
    pairs = [np.sum((image[a] - image[b]) ** 2) for image in unit for a in range(4) for b in range(4) if a != b]
    assert metrics.alignment(views) == pytest.approx(np.mean(pairs))
    assert metrics.alignment(views[:, :1].repeat(1, 3, 1)) == pytest.approx(0, abs=1e-12)
    assert metrics.alignment(torch.tensor([[[2.0, 0.0], [0.0, 5.0]]])) == pytest.approx(2)


# --- neighbours


@pytest.mark.parametrize("rows", [4096, 28])
def test_neighbourhood_against_all_pairs(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS", rows)
    features = normal(150, 5) + torch.tensor([1.0, 0, 0, 0, 0])
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    cosine = unit @ unit.T
    others = cosine - 9 * np.eye(150)
    order = np.argsort(-others, axis=1)[:, :10]
    found = metrics.neighbourhood(features)
    assert found.mean_cosine == pytest.approx(cosine[~np.eye(150, dtype=bool)].mean(), abs=1e-9)
    assert found.nearest_cosine == pytest.approx(others.max(1).mean(), abs=1e-6)
    assert found.uniformity == pytest.approx(np.log(np.exp(-2 * pdist(unit, "sqeuclidean")).mean()), abs=1e-6)
    assert found.hubness == pytest.approx(skew(np.bincount(order.ravel(), minlength=150)), abs=1e-9)
    assert squareform(pdist(unit)).max() > 1


def test_neighbourhood_by_hand() -> None:
    """Two pairs of opposite vectors, at right angles: cosines of pairs are -1, -1 and four times 0."""
    cross = torch.tensor([[1.0, 0], [-3, 0], [0, 2], [0, -1]])
    found = metrics.neighbourhood(cross, k=3)
    assert found.mean_cosine == pytest.approx(-1 / 3)
    assert found.nearest_cosine == pytest.approx(0)
    assert found.uniformity == pytest.approx(math.log((2 * math.exp(-8) + 4 * math.exp(-4)) / 6))
    assert found.hubness == 0, "each is among all others' three nearest"


def test_features_that_are_all_the_same() -> None:
    found = metrics.neighbourhood(torch.ones(30, 4))
    assert found.mean_cosine == pytest.approx(1) and found.uniformity == pytest.approx(0, abs=1e-5)


# --- CKA


def hsic_in_loops(x: np.ndarray, y: np.ndarray) -> float:
    """Song et al. (2012), equation 5: the estimate without bias."""
    n = len(x)
    k, kl = np.zeros((n, n)), np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            if i != j:
                k[i, j], kl[i, j] = x[i] @ x[j], y[i] @ y[j]
    middle = 0.0
    for i in range(n):
        middle += k[i].sum() * kl[i].sum()
    return float((k * kl).sum() + k.sum() * kl.sum() / ((n - 1) * (n - 2)) - 2 * middle / (n - 2)) / (n * (n - 3))


@pytest.mark.parametrize("rows", [4096, 7])
@pytest.mark.parametrize("shape", [(40, 6, 9), (12, 30, 20)])
def test_cka_against_loops(shape: tuple[int, int, int], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS", rows)
    n, d, e = shape
    x = normal(n, d) + 5
    y = x[:, :1] * normal(1, e, seed=2) + normal(n, e, seed=1) - 2
    a, b = x.numpy(), y.numpy()
    expected = hsic_in_loops(a, b) / math.sqrt(hsic_in_loops(a, a) * hsic_in_loops(b, b))
    assert metrics.cka(x, y) == pytest.approx(expected, rel=1e-8)
    a, b = a - a.mean(0), b - b.mean(0)
    plain = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert metrics.cka(x, y, unbiased=False) == pytest.approx(plain, rel=1e-8)


@pytest.mark.parametrize("unbiased", [True, False])
def test_cka_is_one_for_features_turned_scaled_and_moved(unbiased: bool) -> None:
    x = normal(100, 16) * torch.linspace(0.1, 3, 16)
    turned = 7 * x @ rotation(16) + 50
    assert metrics.cka(x, turned, unbiased) == pytest.approx(1, abs=1e-9)
    assert metrics.cka(x, x * torch.linspace(3, 0.1, 16), unbiased) < 0.9, "but not stretched"


def test_unbiased_cka_sees_nothing_where_there_is_nothing() -> None:
    """40 images of 200 unrelated features: the plain estimate calls them much alike."""
    pairs = [(normal(40, 200, seed=2 * s), normal(40, 200, seed=2 * s + 1)) for s in range(20)]
    assert min(metrics.cka(x, y, unbiased=False) for x, y in pairs) > 0.7
    values = [metrics.cka(x, y) for x, y in pairs]
    assert abs(np.mean(values)) < 0.02 and min(values) < 0 < max(values)


def test_cka_with_features_that_are_all_the_same_is_zero() -> None:
    assert metrics.cka(normal(20, 4), torch.ones(20, 3)) == 0
