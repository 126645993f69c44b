"""Tables from run folders. Torch-free, and a pure function of the folders: it can be made again at any time.

`ssl_bench.leaderboard("runs/")` is a call of this package, which `publish` answers.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """A package with the name of a function of the Python API: importing one must not hide the other."""

    def __call__(self, *args: Any, **options: Any) -> "str | Path":
        from ssl_bench.leaderboard.publish import leaderboard

        return leaderboard(*args, **options)


sys.modules[__name__].__class__ = _Callable
