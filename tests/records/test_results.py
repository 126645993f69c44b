"""The record: what is written is read again, and what cannot be read says which file and why."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_bench.errors import UserError
from ssl_bench.evaluation.recorded_results import valid_result
from ssl_bench.records.predictions import Predictions, read_predictions
from ssl_bench.records.result import (
    EvaluationCost,
    Result,
    Score,
    Selected,
    SplitRecord,
    read_result,
    write_result,
)
from ssl_bench.records.run import BackboneRecord, DataRecord, RunCost, RunInfo, read_run, write_run
from ssl_bench.records.store import find_runs, load_readable, load_runs, say_unread

CIFAR10 = DataRecord("cifar10", {"sha256": "ab" * 32, "train": 50_000, "classes": ["plane", "car"]})
INFO = RunInfo(
    status="finished",
    kind="pretrained",
    method="mae",
    data=CIFAR10,
    options={"method": {"mask_ratio": 0.75}, "optim": {"betas": [0.9, 0.95]}},
    backbone=BackboneRecord("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 4}, 5_400_000, 0.72, 65),
    seed=1,
    epochs=99.5,
    steps=19_500,
    views_per_image=1.0,
    images_seen=4_992_000,
    cost=RunCost(3600.5, 1e16, 2**30, "2 CPU cores"),
    created="2026-01-01T10:00:00+00:00",
    finished="2026-01-01T11:00:00+00:00",
    command=["ssl-bench", "fit", "--method", "mae"],
    version="0.1.0",
)
RESULT = Result(
    protocol="linear",
    version=1,
    options={"epochs": 90},
    primary="cls+avg",
    value=0.75,
    interval=(0.7, 0.8),
    n_test=4,
    data=CIFAR10,
    splits={"train": SplitRecord("train", 45_000), "validation": SplitRecord("validation", 5_000)},
    variants={"cls+avg": Score(0.75, (0.7, 0.8)), "cls": Score(0.5, (0.4, 0.6))},
    selected=Selected({"lr": [0.1, 1.0]}, {"lr": 1.0}, True, "validation", False),
    curve={"validation": [0.1, 0.5]},
    features=["cls+avg", "cls"],
    geometry={"size": 32},
    branch="encoder",
    backbone="0f" * 32,
    cost=EvaluationCost(60_000, 4e13, 12.5, 10**9),
    software={"torch": "2.11.0"},
)
PREDICTIONS = Predictions(["a", "b", "c", "d"], [0, 1, 2, 1], {"cls+avg": np.array([0, 1, 2, 0]), "cls": [0, 1, 1, 0]})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "mae-cifar10"
    write_run(folder, INFO)
    return folder


def test_records_are_read_as_they_were_written(run: Path) -> None:
    assert read_run(run) == INFO
    path = write_result(run, RESULT, PREDICTIONS)
    assert path == run / "results" / "linear.json"
    assert read_result(path) == RESULT
    assert load_runs([run])[0].results == (RESULT,)
    assert {file.name for file in run.rglob("*") if file.is_file()} == {"run.json", "linear.json", "linear.parquet"}


def test_predictions_hold_one_column_per_variant(run: Path) -> None:
    import pyarrow.parquet

    write_result(run, RESULT, PREDICTIONS)
    table = pyarrow.parquet.read_table(run / "predictions" / "linear.parquet")
    assert table.to_pydict() == {
        "id": ["a", "b", "c", "d"],
        "label": [0, 1, 2, 1],
        "prediction": [0, 1, 2, 0],
        "cls": [0, 1, 1, 0],
    }


def test_other_data_than_pretrained_on_is_in_the_name(run: Path) -> None:
    other = dataclasses.replace(RESULT, data=DataRecord("my photos/2", {"sha256": "cd" * 32}))
    path = write_result(run, other, PREDICTIONS)
    assert path.name == "linear@my_photos_2.json"
    assert (run / "predictions" / "linear@my_photos_2.parquet").is_file()
    changed = dataclasses.replace(RESULT, data=DataRecord("cifar10", {"sha256": "cd" * 32}))
    assert write_result(run, changed, PREDICTIONS).name == "linear@cifar10.json"


def test_no_record_without_its_predictions(run: Path) -> None:
    with pytest.raises(Exception, match="Column 1 named label"):
        write_result(run, RESULT, dataclasses.replace(PREDICTIONS, ids=["a"]))
    assert not (run / "results").exists()
    assert [file.name for file in run.rglob("*") if file.is_file()] == ["run.json"]


def test_unknown_keys_are_ignored_and_optional_ones_may_be_absent(tmp_path: Path) -> None:
    file = tmp_path / "knn.json"
    record = dataclasses.asdict(RESULT) | {"from_the_future": {"x": 1}}
    record["selected"]["how"] = "well"
    del record["software"], record["curve"]
    file.write_text(json.dumps(record))
    assert read_result(file) == dataclasses.replace(RESULT, software={}, curve={})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"value": "high"}, "value is 'high'"),
        ({"value": True}, "value is True"),
        ({"value": 75.0}, "75.0"),
        ({"value": 0.9}, "0.9 with interval (0.7, 0.8)"),
        ({"value": float("nan")}, "nan"),
        ({"n_test": 4.5}, "n_test is 4.5"),
        ({"interval": [0.1]}, "interval is [0.1]"),
        ({"variants": {"cls": {"interval": [0, 1]}}}, "variants.cls.value is missing"),
        ({"selected": {"selected_on": "test"}}, "selected.selected_on is 'test'"),
        ({"data": "cifar10"}, "data is 'cifar10'"),
        ({"curve": {"loss": [0.1, None]}}, "curve.loss is None"),
    ],
)
def test_a_wrong_value_names_file_and_key(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    file = tmp_path / "linear.json"
    file.write_text(json.dumps(dataclasses.asdict(RESULT) | change))
    with pytest.raises(UserError, match=re.escape(says)) as error:
        read_result(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b'{"protocol": "lin', b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "linear.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"linear\.json is damaged"):
        read_result(file)


def test_runs_are_found_at_any_depth_once(tmp_path: Path, run: Path) -> None:
    for name in ("b/deep/run-2", "a-run"):
        write_run(tmp_path / "runs" / name, INFO)
    write_run(run / "checkpoints", INFO)  # below a run there is no other
    write_run(tmp_path / "runs" / ".hidden", INFO)
    found = find_runs([tmp_path / "runs", run, tmp_path])
    assert [path.name for path in found] == ["a-run", "run-2", "mae-cifar10"]


def test_a_path_without_runs_is_an_error(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no run in .*empty"):
        find_runs([run, tmp_path / "empty"])
    with pytest.raises(UserError, match=r"nowhere is no folder"):
        find_runs([tmp_path / "nowhere"])


@pytest.mark.integration
def test_results_and_leaderboard_load_without_torch_numpy_or_pyarrow() -> None:
    heavy = ["torch", "numpy", "pyarrow", "scipy", "pandas", "rich"]
    code = f"import sys, ssl_bench.leaderboard.render; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_predictions_are_read_again(run: Path) -> None:
    write_result(run, RESULT, PREDICTIONS)
    found = read_predictions(run / "predictions" / "linear.parquet")
    assert (list(found.ids), list(found.labels)) == (PREDICTIONS.ids, PREDICTIONS.labels)
    np.testing.assert_array_equal(found.variants["prediction"], [[0, 1, 2, 0]])
    repeated = dataclasses.replace(PREDICTIONS, variants={"cls+avg": [[0, 1, 2, 0], [0, 0, 0, 0]], "cls": [0, 1, 1, 0]})
    write_result(run, RESULT, repeated)
    found = read_predictions(run / "predictions" / "linear.parquet")
    np.testing.assert_array_equal(found.variants["prediction"], [[0, 1, 2, 0], [0, 0, 0, 0]])


def test_predictions_that_cannot_be_read_say_which_file(run: Path) -> None:
    path = run / "predictions" / "linear.parquet"
    with pytest.raises(UserError, match=f"no predictions in {path}"):
        read_predictions(path)
    path.parent.mkdir()
    path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=f"{path} is damaged"):
        read_predictions(path)


def test_an_interval_over_classes_that_misses_its_accuracy_is_refused() -> None:
    with pytest.raises(ValueError, match="not in order"):
        dataclasses.replace(RESULT, variants={"cls+avg": Score(0.75, (0.7, 0.8), (0.8, 0.9))})


def test_two_data_sets_of_one_name_keep_both_results(run: Path) -> None:
    """Folders of one name, other images: neither overwrites the other, each is found with its own predictions."""
    others = [
        dataclasses.replace(RESULT, data=DataRecord("photos", {"sha256": letter * 64}), value=value)
        for letter, value in (("a", 0.71), ("b", 0.72))
    ]
    paths = [write_result(run, other, PREDICTIONS) for other in others]
    assert [path.name for path in paths] == ["linear@photos.json", "linear@photos-bbbbbbbb.json"]
    again = [write_result(run, other, PREDICTIONS) for other in others]
    assert again == paths, "each over its own"
    (found,) = load_runs([run])
    assert {result.value for result in found.results} == {0.71, 0.72}
    by_value = {result.value: found.predictions_of(result).stem for result in found.results}
    assert by_value == {other.value: path.stem for other, path in zip(others, paths, strict=True)}
    assert all(valid_result(run, other) == other for other in others)
    paths[0].unlink()
    assert valid_result(run, others[1]) == others[1] and valid_result(run, others[0]) is None


@pytest.mark.parametrize(
    ("protocol", "fraction"),
    [("labels-1pct", 0.01), ("labels-10pct", 0.1), ("finetune-1pct", 0.01), ("finetune-10pct", 0.1)],
)
def test_a_result_from_before_the_fraction_was_an_option_is_valid(run: Path, protocol: str, fraction: float) -> None:
    now = dataclasses.replace(RESULT, protocol=protocol, options={"fraction": fraction, "subset": None, "seed": 0})
    path = write_result(run, now, PREDICTIONS)
    record = json.loads(path.read_text())
    del record["options"]["fraction"]
    path.write_text(json.dumps(record))
    assert valid_result(run, now) == now
    assert valid_result(run, dataclasses.replace(now, options={**now.options, "fraction": 0.05})) is None


def test_predictions_without_their_record_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody removed it, or the evaluation was killed between the two."""
    first = write_result(run, RESULT, PREDICTIONS)
    write_result(run, dataclasses.replace(RESULT, protocol="knn"), PREDICTIONS)
    assert load_readable([run])[1] == []
    first.unlink()
    (found,), (gone,) = load_readable([run])
    assert [result.protocol for result in found.results] == ["knn"]
    assert gone.folder == run and gone.reason.startswith("results/linear.json is not there, though its predictions are")
    say_unread([gone])
    assert "results/linear.json" in capsys.readouterr().err
