"""`ssl-bench figures` as a user meets it: what is written, skipped, left out and refused."""

import io
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from figure_runs import config
from paths import GOLDEN, ROOT
from PIL import Image

from ssl_bench.cli.main import main
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import STATISTICS, load_dataset
from ssl_bench.figures import write
from ssl_bench.figures.drawing import LIMIT, Cell, encoded, fitted, folded, font, grid, to_image
from ssl_bench.figures.opened_run import OpenedRun
from ssl_bench.pretraining.training import fit
from ssl_bench.records.run import read_run, write_run

Capture = pytest.CaptureFixture[str]
QUICK = ["reconstruction", "masks", "views"]  # that need no features


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fit(config("mae"), tmp_path_factory.mktemp("runs")).folder


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


def times(run: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in (run / "figures").iterdir() if file.suffix == ".png"}


@pytest.mark.integration
def test_a_run_gets_its_pictures_with_captions(run: Path, capsys: Capture) -> None:
    assert main(["figures", str(run), "--images=3"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(run / "figures")] and "left out" not in said.err
    captions = json.loads((run / "figures" / "figures.json").read_text())
    assert list(captions) == list(write.NAMES)
    assert sorted(p.name for p in (run / "figures").iterdir()) == sorted(
        [f"{name}.png" for name in write.NAMES] + ["figures.json", "state.json"]
    )
    for name in write.NAMES:
        file = run / "figures" / f"{name}.png"
        image = Image.open(file)
        image.load()
        assert file.stat().st_size <= LIMIT and min(image.size) > 100
        assert set(captions[name]) == {"caption", "alt"} and all(len(text) > 20 for text in captions[name].values())
    assert "does not predict" in captions["reconstruction"]["caption"]
    assert "75% of the 16 patches" in captions["masks"]["caption"] and "epoch 2" in captions["views"]["caption"]


@pytest.mark.integration
def test_features_are_shared_with_evaluations(run: Path) -> None:
    assert main(["evaluate", str(run), "--protocols=knn"]) == 0
    before = sorted(p.name for p in (run / "features").iterdir())
    assert main(["figures", str(run), "--only=neighbours"]) == 0
    assert sorted(p.name for p in (run / "features").iterdir()) == before and before


@pytest.mark.integration
def test_what_is_current_is_not_drawn_again(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    only = f"--only={','.join(QUICK)}"
    assert main(["figures", str(run), only]) == 0
    first = times(run)
    assert sorted(first) == sorted(f"{name}.png" for name in QUICK)
    with monkeypatch.context() as patched:
        patched.setattr(write, "load_dataset", lambda options: pytest.fail("opened the images for nothing"))
        assert main(["figures", str(run), only]) == 0
    assert capsys.readouterr().err.count(": current") == 3 and times(run) == first
    assert main(["figures", str(run), only, "--images=2"]) == 0
    second = times(run)
    assert all(second[name] > first[name] for name in first)
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["state_dict"]["mask_token"] += 1
    torch.save(checkpoint, last)
    assert main(["figures", str(run), only, "--images=2"]) == 0
    third = times(run)
    assert all(third[name] > second[name] for name in first)
    (run / "figures" / "views.png").unlink()
    assert main(["figures", str(run), only, "--images=2"]) == 0
    assert {name for name, at in times(run).items() if at > third[name]} == {"views.png"}
    assert main(["figures", str(run), "--only=masks", "--images=2", "--force"]) == 0
    assert times(run)["masks.png"] > third["masks.png"]
    (run / "figures" / "state.json").write_text("[")
    assert main(["figures", str(run), "--only=masks", "--images=2"]) == 0
    assert set(json.loads((run / "figures" / "figures.json").read_text())) == set(QUICK)


@pytest.mark.integration
def test_pictures_come_out_the_same(run: Path, original: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(original, tmp_path / "elsewhere"))
    names = [name for name in write.NAMES if name != "map"]  # which takes seconds, and has a test of its own
    assert main(["figures", str(run), str(other), "--images=2", f"--only={','.join(names)}"]) == 0
    for name in names:
        assert (run / "figures" / f"{name}.png").read_bytes() == (other / "figures" / f"{name}.png").read_bytes()


@pytest.mark.integration
def test_what_makes_no_sense_is_left_out_with_a_reason(tmp_path: Path, capsys: Capture) -> None:
    flags = ["--trainer.max_epochs=1", "--optim.warmup_epochs=0"]
    options = config("byol", *flags)
    options["backbone"] |= {"name": "resnet_micro", "patch_size": None, "depth": None, "width": None}
    folder = fit(options, tmp_path).folder
    (folder / "figures").mkdir()
    (folder / "figures" / "masks.png").write_bytes(b"of an earlier run")
    assert main(["figures", str(folder)]) == 0
    said = capsys.readouterr().err
    assert "reconstruction: left out: byol predicts no pixels" in said
    assert "attention: left out: a ResNet has no attention" in said and "masks: left out: byol hides" in said
    assert sorted(times(folder)) == ["map.png", "neighbours.png", "views.png"]
    assert main(["figures", str(folder)]) == 0
    said = capsys.readouterr().err
    assert said.count(": current") == 3 and said.count("left out") == 3


def test_an_unfinished_run_has_the_pictures_that_it_can_have(run: Path, capsys: Capture) -> None:
    for name in ("backbone.json", "backbone.safetensors"):
        (run / name).unlink()
    write_run(run, replace(read_run(run), status="interrupted", epochs=None))
    assert main(["figures", str(run)]) == 0
    assert capsys.readouterr().err.count("its run is interrupted: there is no backbone yet") == 3
    assert sorted(times(run)) == sorted(f"{name}.png" for name in QUICK)


@pytest.mark.integration
def test_baselines_and_tokenizers(tmp_path: Path, capsys: Capture) -> None:
    options = ["--data=digits", "--backbone.img_size=8", "--backbone.depth=1", f"--runs={tmp_path}", "--protocols=knn"]
    assert main(["evaluate", "random:vit_pico_patch4_32", "pixels", *options]) == 0
    folders = capsys.readouterr().out.splitlines()
    assert main(["figures", *folders, "--only=attention,neighbours,views"]) == 0
    said = capsys.readouterr().err
    assert sorted(times(Path(folders[0]))) == ["attention.png", "neighbours.png"]
    assert sorted(times(Path(folders[1]))) == ["neighbours.png"] and "raw pixels have no attention" in said
    flags = ["--method.vocabulary=8", "--method.dim=4", "--method.hidden_dim=4", "--method.layers=1", "--data=digits"]
    steps = [
        "--data.batch_size=32",
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        "--trainer.accelerator=cpu",
    ]
    dvae = fit(parse_fit(["--method=dvae", *flags, *steps, "--trainer.precision=32-true"], {}).config, tmp_path).folder
    assert main(["figures", str(dvae)]) == 0
    assert sorted(times(dvae)) == ["views.png"]
    assert "it is a tokenizer's run, which has no backbone" in capsys.readouterr().err


def photographs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 6)):
        for name in ("cat", "dög\nwith a very long name"):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


@pytest.mark.integration
def test_a_run_whose_images_have_moved(tmp_path: Path, capsys: Capture) -> None:
    photographs(tmp_path / "photos")
    flags = ["--data=folder", f"--data.root={tmp_path}/photos", "--data.batch_size=8", "--data.num_workers=0"]
    folder = fit(config("mae", *flags, "--data.image_size=8"), tmp_path / "runs").folder
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert main(["figures", str(folder)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ssl-bench: error:") and "--data.root" in error and "photos" in error
    assert not (folder / "figures").exists()
    assert main(["figures", str(folder), f"--data.root={tmp_path}/moved"]) == 0
    assert sorted(times(folder)) == sorted(f"{name}.png" for name in write.NAMES)
    assert "not the images" not in capsys.readouterr().err
    (tmp_path / "moved" / "train" / "cat" / "0.png").unlink()
    assert main(["figures", str(folder), f"--data.root={tmp_path}/moved", "--only=views", "--force"]) == 0
    assert "not the images that the run saw" in capsys.readouterr().err
    assert "would see" in (folder / "figures" / "figures.json").read_text()


def test_unlabelled_images_have_no_neighbours(tmp_path: Path, capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(12):
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{number}.png")
    flags = ["--data=folder", f"--data.root={tmp_path}/photos", "--data.batch_size=8", "--data.image_size=8"]
    folder = fit(config("mae", *flags, "--data.num_workers=0"), tmp_path / "runs").folder
    assert main(["figures", str(folder), "--images=4"]) == 0
    assert capsys.readouterr().err.count("photos has no labels") == 2
    assert "never saw" not in (folder / "figures" / "figures.json").read_text()


def test_an_imported_run_needs_images(tmp_path: Path, capsys: Capture) -> None:
    run, file = tmp_path / "official", GOLDEN / "checkpoints" / "mae_pretrain.pth"
    heads = ["--heads=4", "--method.decoder_heads=4"]
    assert main(["import", str(file), "--format=mae", *heads, "-o", str(run)]) == 0
    assert main(["figures", str(run)]) == 2
    assert "imported and has no images of its own: --data NAME" in capsys.readouterr().err
    assert main(["figures", str(run), "--data=digits", "--only=reconstruction,attention,views", "--images=2"]) == 0
    captions = json.loads((run / "figures" / "figures.json").read_text())
    assert "would see" in captions["views"]["caption"]
    assert list(captions) == ["reconstruction", "attention", "views"] and "never saw" not in str(captions)
    options = DataOptions("digits")
    opened = OpenedRun(run, read_run(run), load_dataset(options), options, False, "cpu")
    assert opened.statistics == STATISTICS["imagenet"]  # what its network was given, not the mean of these images
    (run / "checkpoints" / "last.ckpt").unlink()
    assert main(["figures", str(run), "--data=digits", "--only=masks"]) == 0
    assert "its encoder alone was imported" in capsys.readouterr().err


def test_a_damaged_run_stops_no_other(run: Path, original: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(original, tmp_path / "sound")
    (run / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    assert main(["figures", str(tmp_path), "--only=views"]) == 2
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(tmp_path / "sound" / "figures")]
    assert "last.ckpt is damaged" in said.err.splitlines()[-1]


def test_a_configuration_of_another_version(run: Path, capsys: Capture) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("mask_ratio:", "masked_part:"))
    assert main(["figures", str(run), "--only=views"]) == 0
    said = capsys.readouterr().err
    assert "views: left out: its config.yaml is not of this version: no option --method.masked_part" in said
    assert "ssl-bench fit" not in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere"], "nowhere is no folder"),
        ([".", "--only=atention"], "no picture 'atention'; did you mean 'attention'?"),
        ([".", "--images=0"], "--images: 0 must be at least 1"),
        ([".", "--fource"], "did you mean '--force'?"),
        ([], "required: RUN"),
    ],
)
def test_mistakes_are_one_line(argv: list[str], message: str, capsys: Capture) -> None:
    assert main(["figures", *argv]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ssl-bench")]
    assert len(said) == 1 and message in said[0], said


@pytest.mark.integration
def test_help_loads_no_torch() -> None:
    code = "import sys\nfrom ssl_bench.cli.main import main\nassert main(['figures', '--help']) == 0\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


# --- drawing


@pytest.mark.integration
def test_no_file_is_larger_than_its_limit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    assert len(encoded(Image.fromarray(noise))) <= LIMIT
    assert Image.open(io.BytesIO(encoded(Image.new("RGB", (50, 40))))).size == (50, 40)


def test_small_images_are_enlarged_by_whole_numbers() -> None:
    pixels = torch.rand(3, 8, 8)
    large = np.asarray(to_image(pixels, 30))
    assert large.shape == (24, 24, 3)
    expected = (pixels * 255).round().byte().permute(1, 2, 0).repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert np.array_equal(large, expected.numpy())
    assert to_image(torch.rand(3, 64, 64), 30).size == (30, 30)


@pytest.mark.parametrize("name", ["x" * 200, "two\nlines", "שם", "<script>", ""])
def test_names_stay_in_their_place(name: str) -> None:
    assert font().getlength(fitted(name, 80)) <= 80 + font().getlength("…")
    assert "\n" not in fitted(name, 80)
    tile = Image.new("RGB", (40, 40))
    sheet = grid(["a", "b"], [[Cell(tile, name), Cell(tile, name, "wrong")]])
    assert sheet.width < 150


@pytest.mark.parametrize(("count", "blocks"), [(8, 2), (7, 3), (6, 3), (1, 1)])
def test_narrow_rows_stand_side_by_side(count: int, blocks: int) -> None:
    shades = [Image.new("RGB", (90, 90), (10 * n + 10, 0, 0)) for n in range(count)]
    sheet = folded(["", ""], [[Cell(shade), Cell(shade)] for shade in shades], [1])
    alone = folded(["", ""], [[Cell(shades[0]), Cell(shades[0])]], [1])
    assert sheet.width <= 960 and (sheet.width - 32) // (alone.width - 32) == blocks
    shown = np.unique(np.asarray(sheet)[..., 0])
    assert all(10 * n + 10 in shown for n in range(count))
