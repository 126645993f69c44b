"""The hook that lets torchvision import beside a torch without CUDA."""

import importlib
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from paths import ROOT

from ssl_bench import torchvision_hook

HOOK = str(ROOT / "ssl_bench" / "torchvision_hook.py")
# As the start-up file of an installed package does it: the file alone is run, without its package.
START = f"exec(open({HOOK!r}, encoding='utf-8').read() + '\\ninstall()\\n', {{'__name__': 'torchvision_hook'}})"
MISMATCH = torch.version.cuda is None and "+cu" in importlib.import_module("torchvision.version").__version__


def python(code: str) -> subprocess.CompletedProcess[str]:
    """In a Python that reads no .pth file, so that nothing has been installed yet."""
    site = str(Path(torch.__file__).parents[1])
    code = f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {site!r}]\n{code}"
    return subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=120)


@pytest.mark.integration
@pytest.mark.parametrize("first", ["timm", "pytorch_lightning", "torchvision"])
def test_an_installed_package_lets_others_be_imported_first(first: str) -> None:
    done = python(f"{START}\nimport {first}\nimport ssl_bench.pretraining.training")
    assert done.returncode == 0, done.stderr


@pytest.mark.integration
def test_after_a_failed_import_everything_works() -> None:
    attempt = "try:\n    import timm\nexcept RuntimeError:\n    print('failed')\n"
    done = python(f"{attempt}import ssl_bench, timm, torchvision.transforms")
    assert done.returncode == 0, done.stderr
    assert ("failed" in done.stdout) == MISMATCH


def test_it_does_nothing_where_the_two_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_hook, "lacks_operators", lambda: False)
    monkeypatch.setattr(torchvision_hook.TorchvisionFinder, "library", None)
    monkeypatch.setattr(sys, "meta_path", [torchvision_hook.TorchvisionFinder, *sys.meta_path])
    assert torchvision_hook.TorchvisionFinder.find_spec("torchvision") is None
    assert torchvision_hook.TorchvisionFinder.library is None
    assert torchvision_hook.TorchvisionFinder not in sys.meta_path, "it has done its work"


def test_a_torch_with_cuda_needs_no_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert not torchvision_hook.lacks_operators()


def test_what_else_is_imported_is_left_to_others() -> None:
    assert torchvision_hook.TorchvisionFinder.find_spec("torchvision.ops") is None
    assert torchvision_hook.lacks_operators() == MISMATCH
    assert version("torchvision")
