"""Values that change with training, as functions of the optimiser step. Torch-free.

T steps in all, W of them warm-up; a step's value holds for its forward, its backward and its update.
"""

import math
from collections.abc import Sequence


def warmup_cosine(step: int, total: int, warmup: int, base: float, final: float = 0.0, start: float = 0.0) -> float:
    """``start`` to ``base`` in a line over W steps, then half a cosine to ``final`` over the other T - W.

    The first step has exactly ``start`` when there is a warm-up, step W has ``base`` (MAE `util/lr_sched.py`, SimCLR
    `WarmUpAndCosineDecay`).
    """
    if step < warmup:
        return start + (base - start) * step / warmup
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return final + (base - final) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine_dino(step: int, total: int, warmup: int, base: float, final: float, start: float = 0.0) -> float:
    """As `warmup_cosine`, but the warm-up's last step, W - 1, has ``base`` already, and so has W.

    DINO `utils.cosine_scheduler`, which iBOT and CAE use too.
    """
    if step < warmup:
        return start + (base - start) * step / max(1, warmup - 1)
    return warmup_cosine(step, total, warmup, base, final)


def warmed_up(epoch: int, warmup: int, start: float, end: float) -> float:
    """A line from ``start`` that has ``end`` in the warm-up's last epoch, and ``end`` from then on.

    Temperatures of DINO's and iBOT's teachers.
    """
    return end if epoch >= warmup else start + (end - start) * epoch / max(1, warmup - 1)


def warmup_cosine_simmim(step: int, total: int, warmup: int, base: float, final: float, start: float = 0.0) -> float:
    """A line over W steps, then the rest of a half cosine that began at step 0; each step has the one before's value.

    SimMIM `lr_scheduler.py` with timm's `CosineLRScheduler`, stepped after the update, without warm-up prefix.
    """
    update = max(step - 1, 0)
    if update < warmup:
        return start + (base - start) * update / warmup
    return warmup_cosine(update, total, 0, base, final)


def warmup_steps_simmim(step: int, warmup: int, base: float, milestones: Sequence[int], start: float = 0.0) -> float:
    """A line over W steps, then ``base``, divided by ten from each milestone on; each step has the one before's value.

    SimMIM `lr_scheduler.py`, `MultiStepLRScheduler` with its gamma of 0.1.
    """
    update = max(step - 1, 0)
    if update < warmup:
        return start + (base - start) * update / warmup
    return base * 0.1 ** sum(update >= milestone for milestone in milestones)


def cosine(step: int, total: int, start: float, end: float) -> float:
    """Half a cosine from ``start`` at step 0 to ``end`` at step T (weight decay, teacher momentum)."""
    return warmup_cosine(step, total, 0, start, end)
