"""k-means on patches against loops written from the paper, in float64; and as a baseline on the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ssl_bench.cli.main import main
from ssl_bench.data.pool import ResidentPool
from ssl_bench.errors import UserError
from ssl_bench.evaluation import kmeans_patches
from ssl_bench.evaluation.kmeans_patches import KMeansPatches, distances, kmeans, normalised, some_patches, zca
from ssl_bench.evaluation.targets import parse_target
from ssl_bench.leaderboard.render import leaderboard

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def pool(images: int = 12, size: int = 9, seed: int = 0) -> ResidentPool:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = np.arange(images) % 2
    return ResidentPool(labels=labels, ids=[str(n) for n in range(images)], images=pixels)


def patches_in_loops(image: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """(n, n, d) patches of a (3, s, s) image of pixels from 0 to 255, without brightness and contrast."""
    places = image.shape[1] - side + 1
    found = np.empty((places, places, 3 * side * side))
    for row in range(places):
        for column in range(places):
            patch = image[:, row : row + side, column : column + side].reshape(-1)
            found[row, column] = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 10)
    return found


def features_in_loops(network: KMeansPatches, image: NDArray[np.float64]) -> NDArray[np.float64]:
    """Triangle activations of the paper's section 3.2, summed over quadrants, before they are standardised."""
    patches = patches_in_loops(image, network.patch)
    centroids, white = network.centroids.double().numpy(), network.whitening.double().numpy()
    places, half = len(patches), (len(patches) + 1) // 2
    sums = np.zeros((2, 2, len(centroids)))
    for row in range(places):
        for column in range(places):
            x = (patches[row, column] - network.patch_mean.double().numpy()) @ white
            z = np.array([np.sqrt(((x - centroid) ** 2).sum()) for centroid in centroids])
            sums[int(row >= half), int(column >= half)] += np.maximum(0, z.mean() - z)
    return sums.reshape(-1)


@pytest.mark.parametrize("size", [9, 6, 4], ids=["several places", "one place", "smaller than a patch"])
def test_features_are_the_papers_in_loops(size: int) -> None:
    images = pool(size=size)
    network = KMeansPatches(size, MEAN, STD, images, seed=0)
    plain = images.images.double().numpy()
    expected = np.stack([features_in_loops(network, image) for image in plain])
    deviation = np.sqrt(expected.var(0) + 0.01)
    given = (images.images.float() / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    features = network.features(given, ["kmeans"])["kmeans"]
    np.testing.assert_allclose(features, (expected - expected.mean(0)) / deviation, atol=2e-3)
    assert features.shape[1] == network.dim == 4 * len(network.centroids)
    assert torch.equal(network.token_grid(given).flatten(1), features)


def test_patches_are_those_of_the_images() -> None:
    images = pool().images.float() / 255
    drawn = some_patches(images, 6, torch.Generator().manual_seed(0))
    loops = np.concatenate([patches_in_loops(255 * image.double().numpy(), 6).reshape(-1, 108) for image in images])
    assert drawn.shape == (12 * 16, 108), "so few that each is taken once"
    order, expected = (np.lexsort(values.round(3).T) for values in (drawn.numpy(), loops))
    np.testing.assert_allclose(drawn.numpy()[order], loops[expected], atol=1e-4)


def test_whitened_patches_have_no_covariance_but_for_what_is_added() -> None:
    patches = normalised(torch.randn(4000, 8, generator=torch.Generator().manual_seed(0)).cumsum(1))
    mean, white = zca(patches)
    values, axes = np.linalg.eigh(np.cov(patches.double().numpy().T, bias=True))
    covariance = np.cov((((patches - mean) @ white).double().numpy() @ axes).T, bias=True)
    np.testing.assert_allclose(covariance, np.diag(values / (values + 0.1)), atol=1e-4)
    np.testing.assert_allclose(white, white.T, atol=1e-6)


def test_lloyds_iterations_by_hand() -> None:
    points = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0], [11.0, 1.0]])
    for seed in range(5):
        found = kmeans(points, 2, 20, torch.Generator().manual_seed(seed))
        ordered = found[found[:, 0].argsort()]
        if ordered[0, 0] == 0:  # not the worse local optimum, above and below
            torch.testing.assert_close(ordered, torch.tensor([[0.0, 1.0], [31 / 3, 1.0]]))
            return
    pytest.fail("no seed found the two groups")


def test_centroids_are_scikit_learns_from_the_same_start() -> None:
    from sklearn.cluster import KMeans

    points = torch.randn(500, 5, generator=torch.Generator().manual_seed(1))
    start = points[torch.randperm(500, generator=torch.Generator().manual_seed(2))[:7]]
    ours = kmeans(points, 7, 200, torch.Generator().manual_seed(2))
    theirs = KMeans(7, init=start.numpy(), n_init=1, max_iter=200, tol=0, algorithm="lloyd").fit(points.numpy())
    np.testing.assert_allclose(ours, theirs.cluster_centers_, atol=1e-4)


def test_a_centroid_without_points_stays() -> None:
    points = torch.tensor([[0.0], [0.0], [0.0], [4.0]])
    found = kmeans(points, 4, 3, torch.Generator().manual_seed(0))
    assert sorted(found.flatten().tolist()) == [0.0, 0.0, 0.0, 4.0]


def test_distances_are_euclidean() -> None:
    a, b = torch.randn(6, 3), torch.randn(4, 3)
    torch.testing.assert_close(distances(a, b), torch.cdist(a, b), atol=1e-5, rtol=1e-5)


def test_the_seed_alone_decides_and_labels_do_not() -> None:
    images = pool()
    first, again = (KMeansPatches(9, MEAN, STD, given, seed=3) for given in (images, images.unlabelled()))
    other = KMeansPatches(9, MEAN, STD, images, seed=4)
    assert torch.equal(first.centroids, again.centroids) and not torch.equal(first.centroids, other.centroids)


def test_patches_come_from_a_sample_of_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans_patches, "IMAGES", 5)
    monkeypatch.setattr(kmeans_patches, "PATCHES", 40)
    assert kmeans_patches.some_images(pool(), 9, 0).shape == (5, 3, 9, 9)
    assert some_patches(pool(5).images.float(), 6, torch.Generator()).shape == (40, 108)


@pytest.mark.integration
def test_beside_others_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--data", "digits", "--protocols", "knn,ridge", "--runs", str(tmp_path)]
    main(["evaluate", "pixels", "kmeans-patches", "kmeans-patches@1", *flags])
    capsys.readouterr()
    table = leaderboard([tmp_path], "csv").splitlines()
    row = next(line for line in table if line.startswith("digits") and "kmeans-patches" in line and ",knn," in line)
    accuracy = float(row.split(",knn,")[1].split(",")[3])
    assert accuracy > 0.9, "digits are easy, as they are for raw pixels"
    assert '"0 1"' in row or ",0 1," in row, "a row of two seeds"


@pytest.mark.parametrize(
    ("name", "message"), [("kmeans-patches@x", "whole number"), ("kmeans-patch", "kmeans-patches")]
)
def test_mistakes_are_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_target(name, {}, 0)
