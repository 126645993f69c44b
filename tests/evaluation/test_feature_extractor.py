"""Frozen backbones, their features and the cache of them."""

import json
import os
import socket
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resized_crop

from ssl_bench.augment.geometry import draw_boxes
from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation import feature_bank, feature_extractor
from ssl_bench.evaluation.cost import Cost
from ssl_bench.evaluation.evaluation import moments
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.models.backbone import Backbone
from ssl_bench.runtime.distributed import distributed_context
from ssl_bench.runtime.precision import full_precision
from ssl_bench.runtime.seeds import derive

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Network(nn.Module):
    """What a training pass would change: batch norm, dropout. Counts its forward passes."""

    feature_types = ("cls", "avg", "cls+avg")
    primary_feature_type = "cls"
    img_size = 4
    spec = {"architecture": "fake"}

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(48, 5)
        self.norm = nn.BatchNorm1d(5)
        self.passes = 0

    def features(self, images: Tensor, feature_types: tuple[str, ...]) -> dict[str, Tensor]:
        self.passes += 1
        cls = torch.dropout(self.norm(self.linear(images.flatten(1))), 0.5, self.training)
        return {feature_type: {"cls": cls, "avg": cls[:, :3] ** 2}[feature_type] for feature_type in feature_types}


def pool(count: int = 30, size: int = 4, seed: int = 0) -> ResidentPool:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return ResidentPool(images=images, labels=np.arange(count) % 3, ids=[f"image {i}" for i in range(count)])


@pytest.fixture
def split() -> TrainSplit:
    return TrainSplit(pool(), np.random.default_rng(0).permutation(30)[:20])


def frozen(network: nn.Module | None = None, cache_dir: Path | None = None, **given: object) -> FeatureExtractor:
    about = {"mean": MEAN, "std": STD, "identity": {"branch": "encoder"}, "batch_size": 7} | given
    return FeatureExtractor(network or Network(), cache_dir=cache_dir, **about)


def direct(network: Network, split: TrainSplit) -> Tensor:
    """cls+avg of the split's images, as plainly as it can be written."""
    network.eval()
    rows = []
    for row in split.rows:
        image = (split.pool.images[int(row)].double() / 255).float()
        image = (image - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        rows.append(torch.cat(list(network.features(image[None], ("cls", "avg")).values()), 1))
    return torch.cat(rows).detach()


def test_features_are_the_networks_in_the_splits_order(split: TrainSplit) -> None:
    expected = direct(Network(), split)
    backbone = frozen()
    both = backbone.features(split, "cls+avg")
    torch.testing.assert_close(both, expected, rtol=2**-11, atol=1e-6)
    assert both.dtype == torch.float32
    assert torch.equal(both, torch.cat([backbone.features(split, "cls"), backbone.features(split, "avg")], 1))
    assert torch.equal(both[3:9], backbone.features(split, "cls+avg", slice(3, 9)))
    assert torch.equal(both[[4, 2]], backbone.features(split, "cls+avg", torch.tensor([4, 2])))


def test_one_pass_gives_all_kinds(split: TrainSplit) -> None:
    backbone = frozen()
    for feature_type in backbone.feature_types:
        backbone.features(split, feature_type)
    assert backbone.network.passes == 1 + 3 + 1  # widths, ceil(20 / 7) batches, FLOPs


def test_frozen_whoever_calls_train(split: TrainSplit) -> None:
    network = Network()
    backbone = frozen(network)
    before = backbone.state_hash()
    backbone.train().network.train()
    torch.testing.assert_close(backbone.features(split, "cls+avg"), direct(Network(), split), rtol=2**-11, atol=1e-6)
    assert backbone.state_hash() == before
    assert not any(p.requires_grad for p in backbone.network.parameters())
    assert network.training and all(p.requires_grad for p in network.parameters()), "the caller's is left alone"


@pytest.mark.parametrize("name", ["linear.weight", "norm.running_mean"])
def test_state_hash_sees_parameters_and_buffers(name: str) -> None:
    backbone = frozen()
    before = backbone.state_hash()
    backbone.network.state_dict()[name].view(-1)[0] += 1e-6
    assert backbone.state_hash() != before


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UserError, match="'gap': its feature types are cls, avg"):
        frozen().features(TrainSplit(pool(), np.arange(3)), "gap")


def test_tiny_and_huge_features_keep_float16s_precision(split: TrainSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = torch.tensor([1e-12, 1.0, 3e4, 1e9, 0.0])
    network = Network()
    monkeypatch.setattr(Network, "feature_types", ("cls",))
    monkeypatch.setattr(Network, "features", lambda self, x, feature_types: {"cls": x.flatten(1)[:, :5] * scale.to(x)})
    kept = frozen(network).features(split, "cls")
    exact = torch.stack([split.pool.images[int(r)].float() / 255 for r in split.rows])
    exact = ((exact - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]).flatten(1)[:, :5] * scale
    assert ((kept - exact).abs() <= exact.abs() * 2**-11 + exact.abs().amax(0) * 2**-25).all()


def test_diverged_features_are_refused(split: TrainSplit) -> None:
    network = Network()
    network.linear.weight.data[0, 0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        frozen(network).features(split, "cls")


def test_moments_against_numpy(split: TrainSplit) -> None:
    validation = ValidationSplit(split.pool, np.setdiff1d(np.arange(30), split.rows))
    backbone = frozen()
    mean, variance = moments(backbone, [split, validation], "cls+avg")
    every = torch.cat([backbone.features(s, "cls+avg") for s in (split, validation)]).double().numpy()
    np.testing.assert_allclose(mean, every.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(variance, every.var(0), rtol=1e-12)


@pytest.mark.parametrize("change", ["missing", "twice"])
def test_a_bank_holds_each_image_exactly_once(split: TrainSplit, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = list(feature_extractor.evaluation_batches(split, 4, 7))
    batches = batches[:-1] if change == "missing" else [*batches, batches[0]]
    monkeypatch.setattr(feature_extractor, "evaluation_batches", lambda *_: batches)
    with pytest.raises(RuntimeError, match={"missing": "6 of 20 images missing", "twice": "7 seen more than"}[change]):
        frozen().features(split, "cls")


# --- the cache


def test_features_are_found_again(split: TrainSplit, tmp_path: Path) -> None:
    first = frozen(cache_dir=tmp_path)
    expected = first.features(split, "cls+avg")
    second = frozen(cache_dir=tmp_path)
    assert torch.equal(second.features(split, "cls+avg"), expected)
    assert second.network.passes == 0
    assert second.spent == Cost() and second.used == first.used
    assert [file.name[:6] for file in tmp_path.iterdir()] == ["train-"]


CHANGES = {
    "weights": {"network": Network(1)},
    "branch": {"identity": {"branch": "teacher"}},
    "mean": {"mean": (0.5, 0.4, 0.31)},
    "std": {"std": (0.2, 0.25, 0.31)},
}


OTHERS = ["rows", "order", "images", "split", "size", "architecture", "feature_types", "version", "pillow"]


@pytest.mark.parametrize("change", [*CHANGES, *OTHERS])
def test_whatever_features_depend_on_is_in_the_key(
    split: TrainSplit, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen(cache_dir=tmp_path).features(split, "cls")
    other = {
        "rows": TrainSplit(split.pool, split.rows[:-1]),
        "order": TrainSplit(split.pool, split.rows[::-1].copy()),
        "images": TrainSplit(pool(seed=1), split.rows),
        "split": ValidationSplit(split.pool, split.rows),
    }.get(change, split)
    network = Network()
    if change == "size":
        monkeypatch.setattr(FeatureExtractor, "geometry", {"img_size": 5})
    if change == "architecture":
        network.spec = {"architecture": "another"}
    if change == "feature_types":
        network.feature_types = ("cls",)
    if change == "version":
        monkeypatch.setattr(feature_extractor.torch, "__version__", "0.0")
    if change == "pillow":
        monkeypatch.setattr(feature_extractor, "version", lambda name: "0.0" if name == "pillow" else version(name))
    backbone = frozen(**({"network": network} | CHANGES.get(change, {})), cache_dir=tmp_path)
    backbone.features(other, "cls")
    assert backbone.network.passes > 0


def _spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how == "truncated":
        file.write_bytes(content[:-10])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "flipped bit":
        file.write_bytes(content[:-10] + bytes([content[-10] ^ 1]) + content[-9:])
    else:
        tensors = safetensors.torch.load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        header["fields"] = header["fields"].replace('"branch": "encoder"', '"branch": "teacher"')
        safetensors.torch.save_file(tensors, file, metadata=None if how == "unlabelled" else header)


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped bit", "of another branch", "unlabelled"])
def test_a_file_that_is_not_whole_and_ours_is_never_loaded(
    split: TrainSplit, how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = frozen(cache_dir=tmp_path).features(split, "cls+avg")
    (file,) = tmp_path.iterdir()
    _spoil(file, how)
    again = frozen(cache_dir=tmp_path)
    assert torch.equal(again.features(split, "cls+avg"), expected)
    assert again.network.passes > 0
    assert "computing these features again" in capsys.readouterr().err
    third = frozen(cache_dir=tmp_path)
    assert torch.equal(third.features(split, "cls+avg"), expected)
    assert third.network.passes == 0, "the file was replaced"


def test_a_crash_leaves_no_file(split: TrainSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_bank.safetensors.torch, "save_file", crash)
    with pytest.raises(KeyboardInterrupt):
        frozen(cache_dir=tmp_path).features(split, "cls")
    assert list(tmp_path.iterdir()) == []


# --- cost, precision, pixels


def test_cost_of_a_vit_by_hand() -> None:
    options = BackboneOptions(name="vit_nano_patch4_32", img_size=16, patch_size=4, width=24, depth=2, num_heads=2)
    backbone = FeatureExtractor(Backbone(options), MEAN, STD, {})
    patches, d = 16, 24
    tokens = patches + 1
    block = 2 * tokens * d * d * (3 + 1 + 4 + 4) + 2 * (
        2 * tokens * tokens * d
    )  # weights, then attention's two products
    assert backbone.flops_per_image == 2 * block + 2 * patches * 48 * d
    images = TrainSplit(pool(6, 16), np.arange(6))
    backbone.features(images, "cls")
    assert backbone.used["train"].images == 6
    assert backbone.used["train"].flops == 6 * backbone.flops_per_image
    assert backbone.spent == backbone.used["train"]
    assert set(backbone.feature_types) >= {"cls", "avg", "cls+avg", "cls_raw"}


def test_one_line_where_there_is_no_terminal(
    split: TrainSplit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen().features(split, "cls")
    assert capsys.readouterr().err == ""  # what is over at once is not worth a line
    clock = iter(range(0, 10_000, 6))
    monkeypatch.setattr("ssl_bench.evaluation.cost.time.perf_counter", lambda: next(clock))
    frozen().features(split, "cls")
    error = capsys.readouterr().err
    assert error.startswith("features of the train images: 20 in ") and error.count("\n") == 1


def test_full_precision_whatever_is_switched_on() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(64, 256), torch.randn(256, 64)
    expected = a @ b
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with full_precision():
            assert torch.equal(a @ b, expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_pixels_are_the_normalised_pixels() -> None:
    images = pool(5, 8)
    backbone = FeatureExtractor(Pixels(8), MEAN, STD, {})
    kept = backbone.features(TrainSplit(images, np.arange(5)), "pixels").numpy()
    plain = images.images.numpy() / 255
    plain = (plain - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    np.testing.assert_allclose(kept, plain.reshape(5, -1), rtol=2**-11, atol=1e-6)
    assert backbone.flops_per_image == 0


def test_pixels_of_photographs_are_few() -> None:
    backbone = FeatureExtractor(Pixels(224), MEAN, STD, {})
    assert backbone.img_size == 32
    assert backbone.features(TrainSplit(pool(2, 64), np.arange(2)), "pixels").shape == (2, 3 * 32 * 32)


# --- random crops of images


def test_a_views_features_are_those_of_each_images_own_crop() -> None:
    split = TrainSplit(pool(size=12), np.random.default_rng(0).permutation(30)[:20])
    network = Network()
    network.img_size = 4
    backbone = frozen(network)
    generator = torch.Generator().manual_seed(derive(3))
    view = feature_extractor.crops(4)
    boxes = draw_boxes(30, 12, 12, view.scale, view.ratio, generator)
    flips = torch.rand(30, generator=generator) < 0.5
    rows = []
    for row in split.rows.tolist():
        image = split.pool.images[row].float() / 255
        crop = resized_crop(image, *boxes[row].tolist(), [4, 4], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        rows.append(backbone.embed((crop.flip(-1) if flips[row] else crop)[None])["cls"])
    expected = torch.cat(rows)
    found = backbone.features(split, "cls", view=3)
    torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-4)
    assert torch.equal(found, frozen(network, batch_size=20).features(split, "cls", view=3))
    few = TrainSplit(split.pool, split.rows[4:9])
    torch.testing.assert_close(backbone.features(few, "cls", view=3), found[4:9], rtol=2**-10, atol=1e-6)
    for other in (backbone.features(split, "cls", view=4), backbone.features(split, "cls")):
        assert (other - found).abs().max() > 0.05
    assert set(backbone.used) == {"train-view3", "train-view4", "train"}


def test_each_view_is_kept_in_a_file_of_its_own(split: TrainSplit, tmp_path: Path) -> None:
    first = frozen(cache_dir=tmp_path).features(split, "cls", view=0)
    frozen(cache_dir=tmp_path).features(split, "cls", view=1)
    assert len(list(tmp_path.glob("train-view0-*"))) == len(list(tmp_path.glob("train-view1-*"))) == 1
    again = Network()
    found = frozen(again, cache_dir=tmp_path)
    passes = again.passes
    assert torch.equal(found.features(split, "cls", view=0), first) and again.passes == passes


def test_a_trainable_copy_learns_alone() -> None:
    options = BackboneOptions(name="vit_nano_patch4_32", img_size=8, width=24, depth=1, num_heads=2)
    backbone = frozen(Backbone(options))
    before = backbone.state_hash()
    copied = backbone.trainable()
    assert copied.training and all(p.requires_grad for p in copied.parameters())
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(1)
    assert backbone.state_hash() == before
    with pytest.raises(UserError, match="raw pixels have no network"):
        frozen(Pixels(4)).trainable()


@pytest.mark.parametrize("name", ["vit_nano_patch4_32", "resnet18"])
def test_tokens_are_of_all_places(name: str) -> None:
    small = {"width": 24, "depth": 1, "num_heads": 2} if "vit" in name else {"small_stem": True}
    network = Backbone(BackboneOptions(name=name, img_size=8, **small)).eval()
    backbone = frozen(network)
    images = torch.rand(2, 3, 8, 8)
    tokens = backbone.tokens(images)
    if "vit" in name:
        assert tokens.shape == (2, 5, 24)
        torch.testing.assert_close(tokens[:, 0], backbone.embed(images)["cls"])
    else:
        assert tokens.shape == (2, 1, 512)
        torch.testing.assert_close(tokens.mean(1), backbone.embed(images)["gap"])


def _as_one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    with distributed_context("cpu"):
        split = TrainSplit(pool(), np.random.default_rng(0).permutation(30)[:21])
        backbone = frozen(cache_dir=Path(folder))
        for view in (None, 1):
            torch.save(backbone.features(split, "cls", view=view), f"{folder}/{rank}-{view}.pt")
        torch.save(torch.tensor(backbone.network.passes), f"{folder}/{rank}-passes.pt")


@pytest.mark.integration
def test_two_processes_share_a_pass_and_have_the_features_of_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_as_one_of_two, (port, str(tmp_path)), nprocs=2)
    split = TrainSplit(pool(), np.random.default_rng(0).permutation(30)[:21])
    alone = frozen()
    for view in (None, 1):
        expected = alone.features(split, "cls", view=view)
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{rank}-{view}.pt")
            torch.testing.assert_close(found, expected, rtol=2**-10, atol=1e-6)  # batches differ, so may last bits
    passes = [int(torch.load(tmp_path / f"{rank}-passes.pt")) for rank in (0, 1)]
    assert max(passes) < alone.network.passes, "each process saw half of the images"
    assert len(list(tmp_path.glob("train-*.safetensors"))) == 2, "one file per bank, written once"


@pytest.mark.parametrize("fault", ["a file in its place", "no room"])
def test_features_serve_without_a_cache_that_cannot_be_written(
    fault: str, tmp_path: Path, split: TrainSplit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "features"
    expected = frozen().features(split, "cls")
    if fault == "no room":

        def full(*given: object, **more: object) -> None:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

        monkeypatch.setattr("safetensors.torch.save_file", full)
    else:
        folder.write_text("")
    backbone = frozen(cache_dir=folder)
    assert backbone.features(split, "cls").equal(expected)
    assert backbone.features(split, "cls", view=0).shape == expected.shape
    said = capsys.readouterr().err
    assert said.count("warning: features cannot be kept in") == 1 and said.count("\n") == 1
    assert not folder.is_dir() or not list(folder.iterdir()), "nothing half-written stays"


def test_a_pipe_in_the_place_of_a_cache_file_is_not_waited_for(tmp_path: Path, split: TrainSplit) -> None:
    expected = frozen(cache_dir=tmp_path).features(split, "cls")
    (file,) = tmp_path.iterdir()
    file.unlink()
    os.mkfifo(file)
    assert frozen(cache_dir=tmp_path).features(split, "cls").equal(expected)
    assert file.is_file(), "it is a file again"
