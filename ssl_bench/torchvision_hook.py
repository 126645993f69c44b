"""Lets torchvision import beside a torch that it was not built for.

PyPI has torchvision for CUDA only. Beside a CPU build of torch its compiled part does not load, and then
`import torchvision` fails while describing two detection operators that nothing here uses. Declaring the two is enough:
transforms and data sets are Python. Where the compiled part does load, nothing is done.
"""

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

OPERATORS = ("nms", "qnms")


class TorchvisionFinder:
    """Finds nothing itself; declares the operators just before torchvision is first imported, where they will lack."""

    library: Any = None  # kept: dropping it undoes the declarations

    @classmethod
    def find_spec(cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """Called by Python for each module that is imported for the first time."""
        if name != "torchvision":
            return
        sys.meta_path.remove(cls)  # type: ignore[arg-type]
        if built_for_cuda() and lacks_cuda():
            import torch

            cls.library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                cls.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def built_for_cuda() -> bool:
    """Whether the installed torchvision was compiled for CUDA."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    return re.search(r"__version__ = '[^']*\+cu", Path(spec.origin).with_name("version.py").read_text()) is not None


def lacks_cuda() -> bool:
    """Whether the installed torch was compiled without CUDA."""
    import torch

    return torch.version.cuda is None


def install() -> None:
    """Watch for the first import of torchvision."""
    if "torchvision" not in sys.modules and TorchvisionFinder not in sys.meta_path:
        sys.meta_path.insert(0, TorchvisionFinder)  # type: ignore[arg-type]
