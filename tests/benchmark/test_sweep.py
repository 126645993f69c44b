"""Sweeps: points that follow from the file and the scores, and the best by the validation split."""

import math
from pathlib import Path

import pytest
import yaml

from ssl_bench.benchmark.runner import parse_benchmark
from ssl_bench.benchmark.sweep import Interval, points_of, read_sweep, validation_score
from ssl_bench.cli.main import main
from ssl_bench.errors import UserError

SPACE = {
    "optim.base_lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "backbone.depth": {"low": 1, "high": 3},
    "method.temperature": {"low": 0.1, "high": 0.5},
    "data.batch_size": [64, 128],
}


def test_random_points_are_spread_over_their_space_and_the_same_each_time():
    sweep = read_sweep({"random": 400, **SPACE})
    points = points_of(sweep, lambda point: None)
    assert points == points_of(sweep, lambda point: 0.5) and len(points) == 400
    assert points != points_of(read_sweep({"random": 400, "sampler_seed": 1, **SPACE}), lambda point: None)
    assert points[:3] == points_of(read_sweep({"random": 3, **SPACE}), lambda point: None)  # more include the fewer
    rates = [point["optim.base_lr"] for point in points]
    each = [sum(1 for rate in rates if math.floor(math.log10(rate)) == power) for power in (-4, -3, -2)]
    assert all(100 < count < 170 for count in each)  # an order of magnitude as often as another
    depths = [point["backbone.depth"] for point in points]
    assert set(depths) == {1, 2, 3} and all(100 < depths.count(depth) < 170 for depth in (1, 2, 3))
    assert {point["data.batch_size"] for point in points} == {64, 128}
    assert min(p["method.temperature"] for p in points) >= 0.1 and max(p["method.temperature"] for p in points) <= 0.5


def test_the_ends_of_an_interval():
    assert Interval(1, 3, whole=True).at(0.0) == 1 and Interval(1, 3, whole=True).at(0.9999) == 3
    assert Interval(1e-4, 1e-1, log=True).at(0.5) == pytest.approx(10**-2.5, rel=1e-3)


def test_optuna_is_told_in_rounds_and_finds_the_better_region():
    def score(point):
        return 1 - abs(math.log10(point["x"]) + 2) / 4  # best at 0.01

    sweep = read_sweep({"optuna": 40, "together": 4, "x": {"low": 1e-6, "high": 1.0, "log": True}})
    begun = points_of(sweep, lambda point: None)
    assert len(begun) == 4  # and no more until these have scores
    known = {point["x"]: score(point) for point in begun}
    second = points_of(sweep, lambda point: known.get(point["x"]))
    assert second[:4] == begun and len(second) == 8
    every = points_of(sweep, score)
    assert len(every) == 40 and every[:8] == second  # an interrupted sweep goes on at the same points
    near = [score(point) > 0.9 for point in every[20:]]
    assert sum(near) > 7  # of 20; a random point is so near with a probability of 0.8 / 6
    assert len({point["x"] for point in every}) > 35


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"random": 0, "x": [1]}, "1 or more"),
        ({"random": "many", "x": [1]}, "random 'many'"),
        ({"random": 3}, "draws nothing"),
        ({"random": 3, "optuna": 3, "x": [1]}, "leave one out"),
        ({"random": 3, "x": {"low": 1}}, "low: ..., high"),
        ({"random": 3, "x": {"low": "1e-4", "high": 1}}, "write 1.0e-4"),
        ({"random": 3, "x": {"low": 0, "high": 1, "log": True}}, "above 0"),
        ({"random": 3, "x": {"low": 2, "high": 1}}, "below high"),
        ({"random": 3, "select": "kn", "x": [1]}, "did you mean 'knn'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(axes, said):
    with pytest.raises(UserError, match=said) as caught:
        read_sweep(axes)
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_the_best_by_the_validation_split_alone_is_evaluated(tmp_path, capfd):
    """From the file on: three runs, then one evaluation, of the run whose probe says most."""
    fit = {"trainer": {"max_epochs": 1, "limit_train_batches": 2}, "optim": {"warmup_epochs": 0}}
    tree = {
        "methods": ["simclr"],
        "data": ["digits"],
        "backbones": [{"name": "vit_pico_patch4_32", "img_size": 8}],
        "axes": {"random": 3, "optim.base_lr": {"low": 1e-4, "high": 10.0, "log": True}},
        "fit": {**fit, "data": {"batch_size": 64}},
        "evaluate": {"protocols": ["knn"]},
        "baselines": ["pixels"],
    }
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(tree))
    argv = ["-c", str(file), "--runs", str(tmp_path / "runs")]
    benchmark = parse_benchmark(argv)
    assert len(benchmark.jobs) == len(benchmark.fits) == 3 and benchmark.again is not None
    for job in benchmark.fits:
        assert main(list(job.argv)) == 0
    capfd.readouterr()
    jobs = benchmark.again()
    evaluated = [job.after for job in jobs if job.asked is not None]
    folders = [job.folder for job in benchmark.fits]
    best = max(folders, key=lambda folder: validation_score([folder], "knn"))
    assert [job.folder for job in jobs if job.folder] == folders and evaluated == [best, None]  # and the pixels
    assert "best of 3 points by knn on the validation split: optim.base_lr" in capfd.readouterr().err
    (Path(best) / "metrics.csv").write_text("step,loss\n1,2\n")
    with pytest.raises(UserError, match="no knn of the online probe"):
        benchmark.again()
