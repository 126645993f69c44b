"""A run's section: how to do it again, what it changed, what it confuses; with files missing or damaged too."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import made
import numpy as np
import pytest

from ssl_bench.leaderboard.page.confusion import classes
from ssl_bench.leaderboard.page.figures import FIGURES, figures
from ssl_bench.leaderboard.page.recipe import changes
from ssl_bench.leaderboard.page.run_section import anchors, command, section
from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import read_result, write_result
from ssl_bench.records.store import Run, load_runs


def run_of(root: Path) -> Run:
    (run,) = load_runs([root])
    return run


def test_what_a_run_changed_of_its_recipe(tmp_path: Path) -> None:
    made.full_run(tmp_path, "mae", 3, protocols=("knn",), n_test=20, options={"method.mask_ratio": 0.5})
    run = run_of(tmp_path)
    assert changes(run) == ("mae-cifar10", [("method.mask_ratio", 0.75, 0.5)])
    assert "method.mask_ratio: 0.75 → 0.5" in section(run, "run-1", [], [])
    unknown = dataclasses.replace(run, info=dataclasses.replace(run.info, method="os.path"))
    assert changes(unknown) is None  # nothing that a run's folder names is imported


def test_per_class_accuracy_and_confusions_by_hand(tmp_path: Path) -> None:
    folder = made.full_run(tmp_path, protocols=("linear",), n_test=20)
    labels = [0] * 4 + [1] * 4 + [2] * 2
    guesses = [0, 0, 1, 1] + [1, 1, 1, 2] + [2, 2]
    result = read_result(folder / "results" / "linear.json")
    write_result(folder, result, Predictions([str(i) for i in range(10)], labels, {"chosen": guesses}))
    found = classes(run_of(tmp_path))
    assert found is not None and found.protocol == "linear"
    assert found.accuracy == (("plane", 0.5), ("car", 0.75), ("bird", 1.0))
    assert found.confused == (("plane", "car", 0.5), ("car", "bird", 0.25))
    assert np.isclose(sum(p for *_, p in found.confused), 0.75)


@pytest.mark.parametrize("name", ["metrics.csv", "environment.json", "config.yaml", "predictions/linear.parquet"])
@pytest.mark.parametrize("content", [None, b"\xff\x00 {,\n1"])
def test_what_is_missing_or_damaged_is_left_out_and_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    folder = made.full_run(tmp_path, protocols=("linear",), n_test=20)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    lacks: list[str] = []
    text = section(run_of(tmp_path), "run-1", [], lacks)
    assert ("environment" in text) == (name != "environment.json")
    assert ("loss" in text) == (name != "metrics.csv")
    assert ("Accuracy per class" in text) == ("parquet" not in name)
    assert [name in line for line in lacks] == ([True] if name != "config.yaml" else [])


def test_damaged_rows_of_curves_are_counted(tmp_path: Path) -> None:
    folder = made.full_run(tmp_path, protocols=("linear",), n_test=20)
    whole: list[str] = []
    section(run_of(tmp_path), "run-1", [], whole)
    assert whole == []
    file = folder / "metrics.csv"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], b"\0" * 9 + lines[2], b"x" + lines[3], *lines[4:]]))
    lacks: list[str] = []
    assert "loss" in section(run_of(tmp_path), "run-1", [], lacks)
    assert lacks == [f"whole curves of {file}: 2 of its rows are damaged"]


def test_records_that_were_copied_alone_lack_nothing(tmp_path: Path) -> None:
    folder = made.full_run(tmp_path, protocols=("linear",), n_test=20)
    for name in ("metrics.csv", "environment.json"):
        (folder / name).unlink()
    lacks: list[str] = []
    section(run_of(tmp_path), "run-1", [], lacks)
    assert lacks == []


def test_names_and_commands_of_the_shell(tmp_path: Path) -> None:
    made.full_run(tmp_path, protocols=("knn",), n_test=20, folder="a b", command=["ssl-bench", "fit", "--x=a b"])
    run = run_of(tmp_path)
    assert command(run) == "ssl-bench fit '--x=a b'"
    assert command(dataclasses.replace(run, info=dataclasses.replace(run.info, command=[]))).endswith(
        "a b/config.yaml'"
    )
    other = dataclasses.replace(run, folder=tmp_path / "elsewhere" / "a b")
    names = anchors([run, other])
    assert len(set(names.values())) == 2 and all(re.fullmatch(r"run-[0-9a-f]{8}(-\d+)?", n) for n in names.values())


def test_captions_are_those_of_the_figures(tmp_path: Path) -> None:
    folder = made.full_run(tmp_path, protocols=("knn",), n_test=20, pictures=True)
    captions = folder / "figures" / "figures.json"

    def shown() -> dict[str, tuple[str, str]]:
        found = figures(folder, "embed", None, "x")
        assert "<b>mask" not in section(run_of(tmp_path), "run-1", found, [])
        return {name: (figure.caption, figure.alt) for name, figure in zip(drawn, found, strict=True)}

    drawn = [name for name in FIGURES if (folder / "figures" / f"{name}.png").exists()]
    own = {"caption": "8 test images, <b>mask</b> 0.75", "alt": 'Rows of "8" images'}
    captions.write_text(json.dumps({"map": own, "attention": {"alt": 5, "caption": ""}, "reconstruction": []}))
    fixed = {name: FIGURES[name] for name in drawn}
    assert shown() == fixed | {"map": (own["caption"], own["alt"])}
    assert "8 test images, &lt;b&gt;mask" in section(run_of(tmp_path), "run-1", figures(folder, "embed", None, "x"), [])
    for damaged in (b"{", b"[1]", b"\xff", b'{"map": "x"}', b"[" * 100_000):
        captions.write_bytes(damaged)
        assert shown() == fixed
    captions.unlink()
    assert shown() == fixed


@pytest.mark.parametrize("damage", [lambda png: png[:-20], lambda png: png[:40] + b"\0" + png[41:], lambda png: b""])
def test_a_damaged_picture_is_not_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes]
) -> None:
    folder = made.full_run(tmp_path, protocols=("knn",), n_test=20, pictures=True)
    before = figures(folder, "embed", None, "x")
    file = next((folder / "figures").glob("*.png"))
    file.write_bytes(damage(file.read_bytes()))
    (folder / "figures" / "figures.json").write_text("{")
    assert len(figures(folder, "embed", None, "x")) == len(before) - 1
    told = capsys.readouterr().err
    assert f"{file} is not published" in told and "figures.json are not its own: it is damaged" in told
    (folder / "figures" / "figures.json").write_text(json.dumps({file.stem: {"caption": "c", "alt": "a"}}))
    file.unlink()
    figures(folder, "embed", None, "x")
    assert f"{file} is gone, though figures.json names it" in capsys.readouterr().err
    (folder / "figures" / "figures.json").unlink()
    figures(folder, "embed", None, "x")
    assert "figures.json are not its own: it is gone" in capsys.readouterr().err
