"""What pictures show, against loops and against training itself."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figure_runs import config
from torch.testing import assert_close

from ssl_bench.config.options import BackboneOptions, DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.errors import UserError
from ssl_bench.figures import attention, masks, neighbours, reconstruction
from ssl_bench.figures import map as feature_map
from ssl_bench.figures.opened_run import LeftOut, OpenedRun
from ssl_bench.methods.cae import CAE
from ssl_bench.methods.mae import MAE, patch_pixels
from ssl_bench.methods.simmim import SimMIM
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.dall_e import DallE
from ssl_bench.models.discrete_vae import DiscreteVAE
from ssl_bench.models.patches import patchify, unpatchify
from ssl_bench.models.tokenizers import PatchTokens
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.training import fit
from ssl_bench.records.run import read_run

VIT = BackboneOptions("vit_pico_patch4_32", img_size=12, depth=1)
SWIN = BackboneOptions(
    "swin_tiny_patch4_window7_224",
    img_size=16,
    patch_size=2,
    timm_args={"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4},
)


def opened(folder: Path) -> OpenedRun:
    info = read_run(folder)
    options = DataOptions(**info.options["data"])
    return OpenedRun(folder, info, load_dataset(options), options, True, "cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> OpenedRun:
    return opened(fit(config("mae"), tmp_path_factory.mktemp("runs")).folder)


def mae(**options: Any) -> MAE:
    torch.manual_seed(0)
    return MAE(Backbone(VIT), decoder_dim=16, decoder_depth=1, decoder_heads=2, **options)


# --- reconstructions


@pytest.mark.parametrize("order", ["channel first", "channel last"])
def test_patches_put_together_are_the_image(order: Any) -> None:
    images = torch.randn(2, 3, 12, 12)
    cells = patchify(images, 4, order)
    assert torch.equal(unpatchify(cells, 4, order), images)
    cells[1, 5] = 0  # row 1, column 2 of patches of 4 pixels
    images[1, :, 4:8, 8:12] = 0
    assert torch.equal(unpatchify(cells, 4, order), images)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_maes_prediction_becomes_pixels_as_in_a_loop(norm_pix: bool) -> None:
    method = mae(norm_pix=norm_pix).eval()
    images, noise = torch.randn(2, 3, 12, 12) * 2 + 1, torch.rand(2, 9)
    found = method.reconstruction(images, noise=noise)
    keep, hidden = method.split_patches(2, noise)
    predicted = method.reconstruct(images, keep, hidden).detach()  # (2, M, 48)
    expected = images.clone()
    for b in range(2):
        assert [bool(x) for x in found.mask[b]] == [n in hidden[b].tolist() for n in range(9)]
        for number, place in enumerate(hidden[b].tolist()):
            y, x = 4 * (place // 3), 4 * (place % 3)
            values = images[b, :, y : y + 4, x : x + 4].flatten().tolist()
            mean = sum(values) / 48
            deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / 47 + 1e-6)
            for i in range(4):
                for j in range(4):
                    for c in range(3):
                        value = float(predicted[b, number, (4 * i + j) * 3 + c])
                        expected[b, c, y + i, x + j] = value * deviation + mean if norm_pix else value
    assert_close(found.prediction, expected)
    assert ("does not predict" in found.note) == norm_pix


@pytest.mark.parametrize("norm_pix", [True, False])
def test_a_perfect_mae_gives_the_image_back(norm_pix: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    method = mae(norm_pix=norm_pix)

    def right(images: torch.Tensor, keep: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        return patch_pixels(images, method.backbone.patch_size, norm_pix).take_along_dim(hidden[..., None], 1)

    monkeypatch.setattr(method, "reconstruct", right)
    images = torch.randn(3, 3, 12, 12)
    assert_close(reconstruction.pasted(method.reconstruction(images)), images)


@pytest.mark.parametrize("options", [VIT, SWIN], ids=["vit", "swin"])
def test_a_perfect_simmim_gives_the_image_back(options: BackboneOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    method = SimMIM(Backbone(options))
    stride = method.backbone.stride
    right = lambda images, mask, where: patchify(images, stride, "channel first").take_along_dim(where, 1)  # noqa: E731
    monkeypatch.setattr(method, "reconstruct", right)
    images = torch.randn(2, 3, options.img_size or 0, options.img_size or 0)
    found = method.reconstruction(images)
    assert_close(found.prediction, images)
    assert_close(reconstruction.pasted(found), images)


def test_simmims_prediction_is_pasted_where_its_loss_looks() -> None:
    torch.manual_seed(0)
    method = SimMIM(Backbone(SWIN)).eval()
    images, mask = torch.randn(2, 3, 16, 16), torch.rand(2, 64) < 0.4
    found = method.reconstruction(images, mask=mask)
    shown = reconstruction.pasted(found)
    error = count = 0.0
    for b in range(2):
        for y in range(16):
            for x in range(16):
                if mask[b, 8 * (y // 2) + x // 2]:
                    error += float((shown[b, :, y, x] - images[b, :, y, x]).abs().sum())
                    count += 1
                else:
                    assert torch.equal(shown[b, :, y, x], images[b, :, y, x])
    assert error / count / 3 == pytest.approx(float(method.loss([images], mask=mask).detach()), rel=1e-4)


def cae(**options: Any) -> CAE:
    torch.manual_seed(0)
    return CAE(Backbone(VIT), decoder_dim=16, decoder_heads=2, regressor_depth=1, decoder_depth=1, **options)


def test_a_perfect_cae_of_pixels_gives_the_image_back(monkeypatch: pytest.MonkeyPatch) -> None:
    method, images = cae(), torch.randn(2, 3, 12, 12)

    def right(images: torch.Tensor, keep: torch.Tensor, hidden: torch.Tensor) -> tuple[Any, torch.Tensor]:
        cells = patchify(images, 4, "channel last")
        cells = (cells - cells.mean(-1, keepdim=True)) / (cells.var(-1, keepdim=True) + 1e-6).sqrt()
        return None, cells.take_along_dim(hidden[..., None], 1)

    monkeypatch.setattr(method, "predict", right)
    assert_close(reconstruction.pasted(method.reconstruction(images)), images)


def test_words_of_cae_are_drawn_by_the_tokenizers_decoder() -> None:
    method = cae()
    vae = DiscreteVAE(vocabulary=7, dim=4, hidden_dim=4, layers=1, blocks=1)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    method.tokenizer = PatchTokens(vae, 3, mean, std)
    method.pretext_neck.head = torch.nn.Linear(16, 7)
    images, mask = torch.randn(2, 3, 12, 12), torch.rand(2, 9).argsort(1) < 4
    found = method.eval().reconstruction(images, mask=mask)
    keep, hidden = method.split_patches(2, mask)
    logits, own = method.predict(images, keep, hidden)[1], method.tokenizer(images)
    visual_tokens = torch.zeros(2, 3, 3, dtype=torch.int64)
    for b in range(2):
        for place in range(9):
            guess = logits[b, hidden[b].tolist().index(place)].argmax() if mask[b, place] else own[b, place]
            visual_tokens[b, place // 3, place % 3] = guess
    vectors = vae.codebook.weight[visual_tokens].permute(0, 3, 1, 2)
    pixels = torch.nn.functional.interpolate((vae.decoder(vectors) + 1) / 2, (12, 12), mode="bicubic", antialias=True)
    expected = torch.stack([(pixels[:, c].clamp(0, 1) - mean[c]) / std[c] for c in range(3)], 1)
    assert_close(found.prediction, expected.detach())
    assert torch.equal(found.mask, mask) and "visual tokens" in found.note
    method.tokenizer = PatchTokens(DallE(4, 7, 1), 3, mean, std)
    with pytest.raises(UserError, match="DallE, which has no decoder"):
        method.reconstruction(images)


def test_what_hides_nothing_says_so(run: OpenedRun, tmp_path: Path) -> None:
    other = opened(fit(config("byol", "--trainer.max_epochs=1", "--optim.warmup_epochs=0"), tmp_path).folder)
    with pytest.raises(LeftOut, match="byol predicts no pixels"):
        reconstruction.draw(other, 2)
    with pytest.raises(LeftOut, match="byol hides no patches"):
        masks.draw(other, 2)


# --- what training saw


@pytest.mark.parametrize("name", ["mae", "simmim", "cae", "beit", "ibot", "dinov2"])
def test_views_and_masks_are_those_that_training_saw(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = dict.fromkeys(("mae", "cae"), "split_patches") | dict.fromkeys(("simmim", "beit"), "draw_mask")
    draws = places.get(name, "draw_masks")
    views: list[list[torch.Tensor]] = []
    hidden: list[Any] = []
    training = False
    original: Callable[..., Any] = Method.training_step

    def step(self: Any, batch: Any, number: int) -> Any:
        nonlocal training
        views.append([view.clone() for view in batch.views])
        training = True
        loss = original(self, batch, number)
        training = False
        return loss

    def spied(self: Any, *args: Any) -> Any:
        drawn = real(self, *args)
        if training:
            hidden.append(drawn)
        return drawn

    from ssl_bench.config import registry

    cls = registry.load(registry.find("methods", name))
    real = getattr(cls, draws)
    monkeypatch.setattr(Method, "training_step", step)
    monkeypatch.setattr(cls, draws, spied)
    run = opened(fit(config(name), tmp_path).folder)
    assert len(views) == len(hidden) == 4
    batch, images = run.batch
    assert len(batch.views) == len(views[2]) and run.epoch == 1
    assert all(torch.equal(a, b) for a, b in zip(batch.views, views[2], strict=True))  # the last epoch's first batch
    assert not torch.equal(batch.views[0], views[0][0])
    found = run.masks()
    if draws == "split_patches":
        expected = torch.zeros_like(found[0])
        for row, places in enumerate(hidden[2][1].tolist()):
            expected[row, places] = True
        expected = expected[None]
    else:
        expected = hidden[2].view_as(found)
    assert torch.equal(found, expected) and 0 < found.float().mean() < 1
    pool: Any = run.data.pretrain
    rows = batch.index[: len(images)]
    assert_close(images, pool.images[rows].float() / 255)


def test_covered_are_the_hidden_patches() -> None:
    view, mask = torch.full((3, 6, 6), 0.25), torch.tensor([1, 0, 0, 0, 0, 1, 0, 0, 0], dtype=torch.bool)
    found = masks.cover(view, mask)
    hidden = {(y, x) for y in range(6) for x in range(6) if (found[:, y, x] != 0.25).all()}
    assert hidden == {(y, x) for y in (0, 1) for x in (0, 1)} | {(y, x) for y in (2, 3) for x in (4, 5)}


def test_views_are_shown_without_their_normalisation(run: OpenedRun) -> None:
    mean, std = run.statistics
    views = torch.rand(2, 3, 8, 8)
    normal = torch.stack([(views[:, c] - mean[c]) / std[c] for c in range(3)], 1)
    assert_close(run.unnormalised(normal), views)


# --- attention


def beit(shared: bool) -> Backbone:
    torch.manual_seed(0)
    args = {"init_values": 0.1, "use_shared_rel_pos_bias": shared, "use_rel_pos_bias": not shared}
    options = BackboneOptions("beit_base_patch16_224", 12, 4, 16, depth=2, num_heads=2, timm_args=args)
    network = Backbone(options).eval()
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if "relative" in name or "bias" in name else 0.2)
    return network


def vit(**args: Any) -> Backbone:
    torch.manual_seed(0)
    options = BackboneOptions("vit_pico_patch4_32", 12, 4, 16, depth=2, num_heads=2, timm_args=args or None)
    network = Backbone(options).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network


def relative(table: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """(heads,) of BEiT's table for query i and key j on a grid of 3 x 3 behind a class token."""
    if i == 0 or j == 0:
        return table[-1 if i == j else -3 if i == 0 else -2]
    (y, x), (v, u) = divmod(i - 1, 3), divmod(j - 1, 3)
    return table[(y - v + 2) * 5 + (x - u + 2)]


def scores(network: Backbone, images: torch.Tensor) -> tuple[torch.Tensor, Any, torch.Tensor]:
    """(B, 2, T, T) logits of the last block by loops, that block's layer, and its (B, T, 16) input."""
    seen: list[torch.Tensor] = []
    model: Any = network.model
    layer = model.blocks[-1].attn
    handle = model.blocks[-1].norm1.register_forward_hook(lambda m, i, out: seen.append(out))
    with torch.no_grad():
        model.forward_features(images)  # timm's own way
    handle.remove()
    tokens = seen[0]
    own = layer.qkv.bias
    if own is None:
        own = torch.cat([layer.q_bias, torch.zeros(16), layer.v_bias])
    projected = tokens @ layer.qkv.weight.T + own  # (B, T, 48)
    count = tokens.shape[1]
    logits = torch.zeros(len(images), 2, count, count)
    table = getattr(layer, "relative_position_bias_table", None)
    if getattr(model, "rel_pos_bias", None) is not None:
        table = model.rel_pos_bias.relative_position_bias_table
    for b in range(len(images)):
        for head in range(2):
            for i in range(count):
                for j in range(count):
                    query = projected[b, i, 8 * head : 8 * head + 8]
                    key = projected[b, j, 16 + 8 * head : 16 + 8 * head + 8]
                    logits[b, head, i, j] = (query * key).sum() / math.sqrt(8)
                    if table is not None:
                        logits[b, head, i, j] += relative(table, i, j)[head]
    return logits, layer, tokens


NETWORKS: dict[str, Callable[[], Backbone]] = {
    "vit": vit,
    "beit, one table": lambda: beit(True),
    "beit, a table a block": lambda: beit(False),
    "registers": lambda: vit(reg_tokens=2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_attention_is_the_softmax_of_scaled_products(name: str) -> None:
    network, images = NETWORKS[name](), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        found = attention.attention(network, images)
        logits, _, _ = scores(network, images)
        assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
        assert_close(found, logits.softmax(-1), atol=1e-5, rtol=1e-4)
        maps = attention.over_patches(network, images)
    assert maps.shape == (2, 2, 3, 3)
    assert_close(maps.flatten(2), found[:, :, 0, network.prefix :])  # of the class token


def test_attention_is_what_the_block_itself_uses() -> None:
    network, images = beit(True), torch.randn(2, 3, 12, 12)
    out: list[torch.Tensor] = []
    with torch.no_grad():
        _, layer, tokens = scores(network, images)
        handle = layer.register_forward_hook(lambda m, i, result: out.append(result))
        network.tokens(images)
        handle.remove()
        values = (tokens @ layer.qkv.weight[32:].T + layer.v_bias).unflatten(2, (2, 8)).transpose(1, 2)
        mixed = (attention.attention(network, images) @ values).transpose(1, 2).flatten(2)
        assert_close(layer.proj(mixed), out[0], atol=1e-5, rtol=1e-4)


def test_without_a_class_token_the_mean_query_looks() -> None:
    network, images = vit(class_token=False, global_pool="avg"), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        logits, _, _ = scores(network, images)  # linear in the query: the mean of its rows is that of its queries
        expected = logits.mean(2).softmax(-1)
        assert_close(attention.over_patches(network, images).flatten(2), expected, atol=1e-5, rtol=1e-4)


def test_the_lightest_place_of_a_map_is_its_largest_value() -> None:
    values = torch.zeros(4, 4)
    values[1, 2] = 0.3
    shades = np.asarray(attention.heat(values, 32).convert("L")).astype(int)
    y, x = np.unravel_index(shades.argmax(), shades.shape)
    assert (y // 8, x // 8) == (1, 2)
    lightness = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in attention.SHADES]
    assert lightness == sorted(lightness)  # so that it reads in gray


# --- neighbours, map


def test_neighbours_are_those_of_a_search_by_force(run: OpenedRun) -> None:
    places = run.chosen(6)
    similarity, found = neighbours.nearest(run, places)
    test, train = neighbours.labelled(run)
    asked = run.network.features(test, "cls").double().numpy()[places]
    bank = run.network.features(train, "cls").double().numpy()
    for q in range(6):
        cosines = [float(asked[q] @ row / np.linalg.norm(asked[q]) / np.linalg.norm(row)) for row in bank]
        best = np.argsort(cosines)[::-1][: found.shape[1]]
        assert sorted(best) == sorted(found[q].tolist())
        assert similarity[q].tolist() == pytest.approx([cosines[n] for n in found[q]], abs=1e-5)
        assert similarity[q].tolist() == sorted(similarity[q].tolist(), reverse=True)


def test_right_and_wrong_are_counted_and_told_apart_without_colour(run: OpenedRun) -> None:
    drawn = neighbours.draw(run, 5)
    test, train = neighbours.labelled(run)
    places = run.chosen(5)
    _, found = neighbours.nearest(run, places)
    right = sum(train.labels[n] == test.labels[p] for p, row in zip(places, found, strict=True) for n in row.tolist())
    assert f"{right} of these {found.numel()} neighbours" in drawn.caption
    from PIL import Image, ImageDraw

    from ssl_bench.figures.drawing import frame, sign

    gray = []
    for mark in ("right", "wrong"):
        image = Image.new("RGB", (60, 60), "white")
        sign(ImageDraw.Draw(image), (2, 2), mark)
        frame(ImageDraw.Draw(image), (20, 20, 58, 58), mark)
        gray.append(np.asarray(image.convert("L")) < 128)
    assert (gray[0] != gray[1]).sum() > 50


def test_images_are_of_each_class_in_turn_and_the_same_again(run: OpenedRun) -> None:
    chosen = run.chosen(20)
    labels = run.shown.labels[chosen]
    assert sorted(labels[:10]) == sorted(labels[10:]) == list(range(10)) and len(set(chosen.tolist())) == 20
    assert np.array_equal(chosen[:7], run.chosen(7))


def test_the_map_has_each_class_as_often_and_is_the_same_again(run: OpenedRun) -> None:
    places, labels = feature_map.sample(run)
    assert len(set(places.tolist())) == len(places)
    assert np.array_equal(run.shown.labels[places], labels)
    assert max(np.bincount(labels)) - min(np.bincount(labels)) <= 10  # digits has a few more of some
    few = np.random.default_rng(0).normal(size=(40, 6))
    few[:20] += 10
    points = feature_map.embedding(few)
    assert np.array_equal(points, feature_map.embedding(few)) and points.shape == (40, 2)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag([np.inf] * 40)
    nearest = distance.argmin(1)
    assert ((nearest < 20) == (np.arange(40) < 20)).all()  # two groups stay two
    assert feature_map.embedding(np.zeros((12, 4))).shape == (12, 2)


def test_each_class_of_a_map_has_a_style_of_its_own() -> None:
    colours, shapes = len(feature_map.COLOURS), len(feature_map.SHAPES)
    assert colours * shapes >= feature_map.CLASSES
    styles = feature_map.styles(feature_map.CLASSES)
    assert len(set(styles)) == feature_map.CLASSES


def test_points_of_a_map_have_the_colour_of_their_class() -> None:
    points = np.array([[0.0, 0.0], [0.0, 10.0], [10.0, 0.0], [10.0, 10.0]])
    which = np.array([0, 1, 2, 1])
    image = feature_map.scatter(points, which, feature_map.styles(3), ["a", "b", "c"]).convert("RGB")
    for (x, y), k in zip(points, which, strict=True):
        at = [16 + 10 + round(v / 10 * (feature_map.SIZE - 20)) for v in (x, y)]
        found = np.array(image.getpixel((at[0], at[1])))
        colours = [np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in feature_map.COLOURS]
        assert np.abs(colours - found).max(1).argmin() == k and np.abs(colours[k] - found).max() < 16
