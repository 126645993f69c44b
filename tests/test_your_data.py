"""docs/your-data.md, done as it says."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT

from ssl_bench.augment.operations import apply_operations
from ssl_bench.cli.main import main
from ssl_bench.config import class_paths
from ssl_bench.errors import UserError

pytestmark = pytest.mark.integration

PAGE = (ROOT / "docs" / "your-data.md").read_text(encoding="utf-8")
SCANS, MICROSCOPY = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SMALL = ["--backbone=vit_pico_patch4_32", "--data.batch_size=8", "--trainer.max_epochs=1", "--optim.warmup_epochs=0"]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The page's two modules, a folder of scans; the process has named no class, and imported no such package."""
    _forget()
    (tmp_path / "my_package").mkdir()
    for name, code in (("__init__", ""), ("scans", SCANS), ("microscopy", MICROSCOPY)):
        (tmp_path / "my_package" / f"{name}.py").write_text(code)
    (tmp_path / "scans").mkdir()
    rng = np.random.default_rng(0)
    for number in (*range(8), *range(100, 104)):
        for name in ("benign", "malign"):
            rng.integers(0, 256, 1600).astype(np.uint8).tofile(tmp_path / "scans" / f"{name}-{number}.bin")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(class_paths, "_NAMED", set())
    yield tmp_path
    _forget()


def _forget():
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
        del sys.modules[name]


def test_the_data_set(package, capfd):
    command = next(line for line in PAGE.splitlines() if "my_package.scans.load" in line)
    assert main([*command.split()[1:], *SMALL]) == 0
    folder = Path(capfd.readouterr().out.strip().splitlines()[-1])
    record = json.loads((folder / "run.json").read_text())["data"]["fingerprint"]
    assert record["images"] == {"pretrain": 16, "train": 14, "validation": 2, "test": 8}
    assert record["classes"] == ["benign", "malign"] and record["geometry"]["channels"] == 1
    assert main([*command.split()[1:], *SMALL]) == 0 and "already done" in capfd.readouterr().err
    (package / "scans" / "benign-7.bin").write_bytes(bytes(1600))
    assert main([*command.split()[1:], *SMALL]) == 0
    assert Path(capfd.readouterr().out.strip().splitlines()[-1]) != folder  # other images are another run

    assert main(["evaluate", str(folder), "--protocols", "knn"]) == 0
    class_paths._NAMED.clear()  # another process, in which nobody has named it
    assert main(["evaluate", str(folder), "--protocols", "knn", "--force"]) == 2
    assert "--classes my_package.scans.load" in capfd.readouterr().err
    assert main(["evaluate", str(folder), "--protocols", "knn", "--force", "--classes", "my_package.scans.load"]) == 0


def test_the_operation(package, capfd):
    line = next(line for line in PAGE.splitlines() if "--operations my_package" in line)
    command = [*line.replace("photos/", "digits").split()[1:], *SMALL, "--trainer.limit_train_batches", "2"]
    losses = []
    for argv in (command, command, command[:3] + command[5:]):
        assert main([*argv, "--runs", f"runs{len(losses)}", "--trainer.log_every_n_steps", "1"]) == 0
        folder = Path(capfd.readouterr().out.strip().splitlines()[-1])
        losses.append([row["loss"] for row in csv.DictReader((folder / "metrics.csv").read_text().splitlines())])
    assert losses[0] == losses[1] != losses[2]
    (folder,) = (path for path in Path("runs0").iterdir() if path.is_dir())
    assert main(["figures", str(folder), "--only=views", "--classes=my_package.microscopy.rotate"]) == 0
    assert (folder / "figures" / "views.png").is_file()


def test_views_are_turned_as_pixels(package):
    from my_package.microscopy import rotate

    images = torch.rand(64, 1, 6, 6)
    mean, std = (0.3,), (0.2,)
    normalised = (images - 0.3) / 0.2
    found = apply_operations([rotate], ["rotate"], normalised, mean, std, torch.Generator().manual_seed(0))
    turned = torch.stack([torch.rot90(normalised, turn, (2, 3)) for turn in range(4)])
    equal = torch.isclose(found, turned, atol=1e-5).all(dim=(2, 3, 4))  # (4, B)
    assert equal.any(0).all() and (equal.sum(1) > 5).all()  # each image by one of the four angles, none left out
    with pytest.raises(UserError, match=r"--operations half returns \(32, 1, 6, 6\)"):
        apply_operations([lambda some, _: some[:32]], ["half"], normalised, mean, std, torch.Generator())


def test_a_file_alone_has_no_code_run(package, capfd):
    Path("x.yaml").write_text("operations: my_package.microscopy.rotate\n")
    assert main(["fit", "--method", "byol", "-c", "x.yaml", *SMALL]) == 2
    assert "--operations my_package.microscopy.rotate" in capfd.readouterr().err
    Path("x.yaml").write_text("data: my_package.scans.load\n")
    assert main(["fit", "--method", "byol", "-c", "x.yaml", *SMALL]) == 2
    assert "name it yourself: --data my_package.scans.load" in capfd.readouterr().err
    assert main(["fit", "--method", "byol", "--operations", "rotat", *SMALL]) == 2
    assert "no operation 'rotat'" in capfd.readouterr().err
    assert main(["fit", "--method", "byol", "--operations", "my_package.microscopy.rotat", *SMALL]) == 2
    assert "did you mean 'rotate'" in capfd.readouterr().err


def test_entry_points_give_both_a_name(package):
    info = package / "my_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1\n")
    block = PAGE.rpartition("[options.entry_points]\n")[2].partition("```")[0]
    sections = re.sub(r"^(ssl_bench\.[\w.]+) =$", r"[\1]", block, flags=re.MULTILINE)
    (info / "entry_points.txt").write_text(re.sub(r"^ +", "", sections, flags=re.MULTILINE))
    code = (
        f"import sys; sys.path[:0] = [{str(package)!r}, {str(ROOT)!r}]\n"
        "from ssl_bench.cli.main import main\n"
        "assert main(['list', 'data']) == 0\n"
        "from ssl_bench.config.options import DataOptions\n"
        "from ssl_bench.data.dataset import load_dataset\n"
        "from ssl_bench.augment.operations import load_operations\n"
        "data = load_dataset(DataOptions(name='scans', root='scans'))\n"
        "print(data.title, len(data.test), load_operations(['rotate'])[0].__name__)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=package)
    assert run.returncode == 0, run.stderr
    assert re.search(r"^ *scans +plug-in: my_package.scans$", run.stdout, re.MULTILINE)
    assert run.stdout.splitlines()[-1] == "scans 8 rotate"
