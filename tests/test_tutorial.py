"""docs/your-method.md and your-evaluation.md, done as they say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from PIL import Image

from ssl_bench.benchmark.plan import plan
from ssl_bench.cli.main import main
from ssl_bench.records.result import read_result

PAGE = (ROOT / "docs" / "your-method.md").read_text(encoding="utf-8")


def code_of(page: str) -> str:
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]  # type: ignore[no-any-return]


CODE = code_of(PAGE)


def test_the_method_is_short() -> None:
    assert len([line for line in CODE.splitlines() if line.strip()]) < 60


@pytest.mark.integration
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


def test_the_evaluation_of_its_page_works(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "your-evaluation.md").read_text(encoding="utf-8")
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nearest_mean.py").write_text(code_of(page))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_package", raising=False)
    command = next(line for line in page.splitlines() if line.startswith("ssl-bench evaluate")).split()
    assert main(["evaluate", str(tiny_run), *command[3:]]) == 0
    (recorded,) = (tiny_run / "results").glob("*.json")
    result = read_result(recorded)
    assert result.value is not None and 0.2 < result.value < 1.0 and result.n_test == 510  # of ten classes


def test_the_benchmark_of_the_guide_is_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of docs/choosing.md: three methods with two seeds, MAE on a network of its own."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        folder = Path("photos", ("train", "test")[number // 4], "ab"[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (120, 100), (9 * number, 0, 0)).save(folder / f"{number}.png")
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    tree = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    fits = [job.config for job in plan(tree, tmp_path / "runs") if job.config is not None]
    networks = [(config["method"]["name"], config["backbone"]["name"], config["seed"]) for config in fits]
    resnets = [(method, "resnet18", seed) for method in ("simclr", "byol") for seed in (0, 1)]
    assert sorted(networks) == sorted([*resnets, *(("mae", "vit_small_patch16_224", seed) for seed in (0, 1))])
    assert all(config["trainer"]["max_epochs"] == 40 for config in fits)
