"""A wheel holds what the tree holds, under the import names of a checkout."""

import base64
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.integration


def tree() -> set[str]:
    """Files a wheel must hold, by their path in it."""
    wanted = {str(p.relative_to(ROOT)) for p in (ROOT / "ssl_bench").rglob("*") if p.is_file()}
    for folder in ("methods", "evaluations", "configs"):
        wanted |= {f"ssl_bench/{p.relative_to(ROOT)}" for p in (ROOT / folder).rglob("*") if p.is_file()}
    return {name for name in wanted if "__pycache__" not in name}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    copied = ("ssl_bench", "methods", "evaluations", "configs", "setup.cfg", "pyproject.toml")
    copied += ("build_backend.py", "MANIFEST.in", "README.md", "LICENSE")
    for name in copied:  # a build leaves folders behind: not in the checkout
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", str(ROOT / name), str(target)], check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_tree(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {n for n in names if "__pycache__" not in n} == tree() | {"ssl_bench_torchvision_hook.pth"}


def test_the_wheel_installs_the_hook_that_starts_with_python(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        line = opened.read("ssl_bench_torchvision_hook.pth").decode()
        record = opened.read(next(name for name in opened.namelist() if name.endswith("/RECORD"))).decode()
    assert line.startswith("import ") and line.count("\n") == 1 and "sitedir + '/ssl_bench/torchvision_hook.py'" in line
    assert f"ssl_bench_torchvision_hook.pth,sha256={_digest(line)},{len(line)}" in record.splitlines()


def _digest(line: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(line.encode()).digest()).rstrip(b"=").decode()


def test_the_wheel_runs_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import ssl_bench, sys; from ssl_bench.config import registry; from ssl_bench.cli.main import main;"
        "assert 'site' in ssl_bench.__file__ and {'mae', 'simclr'} <= set(registry.names('methods'));"
        "assert dict(registry.recipes()); sys.exit(main(['fit', '--method', 'mae', '--print_config']))"
    )
    environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "mask_ratio: 0.75" in run.stdout


def test_a_second_name_for_a_page_is_refused() -> None:
    run = subprocess.run([sys.executable, "-c", "import methods"], cwd=ROOT, capture_output=True, text=True)
    assert "import ssl_bench.methods, not methods" in run.stderr


def test_the_checkout_works_without_being_installed(tmp_path: Path) -> None:
    code = (
        "from ssl_bench.config.registry import folder, names;"
        "assert 'mae' in names('methods') and folder('evaluations').is_dir()"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-S", "-c", code], cwd=tmp_path, env=environment, check=True)
