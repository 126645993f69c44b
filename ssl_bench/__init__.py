"""ssl-bench: one benchmark for self-supervised visual pretraining.

Importing this package loads the standard library only; each name of its Python API loads what it needs when it is first
asked for. `docs/python.md` explains them.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench import torchvision_hook

if TYPE_CHECKING:
    from ssl_bench import heads as heads
    from ssl_bench import losses as losses
    from ssl_bench import optim as optim
    from ssl_bench import schedules as schedules
    from ssl_bench import views as views
    from ssl_bench.api.compare import compare as compare
    from ssl_bench.api.evaluate import evaluate as evaluate
    from ssl_bench.api.features import evaluate_features as evaluate_features
    from ssl_bench.api.knn import KNN as KNN
    from ssl_bench.api.listing import list_backbones as list_backbones
    from ssl_bench.api.listing import list_datasets as list_datasets
    from ssl_bench.api.listing import list_evaluations as list_evaluations
    from ssl_bench.api.listing import list_methods as list_methods
    from ssl_bench.api.methods import create_method as create_method
    from ssl_bench.api.methods import load_method as load_method
    from ssl_bench.api.results import load_results as load_results
    from ssl_bench.api.runs import Run as Run
    from ssl_bench.api.runs import fit as fit
    from ssl_bench.api.save import save_run as save_run
    from ssl_bench.errors import UserError as UserError
    from ssl_bench.leaderboard.publish import leaderboard as leaderboard

__version__ = "0.1.0"

# In a checkout, methods/, evaluations/ and configs/ sit beside this package; a wheel nests them inside it.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").is_file() and (_checkout / "methods" / "__init__.py").is_file():
    __path__.append(str(_checkout))

torchvision_hook.install()

_WHERE = {
    **dict.fromkeys(("list_backbones", "list_datasets", "list_evaluations", "list_methods"), "api.listing"),
    **dict.fromkeys(("create_method", "load_method"), "api.methods"),
    **dict.fromkeys(("Run", "fit"), "api.runs"),
    "save_run": "api.save",
    "evaluate": "api.evaluate",
    "evaluate_features": "api.features",
    "KNN": "api.knn",
    "load_results": "api.results",
    "compare": "api.compare",
    "UserError": "errors",
}
_MODULES = ("heads", "leaderboard", "losses", "optim", "schedules", "views")  # the package `leaderboard` can be called
__all__ = sorted([*_WHERE, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ssl_bench.{name}")
    if name not in _WHERE:
        raise AttributeError(f"module 'ssl_bench' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"ssl_bench.{_WHERE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
