"""Which images each target of one command is measured on, and what `random:RUN` is."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.evaluation.targets import measurements, parse_target, several_data_sets
from ssl_bench.records.result import read_result
from ssl_bench.records.run import BackboneRecord, DataRecord, RunInfo, read_run, write_run

Capture = pytest.CaptureFixture[str]


def run_of(folder: Path, data: dict[str, Any], backbone: dict[str, Any] | None = None, **given: Any) -> str:
    """A finished run on these images, without weights that anything could load."""
    options = {"method": {"name": "mae"}, "backbone": backbone or {"name": "vit_nano_patch4_32"}, "data": data}
    record = BackboneRecord("vit_nano_patch4_32", {"img_size": 8, "depth": 2})
    info = RunInfo(
        **{"kind": "pretrained", "method": "mae", "options": options, "backbone": record, "seed": 5}
        | {"status": "finished", "data": DataRecord(data.get("name", "other"))}
        | given
    )
    write_run(folder, info)
    (folder / "backbone.json").write_text("{}")
    return str(folder)


def told(names: list[str], given: dict[str, Any] | None = None) -> list[tuple[str, dict[str, Any]]]:
    """Target and what its images' options say beyond the defaults that all have."""
    found = measurements([parse_target(name, {}, 0) for name in names], given or {})
    kept = ("name", "root", "split_seed", "val_fraction", "image_size", "batch_size")
    return [(each.target.name, {name: getattr(each.data, name) for name in kept}) for each in found]


DIGITS = {"name": "digits", "root": None, "split_seed": 3, "val_fraction": 0.2, "image_size": 16, "batch_size": 8}
PLAIN = {"name": "digits-canvas", "root": None, "split_seed": 0, "val_fraction": 0.1, "image_size": None}


def test_baselines_take_the_images_of_the_run_beside_them(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", DIGITS)
    beside = DIGITS | {"batch_size": 256}  # which says nothing of the images
    assert told([run, "pixels", "random:resnet18"]) == [(run, DIGITS), ("pixels", beside), ("random:resnet18", beside)]
    assert told(["pixels", run])[0] == ("pixels", beside), "whatever the order"
    assert told(["pixels"]) == [("pixels", PLAIN | {"batch_size": 256})], "alone: as ever"
    named = {"name": "digits", "batch_size": 32}
    assert told([run, "pixels"], named) == [(run, DIGITS | named), ("pixels", DIGITS | named)]


def test_a_runs_random_network_has_its_options_size_seed_and_images(tmp_path: Path) -> None:
    backbone = {"name": "vit_nano_patch4_32", "img_size": None, "depth": 2, "timm_args": {"mlp_ratio": 2}}
    run = run_of(tmp_path / "run", DIGITS, backbone)
    target = parse_target(f"random:{run}", {"width": 96}, 7)
    assert (target.backbone, target.seed) == (backbone | {"img_size": 8}, 5)
    assert parse_target(f"random:{run}@9", {}, 0).seed == 9
    beside = DIGITS | {"batch_size": 256}
    assert told([f"random:{run}", "pixels"]) == [(f"random:{run}", beside), ("pixels", beside)]
    elsewhere = told([f"random:{run}"], {"name": "cifar10"})
    assert elsewhere[0][1]["name"] == "cifar10" and elsewhere[0][1]["split_seed"] == 3, "as RUN itself"


def test_a_baseline_by_its_folder_keeps_its_images(tmp_path: Path) -> None:
    folder = tmp_path / "pixels-digits"
    info = RunInfo("finished", "baseline", "pixels", DataRecord("digits"), {"data": DIGITS})
    write_run(folder, info)
    assert told([str(folder)]) == [(str(folder), DIGITS)]


def test_imported_networks_take_the_images_beside_them_or_none(tmp_path: Path) -> None:
    imported = run_of(tmp_path / "imported", {})
    info = read_run(tmp_path / "imported")
    write_run(tmp_path / "imported", replace(info, kind="imported", options={"backbone": {"name": "vit_nano"}}))
    run = run_of(tmp_path / "run", DIGITS)
    assert told([imported, run])[0] == (imported, DIGITS | {"batch_size": 256})
    with pytest.raises(UserError, match="has no images of its own on record: --data NAME"):
        told([imported, "pixels"])
    assert told([imported], {"name": "digits"})[0][1]["name"] == "digits"


def test_several_data_sets_are_said_and_baselines_are_measured_on_each(tmp_path: Path) -> None:
    one, two = run_of(tmp_path / "one", DIGITS), run_of(tmp_path / "two", {"name": "cifar10", "root": "x"})
    three = run_of(tmp_path / "three", DIGITS | {"batch_size": 64})
    names = [one, "pixels", two, three]
    found = measurements([parse_target(name, {}, 0) for name in names], {})
    assert [(each.target.name, each.data.name) for each in found] == [
        (one, "digits"),
        ("pixels", "digits"),
        ("pixels", "cifar10"),
        (two, "cifar10"),
        (three, "digits"),
    ]
    line = several_data_sets(found)
    assert line is not None and line.startswith("2 data sets (name digits,") and "name cifar10, root x" in line
    assert "baselines on each" in line and "--data NAME" in line and "\n" not in line
    given = {"name": "cifar10", "root": "y"}
    assert several_data_sets(measurements([parse_target(name, {}, 0) for name in names], given)) is not None, "splits"
    given |= {"split_seed": 0, "val_fraction": 0.1}
    assert several_data_sets(measurements([parse_target(name, {}, 0) for name in names], given)) is None


def test_one_folder_by_two_paths_is_one_data_set(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    paths = [f"{tmp_path}/photos", f"{tmp_path}/photos/", f"{tmp_path}/x/../photos", f"{tmp_path}/link"]
    runs = [run_of(tmp_path / f"run{i}", {"name": "folder", "root": path}) for i, path in enumerate(paths)]
    found = measurements([parse_target(name, {}, 0) for name in [*runs, "pixels"]], {})
    assert several_data_sets(found) is None and len(found) == 5


@pytest.mark.parametrize("name", ["random:RUN@-1", "random:RUN@x", f"random:RUN@{10**20}", "pixels@1.5", "pixels@²"])
def test_seeds_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the seed after @ is a whole number from 0"):
        parse_target(name.replace("RUN", run_of(tmp_path / "run", DIGITS)), {}, 0)


def test_a_run_without_a_network_has_no_random_one(tmp_path: Path) -> None:
    folder = tmp_path / "pixels-digits"
    write_run(folder, RunInfo("finished", "baseline", "pixels", DataRecord("digits"), {"data": DIGITS}))
    with pytest.raises(UserError, match="is a run of pixels, which has no network"):
        parse_target(f"random:{folder}", {}, 0)
    run = run_of(tmp_path / "tokenizer", DIGITS, kind="tokenizer", backbone=None)
    with pytest.raises(UserError, match="tokenizer"):
        parse_target(f"random:{run}", {}, 0)


@pytest.mark.parametrize("content", [b"", b"[", b"[1]", b'{"options": 3}', b"\xff", None])
def test_a_network_of_a_hub_is_described_beside_its_weights(tmp_path: Path, content: bytes | None) -> None:
    run = Path(run_of(tmp_path / "run", DIGITS, backbone={"name": "hf-hub:a/b", "img_size": 8}))
    (run / "backbone.json").write_text('{"options": {"name": "vit_nano_patch4_32", "img_size": 8}}')
    assert parse_target(f"random:{run}", {}, 0).backbone == {"name": "vit_nano_patch4_32", "img_size": 8}
    (run / "backbone.json").unlink()
    if content is None:
        os.mkfifo(run / "backbone.json")
    else:
        (run / "backbone.json").write_bytes(content)
    with pytest.raises(UserError, match="backbone.json does not say what its network is"):
        parse_target(f"random:{run}", {}, 0)


@pytest.mark.integration
def test_a_run_and_its_baselines_are_measured_alike(tiny_run: Path, tmp_path: Path, capsys: Capture) -> None:
    """All the way: the same test images, and the network of the run's own size."""
    targets = [str(tiny_run), f"random:{tiny_run}", "pixels"]
    assert main(["evaluate", *targets, "--protocols=knn", "--device=cpu", "--runs", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr()
    folders = [Path(line) for line in output.out.splitlines()]
    run, random, pixels = (read_result(folder / "results" / "knn.json") for folder in folders)
    assert run.data == random.data == pixels.data and run.splits == random.splits == pixels.splits
    assert run.geometry == random.geometry and "data sets" not in output.err
    made, own = (json.loads((folder / "run.json").read_text())["backbone"] for folder in (folders[1], tiny_run))
    assert made == own
    assert run.value != random.value
