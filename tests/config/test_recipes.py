"""Recipes are chosen by what images are, not by a folder's name; what they cost is said."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ssl_bench.config import registry
from ssl_bench.config.fit_config import FitConfig, parse_fit
from ssl_bench.config.layers import flatten, read_yaml
from ssl_bench.config.recipes import Images, patch_for, recipe_for
from ssl_bench.data.catalogue import CATALOGUE
from ssl_bench.data.image_summary import image_summary
from ssl_bench.models.timm_arguments import patch_size_in
from ssl_bench.pretraining.fit_cost import described, image_flops, image_size

METHODS = sorted(registry.names("methods"))
NAMED = [name for name in CATALOGUE if name not in ("folder", "parquet")]
TEACHER = ["--method.teacher=."]


def parse(method: str, *flags: str, data: str = "digits") -> FitConfig:
    teacher = TEACHER if method == "simclrv2-distill" else []
    return parse_fit(["--method", method, "--data", data, *teacher, *flags], {}, image_summary)


def images(folder: Path, size: tuple[int, int], count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.full((size[1], size[0], 3), number % 255, dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def test_a_folders_name_says_nothing(tmp_path: Path) -> None:
    configs = []
    for name in ("cifar10", "shards", "digits-canvas", "finetune"):
        folder = images(tmp_path / name, (32, 32), 50)
        config = parse("mae", f"--data.root={folder}", data="folder").config
        configs.append({**config, "data": {**config["data"], "root": None}})
    assert all(config == configs[0] for config in configs)
    assert configs[0]["backbone"]["name"] == "vit_micro_patch4_32" and configs[0]["backbone"]["patch_size"] is None


def test_size_and_number_choose(tmp_path: Path) -> None:
    small = images(tmp_path / "small", (28, 28), 30)
    large = images(tmp_path / "large", (160, 120), 5)
    mixed = images(tmp_path / "mixed", (30, 34), 3)
    images(mixed / "more", (40, 30), 1)
    assert image_summary({"name": "folder", "root": str(small)}) == Images("", 28, 30)
    assert image_summary({"name": "folder", "root": str(large)}) == Images("", None, 5)
    assert image_summary({"name": "folder", "root": str(mixed)}) == Images("", 30, 4, one_size=False)
    assert image_summary({"name": "folder", "root": str(tmp_path / "nowhere")}) == Images()
    assert parse("mae", f"--data.root={large}", data="folder").recipe == "mae"
    config = parse("mae", f"--data.root={mixed}", data="folder").config
    assert (config["data"]["image_size"], config["backbone"]["patch_size"]) == (32, None)
    names = {count: recipe_for("mae", Images("", 32, count)) for count in (500, 9_999, 10_000, 10**6, None)}
    assert [recipe.name for recipe in names.values() if recipe] == ["mae-digits-canvas"] * 2 + ["mae-cifar10"] * 3


def test_parquet_is_looked_at(tmp_path: Path) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(buffer, "png")
    column = [{"bytes": buffer.getvalue(), "path": f"{n}.png"} for n in range(7)]
    pq.write_table(pa.table({"image": column, "label": list(range(7))}), tmp_path / "train-0.parquet")
    assert image_summary({"name": "parquet", "root": str(tmp_path)}) == Images("", 32, 7)
    assert image_summary({"name": "parquet", "root": str(tmp_path / "train-0.parquet")}) == Images("", 32, 7)
    (tmp_path / "train-0.parquet").write_bytes(b"damaged")
    assert image_summary({"name": "parquet", "root": str(tmp_path)}) == Images()


@pytest.mark.parametrize("method", METHODS)
def test_recipes_of_named_sets_stay_as_they_are(method: str) -> None:
    """The file over the method's own numbers, and nothing else."""
    for name, file in registry.recipes():
        data = next((data for data in NAMED if name == f"{method}-{data}"), None)
        if data is not None:
            fitted, plain = parse(method, data=data), parse(method, f"--recipe={name}", data=data)
            assert fitted.recipe == name and fitted.config == plain.config and not fitted.notes
            written = flatten(read_yaml(file), name)
            assert {key: value for key, value in flatten(fitted.config, "").items() if key in written} == written


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.integration
def test_every_method_has_numbers_for_every_set(method: str) -> None:
    for data in NAMED:
        parsed = parse(method, data=data)
        size, backbone = image_size(parsed), parsed.config.get("backbone", {})
        assert parsed.images.count == CATALOGUE[data].images, data
        patch = backbone.get("patch_size") or patch_size_in(backbone.get("name", "")) or 16
        if "patch" in backbone.get("name", ""):
            assert size % patch == 0 and size // patch >= 4, (data, size, patch)
        said = described(parsed)
        assert said.startswith(f"recipe {parsed.recipe}") and f"at {size} px" in said, said
        counted = parsed.images.count is not None  # not of sets that are read from the user's folders
        assert "--trainer.max_epochs" in said and (method == "dvae" or ("about" in said) == counted), said
        if counted:
            assert (f", for {parsed.images.count:,} images of" in said) == bool(parsed.chosen), said


@pytest.mark.integration
@pytest.mark.parametrize("method", METHODS)
def test_digits_can_be_trained_on_by_every_method(method: str, tmp_path: Path) -> None:
    """The networks and heads are built, and see their views."""
    from ssl_bench.models.backbone import Backbone
    from ssl_bench.models.classifier import Classifier, save_classifier
    from ssl_bench.models.saved_backbone import write_backbone
    from ssl_bench.pretraining.building import build

    if method == "simclrv2-distill":
        from ssl_bench.config.options import BackboneOptions

        backbone = Backbone(BackboneOptions("resnet_nano", img_size=8))
        write_backbone(tmp_path, backbone, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        save_classifier(tmp_path, Classifier(backbone.dim, 10), tuple(str(digit) for digit in range(10)))
    flags = [f"--method.teacher={tmp_path}"] if method == "simclrv2-distill" else []
    config = parse(method, *flags).config
    _, built, _ = build(config)
    assert all(view.size >= 4 for view in built.views())
    assert max(view.size for view in built.views()) == 8


@pytest.mark.parametrize(
    ("size", "patch"), [(8, 2), (12, 2), (16, 2), (20, 2), (28, 4), (32, 4), (36, 4), (48, 6), (64, 8), (96, 12)]
)
def test_patches(size: int, patch: int) -> None:
    assert patch_for(size) == patch and 4 <= size // patch <= 10


def test_the_users_own_options_win() -> None:
    config = parse("mae", "--trainer.max_epochs=3", "--backbone.patch_size=4", "--backbone.img_size=32").config
    assert config["trainer"]["max_epochs"] == 3 and config["optim"]["warmup_epochs"] == 1  # the recipe's own
    assert (config["backbone"]["patch_size"], config["backbone"]["img_size"]) == (4, 32)
    assert parse("mae", "--data.image_size=32").config["backbone"]["patch_size"] is None
    other = parse("mae", "--backbone=vit_pico_patch4_32").config["backbone"]
    assert (other["name"], other["patch_size"]) == ("vit_pico_patch4_32", None)


def test_as_many_steps_of_few_images() -> None:
    config = parse("mae").config
    assert config["trainer"]["max_epochs"] == round(4 * 15_000 / 1_287)
    assert config["optim"]["warmup_epochs"] / config["trainer"]["max_epochs"] == pytest.approx(1 / 4, abs=0.01)


def test_a_batch_of_the_users_ends_the_recipes_accumulation(tmp_path: Path) -> None:
    def accumulated(*flags: str, environ: dict[str, str] | None = None) -> tuple[Any, tuple[str, ...]]:
        parsed = parse_fit(["--method", "mae", "--recipe", "mae", *flags], environ or {})
        return parsed.config["trainer"]["accumulate_grad_batches"], parsed.notes

    assert accumulated() == (8, ())
    (tmp_path / "my.yaml").write_text("data: {batch_size: 128}\n")
    variable = {"SSL_BENCH_DATA__BATCH_SIZE": "128"}
    for flags, environ in ((["--data.batch_size=128"], {}), (["-c", str(tmp_path / "my.yaml")], {}), ([], variable)):
        batches, (note,) = accumulated(*flags, environ=environ)
        assert batches == 1 and "--trainer.accumulate_grad_batches 8 is left out" in note
    assert accumulated("--data.batch_size=128", "--trainer.accumulate_grad_batches=8") == (8, ())
    batches, (note,) = accumulated("--optim.base_lr=1e-3")
    assert batches == 8 and "--trainer.accumulate_grad_batches 8 stays" in note


def test_few_photographs_are_not_accumulated(tmp_path: Path) -> None:
    folder = images(tmp_path / "photos", (120, 100), 4)
    assert parse("mae", f"--data.root={folder}", data="folder").config["trainer"]["accumulate_grad_batches"] == 1


@pytest.mark.integration
@pytest.mark.parametrize("method", ["mae", "simmim", "simclr", "byol", "dino"])
def test_flops_by_formula_are_near_those_counted(method: str) -> None:
    from ssl_bench.pretraining.building import build
    from ssl_bench.pretraining.run_record import training_flops

    parsed = parse(method, data="digits-canvas")
    _, built, _ = build(parsed.config)
    estimate = image_flops(parsed.config, image_size(parsed))
    assert estimate is not None
    assert 0.5 < estimate / training_flops(built) < 2


def test_a_method_without_recipes_takes_a_network_without_patches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Patches fitted to small images are those of the network that is named, not of the default one."""
    (tmp_path / "plain_method.py").write_text(PLAIN_METHOD)
    monkeypatch.syspath_prepend(tmp_path)
    for network, patch in (("resnet_nano", None), ("vit_nano_patch4_32", 2)):
        argv = ["--method", "plain_method.Plain", "--data", "digits", "--backbone", network]
        assert parse_fit(argv, {}, look=image_summary).config["backbone"]["patch_size"] == patch


PLAIN_METHOD = '''
from ssl_bench.config.options import Optim
from ssl_bench.models.backbone import Backbone


class Plain:
    """Learns nothing."""

    def __init__(self, backbone: Backbone, optim: Optim = Optim()) -> None: ...
'''
