"""Numbers that are no accuracy: written, read, averaged over seeds, compared by the parts of their images, ranked."""

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from made import DATA, full_run

from ssl_bench.errors import UserError
from ssl_bench.leaderboard.build import build
from ssl_bench.leaderboard.significance import build_report
from ssl_bench.records.predictions import Predictions, read_predictions, write_predictions
from ssl_bench.records.result import Result, Score, SplitRecord, write_result
from ssl_bench.records.store import load_runs
from ssl_bench.statistics.bootstrap import Statistic

N = 200


def scored_run(root: Path, method: str, seed: int, better: float) -> tuple[Path, Statistic]:
    """A run with a mean IoU, whose images are as hard for all."""
    folder = full_run(root, method, seed, protocols=("knn",))
    hard, rng = np.random.default_rng(0).beta(4, 2, N), np.random.default_rng([seed, len(method)])
    union = np.full(N, 100.0)
    inner = np.clip(np.rint(100 * (hard + better + 0.02 * rng.normal(size=N))), 0, 100)
    statistic = Statistic(np.stack([inner, union], 1), lambda sums: sums[..., 0] / sums[..., 1])
    value, interval = statistic.value, statistic.interval()
    result = Result(
        protocol="segmentation",
        version=1,
        options={},
        primary="mIoU",
        value=value,
        interval=interval,
        n_test=N,
        data=DATA,
        variants={"mIoU": Score(value, interval)},
        splits={"test": SplitRecord("test", N)},
        metric="mIoU",
    )
    write_result(folder, result, Predictions([f"t{i}" for i in range(N)], [0] * N, {}, {"mIoU": statistic.parts()}))
    return folder, statistic


def test_parts_come_back(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    parts = {"mIoU": np.array([0.5, -0.2, 1.7]), "fwIoU": np.array([0.1, 0.2, 0.3])}
    write_predictions(path, "mIoU", Predictions(["a", "b", "c"], [0, 0, 0], {}, parts))
    assert pyarrow.parquet.read_schema(path).names == ["id", "label", "score", "fwIoU"]
    found = read_predictions(path)
    assert found.right.tolist() == [[0.5, -0.2, 1.7]] and found.ids == ("a", "b", "c")
    write_predictions(path, "mIoU", Predictions(["a"], [0], {}, {"mIoU": np.array([np.nan])}))
    with pytest.raises(UserError, match="score is not finite"):
        read_predictions(path)


def test_two_methods_of_three_seeds_are_compared(tmp_path: Path) -> None:
    made = {
        name: [scored_run(tmp_path, name, seed, better)[1] for seed in range(3)]
        for name, better in (("mae", 0.03), ("simclr", 0.0))
    }
    table = build(load_runs([tmp_path]))
    (block,) = table.blocks
    place = [column.title for column in block.columns].index("segmentation")
    assert block.columns[place].variant == "mIoU"
    for row in block.rows:
        cell, values = row.cells[place], [statistic.value for statistic in made[row.name]]
        assert (
            cell is not None and cell.mean == pytest.approx(np.mean(values)) and cell.covers == "seeds and test images"
        )
        low, high = made[row.name][0].interval()
        assert cell.high - cell.low == pytest.approx(high - low, rel=0.25), "seeds differ by little, images by much"
    report = build_report([tmp_path], "segmentation")
    (pair,) = next(p.pairs for p in report.blocks[0].protocols if p.title == "segmentation")
    difference = np.mean([s.value for s in made["mae"]]) - np.mean([s.value for s in made["simclr"]])
    assert (pair.a, pair.b) == ("mae", "simclr") and pair.difference == pytest.approx(difference, abs=1e-9)
    assert pair.verdict == "better" and pair.exact is None and pair.interval[0] > 0
    assert pair.interval[1] - pair.interval[0] < 0.2 * (high - low), "images are paired: they are as hard for both"
