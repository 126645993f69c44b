"""Lets torchvision import beside a torch that it was not built for.

PyPI has torchvision for CUDA only. Beside a CPU build of torch its compiled part does not load, and then
`import torchvision` fails while describing two detection operators that nothing here uses. Declaring the two is enough:
transforms and data sets are Python. Where the compiled part does load, nothing is done.

The file stands alone: an installed package runs it whenever Python starts (`build_backend.py`), so that timm and
Lightning can be imported before ssl_bench, too.
"""

import sys


class TorchvisionFinder:
    """Finds nothing itself; declares the operators just before torchvision is first imported, where they would lack."""

    library = None  # kept: dropping it undoes the declarations

    @classmethod
    def find_spec(cls, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """Called by Python for each module that is imported for the first time."""
        if name == "torchvision":
            sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != cls.__name__]
            if lacks_operators():
                import torch

                TorchvisionFinder.library = torch.library.Library("torchvision", "DEF")
                for operator in ("nms", "qnms"):
                    schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    TorchvisionFinder.library.define(schema)


def lacks_operators() -> bool:
    """Whether torchvision was compiled for CUDA and torch was not."""
    import importlib.util
    import re
    from pathlib import Path

    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    if not re.search(r"__version__ = '[^']*\+cu", Path(spec.origin).with_name("version.py").read_text()):
        return False
    import torch

    return torch.version.cuda is None


def install() -> None:
    """Watch for the first import of torchvision."""
    known = any(getattr(finder, "__name__", "") == TorchvisionFinder.__name__ for finder in sys.meta_path)
    if "torchvision" not in sys.modules and not known:
        sys.meta_path.insert(0, TorchvisionFinder)  # type: ignore[arg-type]
