"""`ssl-bench compare` on run folders made by the real writers."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.leaderboard.compare import comparison
from ssl_bench.leaderboard.significance import build_report
from ssl_bench.records.predictions import Predictions, read_predictions
from ssl_bench.records.result import Result, Score, Selected, SplitRecord, write_result
from ssl_bench.records.run import BackboneRecord, DataRecord, RunInfo, write_run
from ssl_bench.statistics.comparison import Answers, holm, image_draws, mcnemar, seed_draws
from ssl_bench.statistics.intervals import mean_over_seeds, over_classes, wilson
from ssl_bench.statistics.ranking import Task, rank_distribution

CLASSES, N = 5, 600
LABELS = np.arange(N) % CLASSES
HARD = np.random.default_rng(99).random(N)  # the same for all methods, as images are
Add = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def predicted(accuracy: float, seed: int, n: int = N) -> np.ndarray:
    """Classes of n images, of which about this share is right, mostly the easy ones."""
    rng = np.random.default_rng(seed)
    right = 0.7 * HARD[:n] + 0.3 * rng.random(n) < np.quantile(0.7 * HARD + 0.3 * rng.random(N), accuracy)
    return np.where(right, LABELS[:n], (LABELS[:n] + 1) % CLASSES)


@pytest.fixture
def add(tmp_path: Path) -> Add:
    """Makes a run; a score's name is `protocol` or `protocol@data`, its value an accuracy or the predicted classes."""

    def make(
        method: str,
        seed: int,
        scores: Mapping[str, float | np.ndarray],
        ids: Sequence[str] | None = None,
        record: Mapping[str, Any] | None = None,
        repeats: Any = "",
        **info: Any,
    ) -> Path:
        folder = tmp_path / "runs" / f"{method}-s{seed}-{len(list(tmp_path.glob('runs/*')))}"
        data = {name: DataRecord(name, {"sha256": name * 8}) for name in ("digits", "letters")}
        fields: dict[str, Any] = {"status": "finished", "kind": "pretrained", "data": data["digits"], "epochs": 8.0}
        fields |= {"backbone": BackboneRecord("vit_nano", {"img_size": 32}, 1000, 0.1, 65), **info}
        write_run(folder, RunInfo(method=method, seed=seed, **fields))
        for number, (name, value) in enumerate(scores.items()):
            protocol, _, where = name.partition("@")
            labels = predicted(value, 1000 * seed + 10 * number + len(method)) if isinstance(value, float) else value
            n = labels.shape[-1]
            accuracy = float((labels == LABELS[:n]).mean())
            interval = wilson(round(accuracy * n), n)
            own: dict[str, Any] = {"data": data[where or "digits"], "splits": {"test": SplitRecord("test", n)}}
            own |= {"variants": {"all": Score(accuracy, interval, None, repeats)}, **(record or {})}
            result = Result(protocol, 1, {}, "all", accuracy, interval, n, **own)
            names = list(ids or (f"{where}{i}" for i in range(n)))
            write_result(folder, result, Predictions(names, LABELS[:n].tolist(), {"all": labels, "other": labels}))
        return folder

    return make


def right_in(folder: Path) -> np.ndarray:
    """(N,) what its k-NN had right."""
    found = read_predictions(folder / "predictions" / "knn.parquet")
    return np.asarray(np.asarray(found.variants["prediction"])[0] == LABELS)


def test_two_runs_are_compared_by_mcnemars_test(add: Add) -> None:
    folders = {"mae": add("mae", 0, {"knn": 0.8}), "simclr": add("simclr", 0, {"knn": 0.7})}
    report = build_report(folders.values())
    protocol = report.blocks[0].protocols[0]
    right = {method: right_in(folder) for method, folder in folders.items()}
    pair = protocol.pairs[0]
    only = [int((right[a] & ~right[b]).sum()) for a, b in (("mae", "simclr"), ("simclr", "mae"))]
    assert (pair.a, pair.b, pair.exact, pair.p) == ("mae", "simclr", *mcnemar(*only))
    assert pair.difference == pytest.approx((only[0] - only[1]) / N)
    assert (pair.verdict, pair.adjusted) == ("one seed", None)  # however small p is
    best, other = protocol.methods
    assert (best.name, best.unbeaten, other.name, other.unbeaten) == ("mae", False, "simclr", False)
    assert best.one_seed and best.covers == "test images"
    assert best.accuracy == right["mae"].mean() and best.interval == wilson(int(right["mae"].sum()), N)
    assert best.over_classes == over_classes(right["mae"], LABELS)
    assert (protocol.title, protocol.variant, protocol.n_test) == ("knn", "all", N)
    assert report.blocks[0].ranking is None and report.ranking is None


def test_seeds_of_a_method_are_one_row_and_baselines_stand_beside(add: Add, tmp_path: Path) -> None:
    folders = []
    for seed in range(3):
        folders.append(add("mae", seed, {"knn": 0.80}, options={"method": {"mask_ratio": 0.75}}))
        add("mae", seed, {"knn": 0.78}, options={"method": {"mask_ratio": 0.5}})
    add("pixels", 0, {"knn": 0.4}, kind="baseline", backbone=None, epochs=None)
    protocol = build_report([tmp_path / "runs"]).blocks[0].protocols[0]
    assert {m.name: m.seeds for m in protocol.methods} == {
        "mae (mask_ratio=0.75)": (0, 1, 2),
        "mae (mask_ratio=0.5)": (0, 1, 2),
        "pixels": (0,),
    }
    assert all(pair.exact is None for pair in protocol.pairs) and len(protocol.pairs) == 3
    assert [pair.adjusted for pair in protocol.pairs] == holm([pair.p for pair in protocol.pairs])
    assert all(pair.verdict == "better" for pair in protocol.pairs if pair.b == "pixels")
    name = "mae (mask_ratio=0.75)"
    score = next(score for score in protocol.methods if score.name == name)
    right = np.stack([right_in(folder) for folder in folders])
    assert (score.accuracy, *score.interval) == pytest.approx(mean_over_seeds(right.mean(1).tolist(), N))
    assert score.over_classes == over_classes(right, LABELS, "draws")


def test_repetitions_are_draws_or_conditions(add: Add) -> None:
    """Alike in all but what was repeated: new draws vary, conditions do not."""
    labels = {
        method: np.stack([predicted(base - 0.1 * r, 7 * r + len(method)) for r in range(3)])
        for method, base in (("mae", 0.8), ("simclr", 0.75))
    }
    widths = []
    for protocol, repeats in (("fewshot", "draws"), ("robustness", "conditions")):
        folders = [add(method, 0, {protocol: rows}, repeats=repeats) for method, rows in labels.items()]
        found = build_report(folders).blocks[0].protocols[0]
        right = labels["mae"] == LABELS
        assert found.methods[0].over_classes == over_classes(right, LABELS, repeats) and found.pairs[0].exact is None
        widths.append(np.ptp(found.pairs[0].interval))
    assert widths[0] != widths[1]


def test_ranks_and_agreement_over_protocols(add: Add, tmp_path: Path) -> None:
    for seed in range(2):
        add("mae", seed, {"knn": 0.6, "linear": 0.6, "finetune": 0.95})
        add("simclr", seed, {"knn": 0.8, "linear": 0.8, "finetune": 0.85})
        add("byol", seed, {"knn": 0.7, "linear": 0.7, "finetune": 0.75, "classifier": 0.9})
    add("dino", 0, {"knn": 0.9, "linear": 0.9})  # of one seed: in no rank, and no reason to leave a protocol out
    add("random", 0, {"knn": 0.3, "linear": 0.3, "finetune": 0.3, "classifier": 0.3}, kind="baseline", epochs=None)
    ranking = build_report([tmp_path / "runs"]).blocks[0].ranking
    assert ranking is not None
    assert ranking.protocols == ("finetune", "knn", "linear") and ranking.left_out == ("classifier",)
    assert ranking.families == ("full-tune", "frozen-global") and ranking.data_sets == 1 and ranking.friedman is None
    assert {rank.name: rank.mean for rank in ranking.ranks} == {"simclr": 1.5, "mae": 2.0, "byol": 2.5}
    assert ranking.ranks[0].name == "simclr" and ranking.ranks[0].first > 0.9
    assert ranking.tau[1][2] == 1 and ranking.tau[0][1] == pytest.approx(-1 / 3)


def test_a_student_beside_its_teacher_leaves_the_ranks_alone(add: Add, tmp_path: Path) -> None:
    """Protocols that train are for one network of a run: they stay in the ranks, and a run is ranked once."""
    for method, more in (("mae", 0.0), ("simclr", 0.1)):
        for seed in range(2):
            add(method, seed, {"knn": 0.4 + more, "finetune": 0.6 - more})
    dinos = [
        add("dino", s, {"knn": 0.5, "finetune": 0.55}, record={"branch": "teacher"}, branch="teacher") for s in (0, 1)
    ]
    student = predicted(0.52, 77)
    accuracy = float((student == LABELS).mean())
    interval = wilson(round(accuracy * N), N)
    data = DataRecord("digits", {"sha256": "digits" * 8})
    variants = {"all": Score(accuracy, interval)}
    splits = {"test": SplitRecord("test", N)}
    result = Result(
        "knn", 1, {}, "all", accuracy, interval, N, data, variants=variants, splits=splits, branch="student"
    )
    for dino in dinos:
        write_result(dino, result, Predictions([str(i) for i in range(N)], LABELS, {"all": student}))
    (block,) = build_report([tmp_path / "runs"], branches="all").blocks
    assert block.ranking and block.ranking.left_out == () and set(block.ranking.protocols) == {"knn", "finetune"}
    assert {rank.name for rank in block.ranking.ranks} == {"mae", "simclr", "dino (branch=teacher)"}
    (knn,) = (protocol for protocol in block.protocols if protocol.title == "knn")
    assert {"dino (branch=student)", "dino (branch=teacher)"} < {score.name for score in knn.methods}
    (block,) = build_report([tmp_path / "runs"]).blocks
    assert {score.name for protocol in block.protocols for score in protocol.methods} == {"mae", "simclr", "dino"}


def test_ranks_are_of_the_same_draws_as_the_differences(add: Add, tmp_path: Path) -> None:
    """Test images drawn for all methods and protocols at once, and seeds, against the same put together here."""
    for method, seeds, accuracy in (("simclr", 2, 0.7), ("mae", 3, 0.7), ("byol", 2, 0.7)):
        for seed in range(seeds):
            add(method, seed, {"knn": accuracy, "finetune": accuracy - 0.1})
    report = build_report([tmp_path / "runs"]).blocks[0]
    assert report.ranking is not None
    tasks = []
    for protocol in ("finetune", "knn"):
        methods = []
        for method in ("byol", "mae", "simclr"):
            files = sorted(tmp_path.glob(f"runs/{method}-*/predictions/{protocol}.parquet"))
            right = np.stack([np.asarray(read_predictions(file).variants["prediction"]) == LABELS for file in files])
            methods.append(Answers(method, right, tuple(range(len(files)))))
        accuracy = np.array([method.shares.mean() for method in methods])
        images = image_draws(np.stack([method.shares for method in methods]), LABELS)
        tasks.append(Task(0, protocol, accuracy, accuracy + images + seed_draws(methods, block=report.title)))
    expected = {rank.name: rank for rank in rank_distribution(["byol", "mae", "simclr"], tasks)}
    assert all(0.01 < rank.first < 0.99 for rank in expected.values())
    for rank in report.ranking.ranks:
        assert rank.probabilities == pytest.approx(expected[rank.name].probabilities, abs=2e-3)


def test_many_pairs_get_draws_enough_to_be_significant(add: Add, tmp_path: Path) -> None:
    """23 methods have 253 pairs: of 10,000 draws even the smallest p, 2 / 10,001, would be above 5 % after Holm."""
    for method in range(23):
        for seed in range(2):
            right = np.arange(200) < (180 if method else 20) + seed
            add(f"m{method}", seed, {"knn": np.where(right, LABELS[:200], LABELS[:200] + 1)})
    pairs = build_report([tmp_path / "runs"]).blocks[0].protocols[0].pairs
    assert len(pairs) == 253
    assert [pair.verdict for pair in pairs if pair.b == "m0"] == ["better"] * 22


def test_data_sets_and_blocks(add: Add, tmp_path: Path) -> None:
    for seed in range(2):
        for method, here, there in (("mae", 0.8, 0.6), ("simclr", 0.7, 0.7)):
            add(method, seed, {"knn": here, "knn@letters": there})
            add(method, seed, {"knn": there}, epochs=100.0)
    report = build_report([tmp_path / "runs"], by="views")
    assert len(report.blocks) == 2 and report.ranking is not None
    ranking = report.blocks[0].ranking
    assert ranking is not None and ranking.protocols == ("knn", "knn@letters") and ranking.data_sets == 2
    assert ranking.friedman is not None and ranking.friedman.p > 0.05 and ranking.families == ("frozen-global",)
    assert report.ranking.data_sets == 3 and {r.name: r.mean for r in report.ranking.ranks}["simclr"] == pytest.approx(
        4 / 3
    )
    assert len(build_report([tmp_path / "runs"], by="nothing").blocks) == 1
    only = build_report([tmp_path / "runs"], "knn@letters", by="views")
    assert [p.title for block in only.blocks for p in block.protocols] == ["knn@letters"]


def test_what_was_chosen_on_the_test_images_is_not_compared(add: Add) -> None:
    oracle = {"selected": Selected({}, {"k": 1}, False, "none", True)}
    folders = [add(m, 0, {"knn": 0.7}) for m in ("mae", "simclr")]
    folders += [add(m, 1, {"linear": 0.7}, record=oracle) for m in ("mae", "simclr")]
    report = build_report(folders)
    assert [p.title for p in report.blocks[0].protocols] == ["knn"]
    assert report.notes == ("linear oracle chose on the test images and is not compared",)


def test_json_and_table(add: Add, tmp_path: Path, capsys: Capture) -> None:
    for method, accuracy in (("mae", 0.8), ("simclr", 0.6), ("byol", 0.795)):
        for seed in range(3):
            add(method, seed, {"knn": accuracy, "finetune": accuracy})
    runs = str(tmp_path / "runs")
    assert main(["compare", runs, "--format", "json"]) == 0
    text = capsys.readouterr().out
    model = json.loads(text)
    assert model["format"] == 1 and len(model["blocks"][0]["protocols"][0]["pairs"]) == 3
    assert text == comparison([tmp_path / "runs"], format="json")
    assert main(["compare", runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    rows = [line.split() for line in lines]
    starred = {row[0] for row in rows if row and row[-1] == "*"}
    assert starred == {"mae", "byol"} and sum(row[:3] == ["mae", "-", "simclr"] for row in rows) == 2
    assert sum("better" in row for row in rows) >= 2 and any(row[:2] == ["Kendall's", "tau"] for row in rows)
    assert any(row[:2] == ["Ranks", "over"] for row in rows)
    assert main(["compare", runs, "--protocol", "knn"]) == 0
    assert "finetune" not in capsys.readouterr().out


def test_the_table_by_hand(add: Add, tmp_path: Path) -> None:
    """Two runs whose answers are known: 400 and 390 of 600 right, 20 images that one alone has right, 10 the other."""
    right = np.arange(N) < 400
    other = right.copy()
    other[:20], other[400:410] = False, True
    for name, mask in (("mae", right), ("simclr", other)):
        add(name, 0, {"knn": np.where(mask, LABELS, LABELS + 1)})
    lines = comparison([tmp_path / "runs"]).splitlines()
    row = next(line for line in lines if line.startswith("mae - simclr")).split()
    exact, mid_p = mcnemar(20, 10)
    assert row[3] == "+1.67" and row[6:8] == [f"{mid_p:.3f}", "-"] and row[6] == "0.071" and exact > mid_p
    assert row[8:] == ["2.55", "one", "seed"]  # 2.8 sqrt(30 - 100 / 600) / 600
    assert next(line for line in lines if line.startswith("mae  ")).split()[1:3] == ["n=1", "66.7"]


def said(argv: list[str], capsys: Capture) -> str:
    assert main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_mistakes_are_one_line(add: Add, tmp_path: Path, capsys: Capture) -> None:
    alone = add("mae", 0, {"knn": 0.8})
    assert "nothing to compare among mae" in said(["compare", str(alone)], capsys)
    other = add("simclr", 0, {"linear": 0.8})
    assert "two methods with results of one protocol" in said(["compare", str(alone), str(other)], capsys)
    third = add("simclr", 1, {"knn": 0.8})
    both = [str(alone), str(third)]
    assert "'knm'; did you mean 'knn'?; there are knn" in said(["compare", *both, "--protocol", "knm"], capsys)
    assert "no format 'cvs'" in said(["compare", *both, "--format", "cvs"], capsys)
    assert "no budget 'view'; did you mean 'views'?" in said(["compare", *both, "--by", "view"], capsys)
    path = third / "predictions" / "knn.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:100])
    assert "is damaged" in said(["compare", *both], capsys)
    path.unlink()
    assert f"no predictions in {path}" in said(["compare", *both], capsys)


def test_other_test_images_are_refused(add: Add) -> None:
    folders = [add("mae", 0, {"knn": 0.8}), add("simclr", 0, {"knn": 0.8}, ids=[f"x{i}" for i in range(N)])]
    with pytest.raises(UserError, match="not of the same test images"):
        build_report(folders)
    fewer = add("byol", 0, {"knn": predicted(0.8, 0, 500)})
    with pytest.raises(UserError, match="nothing to compare among byol, mae"):
        build_report([folders[0], fewer])


@pytest.mark.integration
def test_it_needs_no_torch(add: Add, tmp_path: Path) -> None:
    add("mae", 0, {"knn": 0.8})
    add("simclr", 0, {"knn": 0.7})
    code = "import sys; from ssl_bench.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    run = subprocess.run(
        [sys.executable, "-c", code, "compare", str(tmp_path / "runs")], capture_output=True, text=True
    )
    assert run.returncode == 0 and "mae - simclr" in run.stdout, run.stderr
