"""Images of one channel and of thirteen, from the command line to evaluations, baselines and pictures."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_bench.cli.main import main
from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.evaluation_batches import evaluation_batches
from ssl_bench.errors import UserError
from ssl_bench.records.store import load_runs

SMALL = ("--trainer.max_epochs=1", "--data.batch_size=16", "--optim.warmup_epochs=0", "--data.num_workers=0")


def blobs(channels, count=48, side=16, dtype=np.uint16):
    """Two classes, one brighter in the last channel."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 1000, (count, side, side, channels))
    labels = np.arange(count) % 2
    images[labels == 1, 4:12, 4:12, -1] += 2500
    return images.astype(dtype), labels


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of 16-bit gray TIFFs, and an array of thirteen channels."""
    root = tmp_path_factory.mktemp("sets")
    gray, labels = blobs(1)
    for row, label in enumerate(labels):
        (root / "gray" / f"class{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(gray[row, ..., 0]).save(root / "gray" / f"class{label}" / f"{row}.tiff")
    images, labels = blobs(13)
    np.savez(root / "bands.npz", images=images, labels=labels)
    return {"gray": [str(root / "gray"), "--data.channels=1"], "bands": [str(root / "bands.npz")]}


@pytest.mark.parametrize("method", ["simclr", "mae"])
@pytest.mark.parametrize("kind", ["gray", "bands"])
@pytest.mark.integration
def test_fit_evaluate_baselines_and_figures(method, kind, sets, tmp_path, capsys):
    data, runs = ["--data", *sets[kind]], [f"--runs={tmp_path}"]
    network = ["--backbone=vit_pico_patch4_32", "--backbone.img_size=16"]
    assert main(["fit", "--method", method, *data, *network, *SMALL, *runs]) == 0
    folder = capsys.readouterr().out.strip().splitlines()[-1]
    described = json.loads((tmp_path / folder / "backbone.json").read_text())
    channels = 1 if kind == "gray" else 13
    assert (
        described["pretrained_cfg"]["input_size"] == [channels, 16, 16]
        and len(described["pretrained_cfg"]["mean"]) == channels
    )
    targets = [folder, f"random:{folder}", "pixels", "kmeans-patches"]
    assert main(["evaluate", *targets, "--protocols=knn,ridge,robustness", "--device=cpu", *runs]) == 0
    assert "corruptions are of RGB images" in capsys.readouterr().err
    found = [run for run in load_runs([tmp_path]) if run.results]
    assert len(found) == 4 and {result.protocol for run in found for result in run.results} == {"knn", "ridge"}
    assert main(["figures", folder, "--device=cpu", "--images=2"]) == 0
    assert main(["export", folder, "-o", str(tmp_path / "exported")]) == 0  # which compares timm's features with ours
    with Image.open(tmp_path / folder / "figures" / "views.png") as drawn:
        assert drawn.mode in ("RGB", "P") and drawn.width > 16


def test_gray_photographs_keep_their_bits(tmp_path):
    """Larger than what stays in memory: evaluations see more than 256 levels, as the file has them."""
    ramp = np.linspace(0, 65535, 128 * 128).reshape(128, 128).astype(np.uint16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.fromarray(ramp if number else ramp[:, ::-1].copy()).save(tmp_path / name / f"{number}.png")
    data = load_dataset(DataOptions(name="folder", root=str(tmp_path), channels=1, value_range="0,65535"))
    (batch, _), *_ = evaluation_batches(data.train, 128, 4, 0)
    assert batch.shape[1:] == (1, 128, 128) and len(torch.unique(batch[0])) > 2000
    assert data.mean == pytest.approx((0.5,), abs=0.01) and len(data.std) == 1
    rgb = load_dataset(DataOptions(name="folder", root=str(tmp_path), value_range="0,65535"))
    (batch, _), *_ = evaluation_batches(rgb.train, 128, 4, 0)
    assert batch.shape[1] == 3 and len(torch.unique(batch[0])) <= 256


def test_colour_changes_are_for_colours_and_geometry_for_all():
    from ssl_bench.augment.executors import DeviceViews
    from ssl_bench.augment.views import View

    whole = View(8, scale=(1, 1), ratio=(1, 1), flip=0, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=1, solarize=1)
    mirrored = View(8, scale=(1, 1), ratio=(1, 1), flip=1, grayscale=1)
    images = torch.randint(0, 256, (4, 13, 8, 8), dtype=torch.uint8)
    make = DeviceViews([whole, mirrored], (0.0,) * 13, (1.0,) * 13)
    same, flipped = make(images, torch.Generator().manual_seed(0))
    assert torch.allclose(same, images / 255, atol=1e-6) and torch.allclose(flipped, images.flip(-1) / 255, atol=1e-6)


def test_channels_that_do_not_fit_are_refused(sets, tmp_path):
    gray = sets["gray"][0]
    for options, said in (
        ({"name": "folder", "root": gray, "channels": 4}, "save images of other channels as an array"),
        ({"name": "digits", "channels": 1}, "leave it out"),
    ):
        with pytest.raises(UserError, match=said):
            load_dataset(DataOptions(**options))


@pytest.mark.integration
def test_weights_for_rgb_are_fitted_to_thirteen_channels(sets, tmp_path, capsys):
    """timm's rule: the three filters are repeated and scaled, so that responses keep their size."""
    from timm.models import adapt_input_conv

    from ssl_bench.models.saved_backbone import load_backbone

    network = ["--backbone=vit_pico_patch4_32", "--backbone.img_size=16"]
    assert main(["fit", "--method=simclr", "--data=digits", *network, *SMALL, f"--runs={tmp_path}"]) == 0
    rgb = capsys.readouterr().out.strip().splitlines()[-1]
    one = [*SMALL, "--optim.base_lr=1e-30", "--optim.min_lr=0", "--trainer.limit_train_batches=1", "--recipe=continue"]
    argv = ["fit", "--method=simclr", "--data", *sets["bands"], *network, f"--backbone.weights={rgb}", *one]
    assert main([*argv, f"--runs={tmp_path}"]) == 0
    said = capsys.readouterr()
    assert "channels 3 -> 13" in said.err
    before, after = (load_backbone(tmp_path / f)[0].model for f in (rgb, said.out.strip().splitlines()[-1]))
    expected = adapt_input_conv(13, before.patch_embed.proj.weight.detach())
    assert torch.allclose(after.patch_embed.proj.weight, expected, atol=1e-6)
