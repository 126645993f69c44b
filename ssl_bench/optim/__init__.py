"""Optimisers, parameter groups and schedules.

Names of `ssl_bench.optim.optimizers` can be had from here; torch is loaded when one is asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_bench.config.options import Optim as Optim
    from ssl_bench.optim.larc import LARC as LARC
    from ssl_bench.optim.optimizers import LARS as LARS
    from ssl_bench.optim.optimizers import StepSchedule as StepSchedule
    from ssl_bench.optim.optimizers import build_optimizer as build_optimizer
    from ssl_bench.optim.optimizers import clip_gradients as clip_gradients
    from ssl_bench.optim.optimizers import parameter_groups as parameter_groups

_WHERE = {
    "Optim": "config.options",
    "LARC": "optim.larc",
    **dict.fromkeys(
        ("LARS", "StepSchedule", "build_optimizer", "clip_gradients", "parameter_groups"), "optim.optimizers"
    ),
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ssl_bench.optim' has no attribute {name!r}")
    return getattr(importlib.import_module(f"ssl_bench.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__]
