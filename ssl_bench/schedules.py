"""Values that change with training, as functions of the optimiser step. Torch-free."""

from ssl_bench.optim.schedules import (
    cosine,
    warmed_up,
    warmup_cosine,
    warmup_cosine_dino,
    warmup_cosine_simmim,
    warmup_steps_simmim,
)

__all__ = [
    "cosine",
    "warmed_up",
    "warmup_cosine",
    "warmup_cosine_dino",
    "warmup_cosine_simmim",
    "warmup_steps_simmim",
]
