"""Values that change with training, as functions of the optimiser step. Torch-free.

T steps in all, W of them warm-up; a step's value holds for its forward, its backward and its update.
"""

import math


def warmup_cosine(step: int, total: int, warmup: int, base: float, final: float = 0.0) -> float:
    """0 to ``base`` in a line over W steps, then half a cosine to ``final`` over the other T - W.

    The first step has exactly 0 when there is a warm-up, step W has ``base`` (MAE `util/lr_sched.py`, SimCLR
    `WarmUpAndCosineDecay`).
    """
    if step < warmup:
        return base * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (base - final) * 0.5 * (1 + math.cos(math.pi * progress))


def cosine(step: int, total: int, start: float, end: float) -> float:
    """Half a cosine from ``start`` at step 0 to ``end`` at step T (weight decay, teacher momentum)."""
    return warmup_cosine(step, total, 0, start, end)
