"""Schedules against the official codes' values; `Optim` on top of them is in test_optim.py."""

import math

import pytest
from golden_files import load

from ssl_bench.optim.schedules import (
    cosine,
    warmup_cosine,
    warmup_cosine_dino,
    warmup_cosine_simmim,
    warmup_steps_simmim,
)


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


def test_dino_rate_weight_decay_and_momentum() -> None:
    record = load("dino_step")[0]
    c, values = record["config"], record["schedules"]
    total, warmup = c["epochs"] * c["niter"], c["warm"] * c["niter"]
    assert len(values["lr"]) == total
    for step in range(total):
        assert warmup_cosine_dino(step, total, warmup, c["lr"], c["min_lr"]) == pytest.approx(values["lr"][step])
        assert cosine(step, total, c["wd"], c["wd_end"]) == pytest.approx(values["wd"][step])
        assert cosine(step, total, c["m"], 1.0) == pytest.approx(values["momentum"][step])


def test_simmim_lags_one_step_behind_its_own_updates() -> None:
    """The official loop steps its scheduler after the optimiser: iterations 0 and 1 both have the first value."""
    record = load("simmim_schedules")[0]["schedules"]
    for name in ("cosine", "multistep"):
        case = record[name]
        per_epoch = case["iters_per_epoch"]
        total, warmup = case["epochs"] * per_epoch, case["warmup_epochs"] * per_epoch
        for step in range(total):
            if name == "cosine":
                lr = warmup_cosine_simmim(step, total, warmup, case["base_lr"], case["min_lr"], start=case["warmup_lr"])
            else:
                milestones = [epoch * per_epoch for epoch in case["milestones"]]
                lr = warmup_steps_simmim(step, warmup, case["base_lr"], milestones, start=case["warmup_lr"])
            assert lr == pytest.approx(case["lr_at_update"][max(step - 1, 0)], rel=1e-9), (name, step)


def test_other_warm_ups_by_hand() -> None:
    """DINO's ends on the base a step early and stays there for two; SimMIM's cosine began at step 0."""
    assert [warmup_cosine_dino(step, 12, 4, 3.0, 0.0) for step in range(6)] == pytest.approx(
        [0.0, 1.0, 2.0, 3.0, 3.0, 1.5 * (1 + math.cos(math.pi / 8))]
    )
    assert [warmup_cosine_dino(step, 4, 1, 3.0, 0.0) for step in (0, 1)] == [0.0, 3.0]  # a warm-up of one step
    assert warmup_cosine_dino(0, 4, 0, 3.0, 0.0) == 3.0
    found = [warmup_cosine_simmim(step, 8, 2, 2.0, 0.0, start=1.0) for step in range(6)]
    assert found == pytest.approx([1.0, 1.0, 1.5, 1 + math.cos(math.pi / 4), 1 + math.cos(3 * math.pi / 8), 1.0])
    steps = [warmup_steps_simmim(step, 2, 2.0, [4, 6], start=0.0) for step in range(9)]
    assert steps == pytest.approx([0.0, 0.0, 1.0, 2.0, 2.0, 0.2, 0.2, 0.02, 0.02])
    assert warmup_cosine_simmim(0, 8, 0, 2.0, 0.0) == warmup_steps_simmim(0, 0, 2.0, []) == 2.0


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
