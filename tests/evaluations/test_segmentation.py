"""Dense protocols: metrics against torchmetrics and scikit-learn, k-NN and heads against loops, a supervised bound."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix
from torchmetrics.functional.classification import multiclass_jaccard_index

from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.masks import IGNORE, ResidentMasks
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.data.whole_images import Grid, cell_shares, crop_together, whole_images
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.patch_features import patch_features
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.evaluation.segmentations import Segmentations
from ssl_bench.evaluations.segmentation import Segmentation, nearest
from ssl_bench.evaluations.segmentation_finetune import SegmentationFinetune
from ssl_bench.evaluations.segmentation_knn import SegmentationKnn
from ssl_bench.finetuning.model import groups
from ssl_bench.models.backbone import Backbone

K = 4
VIT = BackboneOptions(name="vit_nano_patch4_32", img_size=16, patch_size=4, width=24, depth=2, num_heads=2)
RESNET = BackboneOptions(name="resnet18", img_size=16, timm_args={"channels": (16, 24, 32, 48)})


def squares(count: int, size: int = 24, seed: int = 0) -> ResidentPool:
    """Images of rectangles on a ground, each class of its own colour, with noise; a border of no class."""
    rng = np.random.default_rng(seed)
    colours = np.array([[60, 60, 60], [220, 60, 60], [60, 220, 60], [60, 60, 220]])
    masks = np.zeros((count, size, size), np.uint8)
    for mask in masks:
        for label in rng.permutation(np.arange(1, K))[:2]:
            top, left = rng.integers(0, size - 8, 2)
            mask[top : top + rng.integers(6, 14), left : left + rng.integers(6, 14)] = label
    images = np.clip(colours[masks].transpose(0, 3, 1, 2) + 20 * rng.normal(size=(count, 3, size, size)), 0, 255)
    masks[:, :, -1] = IGNORE
    return ResidentPool(
        labels=None,
        ids=[f"{seed}/{i}" for i in range(count)],
        images=torch.tensor(images, dtype=torch.uint8),
        masks=ResidentMasks(values=torch.from_numpy(masks)),
    )


@pytest.fixture
def splits() -> tuple[TrainSplit, ValidationSplit, TestSplit]:
    pool, other = squares(40), squares(12, seed=1)
    return TrainSplit(pool, np.arange(30)), ValidationSplit(pool, np.arange(30, 40)), TestSplit(other, np.arange(12))


def frozen(network: str = "vit", cache: Any = None) -> FeatureExtractor:
    torch.manual_seed(0)
    built = {"vit": lambda: Backbone(VIT), "resnet": lambda: Backbone(RESNET), "pixels": lambda: Pixels(16)}[network]()
    return FeatureExtractor(built, (0.5,) * 3, (0.25,) * 3, {}, cache)


# --- metrics


def noisy(splits: Any, wrong: float = 0.3) -> tuple[Segmentations, TestSplit, np.ndarray, np.ndarray]:
    """Predictions with errors, as a scored thing and as flat arrays of what counts."""
    test, rng = splits[2], np.random.default_rng(2)
    masks = [test.mask(place) for place in range(len(test))]
    said = [
        np.where(rng.random(m.shape) < wrong, rng.integers(0, K, m.shape), np.where(m == IGNORE, 0, m)) for m in masks
    ]
    said = [mask.astype(np.uint8) for mask in said]
    known = np.stack(masks) != IGNORE
    return Segmentations(K, lambda place: said[place]), test, np.stack(masks)[known], np.stack(said)[known]


def test_scores_against_torchmetrics_and_a_confusion_matrix(splits: Any) -> None:
    found, test, truth, said = noisy(splits)
    scores, each = found.scores(test), found.diagnostics(test)
    matrix = confusion_matrix(truth, said)
    iou = np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix))
    assert scores["mIoU"].value == pytest.approx(iou.mean())
    expected = multiclass_jaccard_index(torch.tensor(said), torch.tensor(truth), K, average="macro")
    assert scores["mIoU"].value == pytest.approx(float(expected), abs=1e-6)
    assert scores["fwIoU"].value == pytest.approx((iou * matrix.sum(1)).sum() / matrix.sum())
    assert scores["pixel accuracy"].value == pytest.approx((truth == said).mean())
    assert each == {f"IoU of class {k}": pytest.approx(iou[k]) for k in range(K)}


def test_the_interval_is_that_of_drawing_images(splits: Any) -> None:
    found, test, _, _ = noisy(splits)
    statistic = found.scores(test)["mIoU"]
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(2000):
        total = found.counts(test)[rng.integers(0, len(test), len(test))].sum(0)
        drawn.append((total[0] / (total[1] + total[2] - total[0])).mean())
    low, high = statistic.interval()
    spread = np.quantile(drawn, 0.975) - np.quantile(drawn, 0.025)
    assert high - low == pytest.approx(spread * (12 / 11) ** 0.5, rel=0.1)
    assert low < statistic.value < high


def test_what_is_of_no_class_and_a_class_nowhere_do_not_count(splits: Any) -> None:
    test = splits[2]
    perfect = Segmentations(K, lambda place: np.where(test.mask(place) == IGNORE, 0, test.mask(place)).astype(np.uint8))
    assert all(statistic.value == 1 for statistic in perfect.scores(test).values())
    wrong_size = Segmentations(K, lambda place: np.zeros((5, 7), np.uint8))
    with pytest.raises(UserError, match="the mask of 1/0 has 24 x 24 pixels, the image 7 x 5"):
        wrong_size.scores(test)


# --- patches of whole images


def test_windows_cover_the_image_and_their_features_are_averaged(splits: Any) -> None:
    """Pixels, whose features do not depend on the window: joining gives the image back."""
    grid = Grid(16, 4)
    assert (grid.cell, grid.starts(24), grid.starts(16)) == (4, [0, 2], [0])
    assert grid.resized(24, 24, resident=True) == (24, 24) and grid.resized(10, 10, resident=True) == (16, 16)
    assert grid.resized(300, 500, resident=False) == (16, 28), "the short side is the network's, sides are whole cells"
    image = next(whole_images(splits[0], grid)).image
    cells = grid.windows(image).unflatten(2, (4, 4)).unflatten(4, (4, 4)).mean((3, 5)).permute(0, 2, 3, 1)
    joined = grid.joined(cells, 24, 24)
    assert torch.allclose(joined, F.avg_pool2d(image, 4).permute(1, 2, 0), atol=1e-6)


def test_patch_features_are_the_networks_tokens(splits: Any, tmp_path: Any) -> None:
    backbone = frozen(cache=tmp_path)
    features = patch_features(backbone, splits[0])
    image = splits[0].pool.images[3].float() / 255
    corner = image[None, :, :16, :16]  # a window of its own: its first two cells lie in no other
    tokens = backbone.tokens(corner)[0, 1:].unflatten(0, (4, 4))
    assert torch.allclose(features.of(3)[:2, :2], tokens[:2, :2], atol=2e-3)
    assert features.grids.tolist() == [[6, 6]] * 30 and features.sizes.tolist() == [[24, 24]] * 30
    spent = backbone.spent.images
    again = patch_features(backbone, splits[0])
    assert backbone.spent.images == spent and np.array_equal(again.halves, features.halves), "read, not computed"
    other = frozen(cache=tmp_path)
    with torch.no_grad():
        next(other.network.parameters()).add_(1)
    other = FeatureExtractor(other.network, (0.5,) * 3, (0.25,) * 3, {}, tmp_path)
    assert not np.array_equal(patch_features(other, splits[0]).halves, features.halves), "of other weights"


def test_the_last_blocks_stand_side_by_side() -> None:
    backbone = frozen()
    images = torch.rand(2, 3, 16, 16)
    one, two = backbone.patch_map(images), backbone.patch_map(images, 2)
    assert one.shape == (2, 4, 4, 24) and two.shape == (2, 4, 4, 48)
    assert torch.equal(two[..., 24:], one)
    assert frozen("resnet").patch_map(images).shape[:3] == (2, 2, 2)
    assert Segmentation(layers=3).refusal(backbone) == "layers 3: this network has 2 blocks"
    assert "only ViTs" in str(Segmentation(layers=2).refusal(frozen("resnet")))


def test_shares_of_a_cell_by_hand() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [0, 1, 1, IGNORE]], dtype=torch.uint8)
    shares, known = cell_shares(mask, 1, 2, 2)
    assert shares[0].tolist() == [[0.75, 0.25], [0.0, 1.0]] and known[0].tolist() == [1.0, 0.75]


def test_crop_and_flip_move_image_and_mask_together() -> None:
    """The image is its own mask: they stay equal wherever no edge is interpolated."""
    mask = torch.zeros(24, 24, dtype=torch.uint8)
    mask[4:14, 6:20] = 200
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        image, cut = crop_together(mask.float().expand(3, -1, -1), mask, 16, (0.4, 1.0), generator)
        assert image.shape == (3, 16, 16) and cut.shape == (16, 16)
        flat = (image[0] < 1) | (image[0] > 199)
        assert torch.equal(image[0][flat].round().to(torch.uint8), cut[flat]) and flat.float().mean() > 0.6


# --- protocols


def test_knn_against_a_loop(splits: Any) -> None:
    train, validation, test = splits
    backbone, protocol = frozen(), SegmentationKnn(k=5, temperature=0.1)
    fit = protocol.fit(backbone, train, validation)
    found = protocol.predict(backbone, fit, test.unlabelled())
    bank, shares = [], []
    for split in (train, validation):
        features = patch_features(backbone, split)
        for place in range(len(split)):
            share, known = cell_shares(torch.as_tensor(split.mask(place)), 6, 6, K)
            for row in range(6):
                for column in range(6):
                    if known[row, column] > 0:
                        bank.append(F.normalize(features.of(place)[row, column], dim=0))
                        shares.append((share[row, column] * 255).round() / 255)
    queries = F.normalize(patch_features(backbone, test).of(2).flatten(0, 1), dim=1)
    scores = []
    for query in queries:
        similarity = torch.stack(bank) @ query
        nearest_ones = similarity.argsort(descending=True)[:5]
        weight = (similarity[nearest_ones] / 0.1).exp()
        scores.append((torch.stack(shares)[nearest_ones] * weight[:, None]).sum(0) / weight.sum())
    logits = torch.stack(scores).view(6, 6, K).permute(2, 0, 1)[None]
    expected = F.interpolate(logits, (24, 24), mode="bilinear")[0].argmax(0)
    assert (expected.numpy() == found.predict(2)).mean() > 0.995, "rounding decides where two classes are equal"


def test_a_bank_of_fewer_patches_is_a_draw_of_them(splits: Any) -> None:
    backbone = frozen()
    few = SegmentationKnn(bank_size=100).fit(backbone, *splits[:2])
    assert len(few.state.shares) == 100 == sum(map(len, few.state.rows))
    again = SegmentationKnn(bank_size=100).fit(backbone, *splits[:2])
    assert all(np.array_equal(a, b) for a, b in zip(few.state.rows, again.state.rows, strict=True))


@pytest.mark.integration
@pytest.mark.parametrize("network", ["vit", "resnet", "pixels"])
def test_colours_are_told_apart(splits: Any, network: str) -> None:
    """All classes have their colour: any network's patches are enough, and raw colours best of all."""
    for protocol in (SegmentationKnn(), Segmentation(iterations=150)):
        backbone = frozen(network)
        fit = protocol.fit(backbone, *splits[:2])
        score = protocol.predict(backbone, fit, splits[2].unlabelled()).scores(splits[2])["mIoU"].value
        ground = Segmentations(K, lambda place: np.zeros((24, 24), np.uint8)).scores(splits[2])["mIoU"].value
        # A ResNet's places are of 8 pixels here, as large as the rectangles.
        assert score > {"vit": 0.6, "resnet": 1.2 * ground, "pixels": 0.75}[network]


def test_a_head_of_several_is_the_one_trained_alone(splits: Any) -> None:
    backbone = frozen()
    together = Segmentation(iterations=40, lrs=(1e-3, 1e-2))
    features = patch_features(backbone, splits[0])
    norm = together.fit(backbone, *splits[:2]).state.norm
    heads = together._trained(features, splits[0], norm, K)
    (alone,) = Segmentation(iterations=40, lrs=(1e-2,))._trained(features, splits[0], norm, K)
    assert torch.allclose(heads[1].weight, alone.weight, atol=1e-5)
    mean, variance = features.moments()
    values = features.rows(slice(None)).double()
    assert torch.allclose(mean, values.mean(0)) and torch.allclose(variance, values.var(0, unbiased=False))


def test_the_whole_network_learns_at_rates_that_decay(splits: Any) -> None:
    backbone, protocol = frozen(), SegmentationFinetune(epochs=20, warmup_epochs=2.0, lrs=(3e-3,), drop_path=0.0)
    before = backbone.state_hash()
    fit = protocol.fit(backbone, *splits[:2])
    assert backbone.state_hash() == before and not fit.state.training
    own = dict(backbone.network.named_parameters())
    changed = {name: (p - own[name]).abs().max().item() for name, p in fit.state.backbone.named_parameters()}
    assert all(change > 0 for change in changed.values())
    assert changed["model.patch_embed.proj.weight"] < changed["model.blocks.1.mlp.fc2.weight"]
    grouped = groups(fit.state.requires_grad_(True), 0.65, 0.05)
    found = {id(p): group["lr_scale"] for group in grouped for p in group["params"]}
    named = dict(fit.state.named_parameters())
    assert len(found) == len(named)
    assert found[id(named["head.weight"])] == found[id(named["norm.weight"])] == 1
    assert found[id(named["backbone.model.patch_embed.proj.weight"])] == pytest.approx(0.65**3)
    score = protocol.predict(backbone, fit, splits[2].unlabelled()).scores(splits[2])["mIoU"].value
    assert score > 0.6


def test_masks_are_read_at_the_nearest_pixel(splits: Any) -> None:
    mask = splits[0].mask(0)
    found = nearest(splits[0], 0, (12, 12))
    assert all(int(found[i, j]) == mask[2 * i + 1, 2 * j + 1] for i in range(12) for j in range(12))
    assert np.array_equal(nearest(splits[0], 0, (24, 24)).numpy(), mask)


def test_an_empty_validation_split_is_refused(splits: Any) -> None:
    with pytest.raises(UserError, match="raise data.val_fraction"):
        Segmentation().fit(frozen(), splits[0], ValidationSplit(splits[0].pool, np.arange(0)))
