"""Number formats of matrix products, and the memory that work takes."""

import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the GPU since its last reset, else of this program."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # on Linux, getrusage counts what the process that started this one held, too
    own = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(errors="replace")) if status.exists() else None
    if own:
        return int(own[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 arithmetic inside, whatever shortcuts (TF32, bfloat16) the process has switched on."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


def float32_at_least(x: torch.Tensor) -> torch.Tensor:
    """The same values in float32; in float64, where that is what everything is computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
