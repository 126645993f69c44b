"""The build backend: setuptools, and a file that installs the torchvision hook whenever Python starts.

Who has a torch without CUDA beside PyPI's torchvision cannot import timm or Lightning (`ssl_bench/torchvision_hook.py`
says why). The hook heals that, but only a `.pth` file in site-packages is read before a user's first import.
"""

import base64
import hashlib
import zipfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

HOOK = "ssl_bench/torchvision_hook.py"
START = "ssl_bench_torchvision_hook.pth"


def build_wheel(folder: str, settings: Any = None, metadata: str | None = None) -> str:
    """A wheel, whose hook lies beside the start-up file."""
    name = build_meta.build_wheel(folder, settings, metadata)
    _add_start(Path(folder) / name, f"sitedir + '/{HOOK}'")
    return name


def build_editable(folder: str, settings: Any = None, metadata: str | None = None) -> str:
    """An editable install, whose hook lies in the checkout."""
    name = build_meta.build_editable(folder, settings, metadata)
    _add_start(Path(folder) / name, repr(str(Path(__file__).resolve().parent / HOOK)))
    return name


def _add_start(wheel: Path, hook: str) -> None:
    """Put the start-up file into a wheel and its RECORD; Python runs a line of a .pth file that begins with import."""
    run = f"exec(open({hook}, encoding='utf-8').read() + '\\ninstall()\\n', {{'__name__': 'torchvision_hook'}})"
    line = f"import os; os.path.isfile({hook}) and {run}\n".encode()
    digest = base64.urlsafe_b64encode(hashlib.sha256(line).digest()).rstrip(b"=").decode()
    changed = wheel.with_suffix(".tmp")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        for item in old.infolist():
            content = old.read(item)
            if item.filename.endswith(".dist-info/RECORD"):
                content = f"{START},sha256={digest},{len(line)}\n".encode() + content
            new.writestr(item, content)
        new.writestr(START, line)
    changed.replace(wheel)
