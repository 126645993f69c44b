"""From a backbone and labelled images to records and predictions."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch
from statsmodels.stats.proportion import proportion_confint

from ssl_bench.cli.main import main
from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import Dataset
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestImages, TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.evaluation.recorded_results import IDENTITY
from ssl_bench.evaluation.runner import evaluate
from ssl_bench.evaluations.knn import Knn
from ssl_bench.evaluations.linear import Linear
from ssl_bench.leaderboard.build import build
from ssl_bench.records.result import EvaluationCost, read_result
from ssl_bench.records.run import DataRecord, RunInfo, read_run, write_run
from ssl_bench.records.store import load_runs
from ssl_bench.statistics.intervals import over_classes, over_images

FINGERPRINT = {"sha256": "ab" * 32, "images": {"train": 40}, "classes": ["a", "b"]}


def images(count: int, seed: int) -> ResidentPool:
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=count)
    values = np.clip(
        80 + 40 * labels[:, None, None, None] * [[[1]], [[0]], [[0]]] + 25 * rng.normal(size=(count, 3, 4, 4)), 0, 255
    )
    ids = [f"{seed}/{i}.png" for i in range(count)]
    return ResidentPool(images=torch.tensor(values, dtype=torch.uint8), labels=labels, ids=ids)


@pytest.fixture
def data() -> Dataset:
    train, test = images(50, 0), images(30, 1)
    return Dataset(
        options=DataOptions(),
        title="squares",
        pretrain=train,
        train=TrainSplit(train, np.arange(40)),
        validation=ValidationSplit(train, np.arange(40, 50)),
        test=TestSplit(test, np.arange(30)),
        classes=("a", "b"),
        image_size=4,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        fingerprint=FINGERPRINT,
        remedy="label them",
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    info = RunInfo(status="finished", kind="pretrained", method="simclr", data=DataRecord("squares", FINGERPRINT))
    write_run(tmp_path / "run", info)
    return tmp_path / "run"


def pixels(**given: Any) -> FeatureExtractor:
    return FeatureExtractor(Pixels(4), (0.5,) * 3, (0.2,) * 3, {"branch": "teacher"}, **given)


class Counting(Evaluation[None]):
    """Predicts class 1, and counts how often it was asked."""

    version: ClassVar[int] = 3
    fitted = 0

    def __init__(self, guess: int = 1, names: tuple[str, ...] = ("only",), short: bool = False) -> None:
        self.guess, self.names, self.short = guess, names, short

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[None]:
        type(self).fitted += 1
        return Fit(None, ("pixels",), chosen={"c": 1}, grid={"c": [1, 2]}, at_grid_boundary=True, curve={"step": [1.0]})

    def predict(self, backbone: FeatureExtractor, fit: Fit[None], test: TestImages) -> list[Prediction]:
        backbone.features(test, "pixels")
        count = len(test) - self.short
        return [Prediction(name, torch.full((count,), self.guess)) for name in self.names]


@pytest.fixture(autouse=True)
def _from_zero() -> None:
    Counting.fitted = 0


def test_record_and_predictions(data: Dataset, run: Path) -> None:
    (result,) = evaluate(pixels(), data, {"counting": Counting(names=("one", "two"))}, run)
    assert read_result(run / "results" / "counting.json") == result
    assert data.test is not None
    right = int((data.test.labels == 1).sum())
    assert result.primary == "one" and set(result.variants) == {"one", "two"}
    assert result.value == pytest.approx(right / 30)
    assert result.interval == pytest.approx(proportion_confint(right, 30, method="wilson"))
    assert (result.protocol, result.version, result.n_test, result.branch) == ("counting", 3, 30, "teacher")
    assert result.options == {"guess": 1, "names": ["one", "two"], "short": False}
    assert {name: split.count for name, split in result.splits.items()} == {"train": 40, "validation": 10, "test": 30}
    assert result.selected.selected_on == "validation" and result.selected.at_grid_boundary
    assert result.selected.chosen == {"c": 1} and not result.selected.selected_on_test
    assert result.cost.images == 30 and result.cost.flops == 0 and result.cost.seconds > 0
    assert result.cost.peak_memory_bytes > 1e7
    assert result.data.fingerprint == FINGERPRINT and result.geometry["img_size"] == 4
    table = pq.read_table(run / "predictions" / "counting.parquet").to_pydict()
    assert table["id"] == data.test.ids and table["label"] == data.test.labels.tolist()
    assert table["prediction"] == table["two"] == [1] * 30


def test_the_protocols_that_ship(data: Dataset, run: Path) -> None:
    knn, linear = evaluate(pixels(), data, {"knn": Knn(), "linear": Linear(iterations=50, batch_size=16, views=0)}, run)
    assert knn.primary == "k20" and knn.selected.selected_on == "none"
    assert linear.primary == "chosen" and linear.selected.selected_on == "validation"
    assert knn.cost.images == 80 and linear.cost.images == 80, "each protocol's cost is all that it needed"
    assert knn.value > 0.6 and linear.value > 0.6
    assert {file.name for file in (run / "predictions").iterdir()} == {"knn.parquet", "linear.parquet"}


def test_what_is_recorded_is_not_evaluated_again(data: Dataset, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (first,) = evaluate(pixels(), data, {"counting": Counting()}, run)
    assert evaluate(pixels(), data, {"counting": Counting()}, run) == [first]
    assert Counting.fitted == 1 and "recorded before" in capsys.readouterr().err
    evaluate(pixels(), data, {"counting": Counting()}, run, force=True)
    assert Counting.fitted == 2


@pytest.mark.parametrize(
    "change", ["options", "version", "weights", "branch", "split", "data", "geometry", "no predictions", "damaged"]
)
def test_another_number_is_evaluated(data: Dataset, run: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(pixels(), data, {"counting": Counting()}, run)
    target, evaluation = pixels(), Counting(guess=0) if change == "options" else Counting()
    if change == "version":
        monkeypatch.setattr(Counting, "version", 4)
    elif change == "weights":
        monkeypatch.setattr(FeatureExtractor, "state_hash", lambda self: "other")
    elif change == "branch":
        target.identity["branch"] = "student"
    elif change == "split":
        assert data.train is not None
        data = replace(data, train=TrainSplit(data.train.pool, data.train.rows[::-1].copy()))
    elif change == "data":
        data = replace(data, title="circles", fingerprint={"sha256": "cd" * 32})
    elif change == "geometry":
        monkeypatch.setattr(FeatureExtractor, "geometry", {"img_size": 5})
    elif change == "no predictions":
        (run / "predictions" / "counting.parquet").unlink()
    elif change == "damaged":
        (run / "results" / "counting.json").write_text("{")
    (result,) = evaluate(target, data, {"counting": Counting() if change != "options" else evaluation}, run)
    assert Counting.fitted == 2
    name = "counting@circles" if change == "data" else "counting"
    assert read_result(run / "results" / f"{name}.json") == result
    assert (run / "results" / "counting.json").is_file(), "other data's result has another name"


class Cheating(Counting):
    """Gives the test images' labels as its predictions."""

    def predict(self, backbone: FeatureExtractor, fit: Fit[None], test: TestImages) -> list[Prediction]:
        return [Prediction("only", torch.as_tensor(test.labels))]  # type: ignore[attr-defined]


def test_an_evaluation_cannot_read_the_labels_of_test_images(data: Dataset, run: Path) -> None:
    with pytest.raises(AttributeError, match="test images have no labels here"):
        evaluate(pixels(), data, {"cheating": Cheating()}, run)
    assert not (run / "results").exists()


class Meddling(Counting):
    """Trains what it was told to leave alone."""

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[None]:
        backbone.network.register_buffer("seen", torch.ones(1))
        return super().fit(backbone, train, validation)


def test_a_changed_backbone_is_noticed(data: Dataset, run: Path) -> None:
    with pytest.raises(RuntimeError, match="meddling changed the backbone"):
        evaluate(pixels(), data, {"meddling": Meddling()}, run)
    assert not (run / "results").exists()


@pytest.mark.parametrize("options", [{"short": True}, {"names": ("same", "same")}, {"names": ()}])
def test_each_image_once_from_each_variant(data: Dataset, run: Path, options: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="counting"):
        evaluate(pixels(), data, {"counting": Counting(**options)}, run)
    assert not (run / "results").exists()


@pytest.mark.parametrize("missing", [{"train": None}, {"test": None}])
def test_data_that_cannot_be_evaluated_on(data: Dataset, run: Path, missing: dict[str, None]) -> None:
    with pytest.raises(UserError, match="label them"):
        evaluate(pixels(), replace(data, **missing), {"counting": Counting()}, run)


def test_features_are_shared_and_counted(data: Dataset, run: Path, tmp_path: Path) -> None:
    evaluations = {"a": Counting(), "b": Counting(guess=0)}
    target = pixels(cache_dir=tmp_path / "cache")
    first, second = evaluate(target, data, evaluations, run)
    assert target.spent.images == 30, "one pass over the test images for both"
    assert first.cost.images == second.cost.images == 30
    again = pixels(cache_dir=tmp_path / "cache")
    evaluate(again, data, evaluations, run, force=True)
    assert again.spent.images == 0


def test_full_precision_inside_and_only_there(data: Dataset, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = Counting.fit

    def fit(self: Counting, *given: Any) -> Fit[None]:
        seen.append(torch.get_float32_matmul_precision())
        return original(self, *given)

    monkeypatch.setattr(Counting, "fit", fit)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        evaluate(pixels(), data, {"counting": Counting()}, run)
        assert seen == ["highest"] and torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_records_hold_plain_json(data: Dataset, run: Path) -> None:
    evaluate(pixels(), data, {"linear": Linear(iterations=20, batch_size=16)}, run)
    record = json.loads((run / "results" / "linear.json").read_text())
    assert record["selected"]["chosen"]["lr"] in record["selected"]["grid"]["lr"]
    assert len(record["curve"]["validation accuracy"]) == len(record["curve"]["step"]) == 20
    assert set(IDENTITY) <= set(record)


class Repeating(Evaluation[None]):
    """Predicts right as often as it is told, for each of several repetitions."""

    def __init__(self, truth: tuple[int, ...], repeats: str = "draws") -> None:
        self.truth, self.repeats = truth, repeats

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[None]:
        return Fit(None, diagnostics={"rank": 2.5})

    def predict(self, backbone: FeatureExtractor, fit: Fit[None], test: TestImages) -> list[Prediction]:
        labels = torch.tensor(self.truth).repeat(3, 1)
        for draw, wrong in enumerate((3, 6, 9)):
            labels[draw, :wrong] = 1 - labels[draw, :wrong]
        once = Prediction("once", labels[0])
        return [Prediction("all", labels, repeats=self.repeats), once]  # type: ignore[arg-type]


def test_repeated_predictions_are_averaged_and_all_kept(data: Dataset, run: Path) -> None:
    assert data.test is not None
    truth = tuple(data.test.labels.tolist())
    draws, conditions = (
        evaluate(pixels(), data, {"repeating": Repeating(truth, kind)}, run, force=True)[0]
        for kind in ("draws", "conditions")
    )
    assert [draws.value, conditions.value] == pytest.approx([1 - 6 / 30] * 2)
    assert draws.interval == over_images(np.arange(30) >= np.array([[3], [6], [9]]))[1]
    shares = [0.0] * 3 + [1 / 3] * 3 + [2 / 3] * 3 + [1.0] * 21
    half = scipy.stats.t.ppf(0.975, 29) * np.std(shares, ddof=1) / 30**0.5
    assert conditions.interval == pytest.approx((0.8 - half, min(1, 0.8 + half)))
    assert draws.variants["once"].value == 0.9
    kinds = [result.variants[result.primary].repeats for result in (draws, conditions)]
    assert [*kinds, draws.variants["once"].repeats] == ["draws", "conditions", ""]
    assert data.test is not None
    for result in (draws, conditions):
        score = result.variants[result.primary]
        assert score.over_classes is not None
        assert score.over_classes[0] <= score.interval[0] and score.over_classes[1] >= score.interval[1]
    assert draws.variants["once"].over_classes == over_classes(np.arange(30) >= 3, data.test.labels)
    assert read_result(run / "results" / "repeating.json").diagnostics == {"rank": 2.5}
    table = pq.read_table(run / "predictions" / "repeating.parquet").to_pydict()
    assert data.test is not None
    assert set(table) == {"id", "label", "prediction#0", "prediction#1", "prediction#2", "once"}
    for name, wrong in (("prediction#0", 3), ("prediction#1", 6), ("prediction#2", 9), ("once", 3)):
        assert sum(a != b for a, b in zip(table[name], data.test.labels, strict=True)) == wrong


class Monitoring(Evaluation[None]):
    """Looks at the features and predicts nothing."""

    def __init__(self, nothing: bool = False) -> None:
        self.nothing = nothing

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[None]:
        return Fit(None, diagnostics={} if self.nothing else {"rank": 2.5})

    def predict(self, backbone: FeatureExtractor, fit: Fit[None], test: TestImages) -> list[Prediction]:
        return []


def test_monitors_are_recorded_and_never_ranked(data: Dataset, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(pixels(), data, {"monitoring": Monitoring(), "counting": Counting()}, run)
    assert "monitoring: rank 2.5" in capsys.readouterr().err
    result = read_result(run / "results" / "monitoring.json")
    assert (result.value, result.interval, result.primary, result.diagnostics) == (None, None, "", {"rank": 2.5})
    (block,) = build(load_runs([run])).blocks
    assert [column.title for column in block.columns] == ["counting"]
    assert evaluate(pixels(), data, {"monitoring": Monitoring()}, run) == [result], "recorded before"
    with pytest.raises(RuntimeError, match="nothing and diagnostics nothing"):
        evaluate(pixels(), data, {"monitoring": Monitoring(nothing=True)}, run)


def test_student_and_teacher_stand_side_by_side(data: Dataset, run: Path) -> None:
    write_run(run, replace(read_run(run), branch="teacher"))
    for branch in ("teacher", "student"):
        frozen = FeatureExtractor(Pixels(4), (0.5,) * 3, (0.2,) * 3, {"branch": branch})
        evaluate(frozen, data, {"counting": Counting()}, run)
    assert sorted(file.name for file in (run / "results").iterdir()) == ["counting.json", "counting.student.json"]
    (block,) = build(load_runs([run]), branches="all").blocks
    assert sorted(row.name for row in block.rows) == ["simclr (branch=student)", "simclr (branch=teacher)"]
    (block,) = build(load_runs([run])).blocks
    assert [row.name for row in block.rows] == ["simclr"], "one row for a run"


@pytest.mark.integration
def test_two_processes_write_what_one_does(tiny_run: Path, tmp_path: Path) -> None:
    """A run and two baselines: the same numbers and predictions, each file once, no folder twice."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    for folder in (alone, together):
        shutil.copytree(tiny_run.parent, folder)
    made, own = (
        ["pixels", "random:vit_pico_patch4_32", "--backbone.depth=1", "--data=digits", "--device=cpu"],
        [
            "--protocols=knn,linear",
            *("--linear.iterations=40", "--linear.views=1", "--linear.epochs=2", "--linear.seeds=1"),
        ],
    )
    assert main(["evaluate", str(alone / tiny_run.name), *made, *own, "--runs", str(alone)]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "ssl_bench"]
    subprocess.run(
        [*launcher, "evaluate", str(together / tiny_run.name), *made, *own, "--runs", str(together)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=120,
    )
    one, two = ({run.folder.name: run for run in load_runs([folder])} for folder in (alone, together))
    assert one.keys() == two.keys() and len(one) == 3
    for name, run in one.items():
        for folder in ("results", "predictions"):
            files = [sorted(path.name for path in (root / name / folder).iterdir()) for root in (alone, together)]
            assert files[0] == files[1] and len(files[0]) == 2, "no temporary file of a second writer either"
        for mine, other in zip(run.results, two[name].results, strict=True):
            for field in (
                *IDENTITY,
                "value",
                "interval",
                "variants",
                "selected",
                "curve",
                "diagnostics",
                "n_test",
                "features",
            ):
                assert getattr(mine, field) == getattr(other, field), f"{name} {mine.protocol} {field}"
            stem = f"predictions/{mine.protocol}.parquet"
            assert pq.read_table(alone / name / stem) == pq.read_table(together / name / stem)


@pytest.mark.integration
def test_tasks_of_srun_share_the_work_and_write_once(tmp_path: Path) -> None:
    pytest.importorskip("ssl_bench.runtime.launch")
    argv = [sys.executable, "-m", "ssl_bench", "evaluate", "pixels", "--data=digits", "--protocols=knn,ridge"]
    slurm = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NNODES": "1", "SLURM_STEP_ID": "0"}
    port = 20_000 + os.getpid() % 20_000
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # for both alike: sums in another order differ in the last digits
    common = {**alone, **slurm, "MASTER_PORT": str(port)}
    for runs, tasks in (("alone", 1), ("together", 2)):
        started = [
            subprocess.Popen(
                [*argv, "--device=cpu", f"--runs={tmp_path / runs}"],
                env={**common, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} if tasks > 1 else alone,
                stdout=subprocess.PIPE,
                text=True,
            )
            for task in range(tasks)
        ]
        printed = [process.communicate(timeout=300)[0].split() for process in started]
        assert [process.returncode for process in started] == [0] * tasks
        assert len(printed[0]) == 1 and printed[1:] == [[]] * (tasks - 1), "one of them says it"
    (one,), (two,) = (load_runs([tmp_path / runs]) for runs in ("alone", "together"))
    assert [replace(r, cost=EvaluationCost()) for r in one.results] == [
        replace(r, cost=EvaluationCost()) for r in two.results
    ]
