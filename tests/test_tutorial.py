"""docs/your-method.md, done as it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from ssl_bench.cli.main import main

PAGE = (ROOT / "docs" / "your-method.md").read_text(encoding="utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]


def test_the_method_is_short() -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) < 60


def test_its_commands_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "align_uniform.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    commands = [line for line in PAGE.splitlines() if line.startswith("ssl-bench fit")]
    assert len(commands) == 2
    small = "--backbone vit_pico_patch4_32 --data digits --data.batch_size 64 --trainer.limit_train_batches 2"
    argv = [*commands[0].split()[1:], *small.split(), "--backbone.img_size", "8", "--trainer.max_epochs", "1"]
    assert main([*argv, "--runs", str(tmp_path / "runs")]) == 0
    folder = Path(capfd.readouterr().out.strip().splitlines()[-1])
    assert (folder / "backbone.safetensors").exists()
    assert main(commands[1].split()[1:]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "of the Gaussian potential between images" in shown


@pytest.mark.integration
def test_an_entry_point_gives_it_a_name(tmp_path: Path) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "align_uniform.py").write_text(CODE)
    info = tmp_path / "my_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[ssl_bench.methods]\nalign-uniform = my_package.align_uniform:AlignUniform\n"
    )
    code = (
        "import sys; sys.path[:0] = [%r, %r]\nfrom ssl_bench.cli.main import main\nsys.exit(main(['list', 'methods']))"
    )
    run = subprocess.run([sys.executable, "-c", code % (str(tmp_path), str(ROOT))], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    listed = r"^ *align-uniform .*Alignment and uniformity: views of an image lie close"
    assert re.search(listed, run.stdout, re.MULTILINE)
