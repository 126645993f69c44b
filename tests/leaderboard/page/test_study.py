"""Curves over options: which are drawn, of which rows, and where their marks stand."""

import re
from pathlib import Path

import made
import numpy as np
import pytest
from paths import ROOT
from recorded_runs import VIT, Runs

from ssl_bench.benchmark.runner import parse_benchmark
from ssl_bench.config.layers import read_yaml
from ssl_bench.leaderboard.page import curve_pictures, study
from ssl_bench.leaderboard.text import percent
from ssl_bench.records.run import BackboneRecord
from ssl_bench.records.store import load_runs

from .test_pictures import tables

STUDIES = sorted((ROOT / "configs" / "studies").glob("*.yaml"))


def options(**method: object) -> dict[str, object]:
    return {"method": {"name": "mae", **method}, "backbone": {"name": "vit"}, "seed": 0}


def test_a_study_is_one_option_of_one_method(runs: Runs) -> None:
    for i, ratio in enumerate((0.9, 0.5, 0.75)):
        for seed in range(2):
            runs.add("mae", seed, {"linear": 0.5 + 0.1 * i}, options=options(mask_ratio=ratio))
        runs.add("simmim", 0, {"linear": 0.5}, options=options(mask_ratio=ratio, depth=i))  # two options: no study
    for norm in (True, False):
        runs.add("cae", 0, {"linear": 0.5}, options=options(norm_pix=norm))
    for depth in (1, 2):
        runs.add("ibot", 0, {"linear": 0.5}, options=options(depth=depth))
    table, _ = tables(runs.root)
    found = {s.method: (s.option, s.numeric, list(s.values)) for s in study.studies(table)}
    assert found == {
        "cae": ("method.norm_pix", False, [False, True]),
        "ibot": ("method.depth", True, [1, 2]),
        "mae": ("method.mask_ratio", True, [0.5, 0.75, 0.9]),
    }
    (mae,) = [s for s in study.studies(table) if s.method == "mae"]
    picture = study.picture(table, mae)
    assert picture and picture.title == "mae over method.mask_ratio"
    assert picture.detail == "linear has its highest mean at 0.75 (70.0 %)"
    assert len(re.findall(r"<title>method.mask_ratio", picture.body)) == 3


def test_a_study_of_the_backbone_spans_blocks(runs: Runs) -> None:
    for width in (64, 128, 256):
        own = {"method": {"name": "mae"}, "backbone": {"name": "vit", "width": width}}
        runs.add("mae", 0, {"linear": 0.5}, options=own, backbone=BackboneRecord(VIT.name, {"embed_dim": width}))
    table, _ = tables(runs.root)
    assert len(table.blocks) == 3
    (found,) = study.studies(table)
    assert (found.option, found.values) == ("backbone.width", (64, 128, 256))
    picture = study.picture(table, found)
    assert picture and "different blocks" in picture.note


def test_a_study_with_few_labels_has_a_line_for_each_value_and_for_the_network_it_began_from(runs: Runs) -> None:
    few = ("labels-1pct", "labels-10pct")
    for width in (1, 2):
        backbone = BackboneRecord("resnet_nano", {"width": width})
        for seed in range(2):
            wide = {"backbone.name": "resnet_nano", "backbone.width": width}
            made.full_run(
                runs.root,
                "simclr",
                seed,
                0.05 * width,
                few,
                200,
                options=wide,
                backbone=backbone,
                folder=f"w{width}-{seed}",
            )
        made.full_run(runs.root, "random", 0, -0.1, few, 200, kind="baseline", backbone=backbone, folder=f"r{width}")
    table, views = tables(runs.root)
    (found,) = study.studies(table)
    picture = study.picture(table, found)
    assert picture and "without pretraining" in picture.note
    marks = re.findall(r'class="(m h|m) (\w+)" d="[^"]*"><title>([^<,]*(?:, \d)?), 500: ([\d.]+)', picture.body)
    value = {r.folder.name: x.value for r in load_runs([runs.root]) for x in r.results if x.protocol == "labels-1pct"}
    assert set(marks) >= {
        ("m h", "s0", "random, 1", percent(value["r1"])),
        ("m h", "s1", "random, 2", percent(value["r2"])),
    }
    mean = {width: np.mean([v for k, v in value.items() if f"w{width}" in k]) for width in (1, 2)}
    assert set(marks) >= {("m", f"s{w - 1}", f"backbone.width {w}", percent(mean[w])) for w in (1, 2)}
    assert len(marks) == 4
    for view in views:  # and in a block's own picture the random network is grey and leads nothing
        own = curve_pictures.label_efficiency(view)
        assert own and own.title.startswith("Label efficiency")
        assert re.search(r'class="m b" d="[^"]*"><title>random, 500: ', own.body)


def test_crossed_options_are_lines_of_each_other(runs: Runs) -> None:
    for cell in (4, 8):
        for ratio in (0.2, 0.4, 0.6):
            level = 0.3 + 0.1 * ratio + 0.01 * cell
            runs.add_seeds("simmim", {"linear": level}, options=options(mask_cell=cell, mask_ratio=ratio))
    table, _ = tables(runs.root)
    cells, ratios = study.studies(table)
    assert (cells.option, ratios.option) == ("method.mask_cell", "method.mask_ratio")
    assert set(cells.lines) == {"method.mask_ratio 0.2", "method.mask_ratio 0.4", "method.mask_ratio 0.6"}
    drawn = {name: [value for value, _ in line] for name, line in ratios.lines.items()}
    assert drawn == {"method.mask_cell 4": [0.2, 0.4, 0.6], "method.mask_cell 8": [0.2, 0.4, 0.6]}
    picture = study.picture(table, ratios)
    assert picture and "at 0.6, method.mask_cell 8 (44.0 %)" in picture.detail
    assert len(re.findall("<polyline", picture.body)) == 2
    marks = re.findall(
        r'class="m (s\d)" d="[^"]*"><title>method.mask_ratio 0.4, method.mask_cell (\d): ([\d.]+)', picture.body
    )
    assert sorted(marks) == [("s0", "4", "38.0"), ("s1", "8", "42.0")]


def test_one_group_of_options_after_the_other_gives_a_curve_each(runs: Runs) -> None:
    for depth, dim in ((1, 64), (2, 64), (4, 64), (2, 32), (2, 128)):
        runs.add("mae", 0, {"linear": 0.5}, options=options(depth=depth, dim=dim))
    found = {
        s.option: {name: [v for v, _ in line] for name, line in s.lines.items()}
        for s in study.studies(tables(runs.root)[0])
    }
    assert found == {"method.depth": {"": [1, 2, 4]}, "method.dim": {"": [32, 64, 128]}}


def test_what_was_measured_is_no_axis(runs: Runs) -> None:
    for views in (0, 4):
        for branch in ("student", "teacher"):
            runs.add("dino", 0, {"linear": 0.5}, options=options(local_views=views), result={"branch": branch})
    (found,) = study.studies(tables(runs.root)[0])
    assert (found.option, set(found.lines)) == ("method.local_views", {"branch student", "branch teacher"})


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_shipped_study_has_a_curve_over_each_of_its_axes(file: Path, runs: Runs) -> None:
    axes = read_yaml(file).get("axes", {})
    wanted = {name for group in (axes if isinstance(axes, list) else [axes]) for name in group} - {"seed"}
    for job in parse_benchmark(["-c", str(file), "--runs", "runs", "--dry-run"]).fits:
        config = dict(job.config or {})
        backbone = BackboneRecord(
            config["backbone"]["name"], {k: v for k, v in config["backbone"].items() if k != "name"}
        )
        runs.add(config["method"]["name"], config["seed"], {"linear": 0.5}, backbone, options=config)
    table, _ = tables(runs.root)
    found = {s.option: s for s in study.studies(table)}
    assert set(found) >= wanted
    assert all(study.picture(table, found[option]) for option in wanted)
