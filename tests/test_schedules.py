"""Schedules against the official codes' values; `Optim` on top of them is in test_optim.py."""

import math

import pytest
from golden_files import load

from ssl_bench.schedules import cosine, warmup_cosine


@pytest.mark.parametrize("case", load("mae_optim_groups")[0]["lr_sched"], ids=lambda c: f"warm-up {c['warmup']}")
def test_mae_in_fractions_of_epochs(case: dict[str, float]) -> None:
    """A step is a quarter of an epoch here; 1.5 epochs of warm-up are 6 steps."""
    per_epoch = case["iters_per_epoch"]
    total, warmup = case["epochs"] * per_epoch, int(case["warmup"] * per_epoch)
    for step, (lr, *_) in enumerate(case["values"]):
        assert warmup_cosine(step, total, warmup, case["lr"], case["min_lr"]) == pytest.approx(lr, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("case", load("simclr_schedule")[0]["schedules"])
def test_simclr_in_steps(case: dict[str, float]) -> None:
    config = load("simclr_schedule")[0]["config"]
    base = config["base_lr"] * {"linear": config["batch"] / 256, "sqrt": math.sqrt(config["batch"])}[case["scaling"]]
    total = config["num_examples"] * config["epochs"] // config["batch"] + 1
    warmup = int(round(case["warmup_epochs"] * config["num_examples"] // config["batch"]))
    assert total == case["train_steps"]
    for step, lr in enumerate(case["lr"]):
        # TensorFlow computes in float32, where the cosine near its end is a difference of near numbers.
        assert warmup_cosine(step, total, warmup, base) == pytest.approx(lr, rel=1e-6, abs=1e-7 * base)


def test_byol_rate_and_momentum() -> None:
    record = load("byol_lars_schedules")[0]
    lr, ema = record["lr"], record["ema"]
    for step, value in enumerate(lr["values"]):
        ours = warmup_cosine(step, lr["total"], lr["warmup"], lr["base"] * lr["batch"] / 256)
        assert ours == pytest.approx(value, rel=1e-6, abs=1e-8)
    for step, value in enumerate(ema["values"]):
        assert cosine(step, ema["max_steps"], ema["base"], 1.0) == pytest.approx(value, rel=1e-6)


def test_end_points() -> None:
    assert warmup_cosine(0, 10, 4, 2.0) == 0.0
    assert warmup_cosine(2, 10, 4, 2.0) == 1.0
    assert warmup_cosine(4, 10, 4, 2.0) == 2.0
    assert warmup_cosine(7, 10, 4, 2.0, 1.0) == pytest.approx(1.5)
    assert warmup_cosine(10, 10, 4, 2.0, 0.5) == 0.5
    assert warmup_cosine(99, 10, 4, 2.0, 0.5) == 0.5
    assert warmup_cosine(0, 10, 0, 2.0) == 2.0
    assert warmup_cosine(3, 3, 3, 2.0) == 2.0  # all warm-up
    assert [cosine(step, 8, 0.04, 0.4) for step in (0, 4, 8)] == pytest.approx([0.04, 0.22, 0.4])
