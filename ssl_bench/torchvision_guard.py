"""Lets torchvision import beside a torch that it was not built for. Import it before timm, lightning or torchvision.

PyPI has torchvision for CUDA only. Beside a CPU build of torch its compiled part does not load, and then
`import torchvision` fails while describing two detection operators that nothing here uses. Naming the two is enough:
transforms and data sets are Python. Where the compiled part does load, nothing is done.
"""

import importlib.util
import re
from pathlib import Path

import torch

spec = importlib.util.find_spec("torchvision")
version = Path(spec.origin).with_name("version.py").read_text() if spec is not None and spec.origin else ""
if torch.version.cuda is None and re.search(r"__version__ = '[^']*\+cu", version):
    library = torch.library.Library("torchvision", "DEF")  # kept: dropping it undoes the definitions
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
