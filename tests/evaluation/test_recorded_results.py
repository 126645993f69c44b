"""`evaluate` with nothing to evaluate answers from records, without torch; what has changed is evaluated again."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from ssl_bench.cli.main import main
from ssl_bench.evaluation import input_files
from ssl_bench.evaluation.evaluate_config import parse_evaluate
from ssl_bench.evaluation.recorded_results import answer_from_records
from ssl_bench.records.files import temporary_beside

Capture = pytest.CaptureFixture[str]
QUICK = ["--protocols=knn,ridge,classifier", "--device=cpu"]


def answered(*argv: str) -> list[str] | None:
    """Folders that an `evaluate` gives without loading anything; None if it has to."""
    lines = answer_from_records(parse_evaluate(argv, {}))
    return None if lines is None else list(lines)


def folder_of_images(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in range(2):
            (root / part / f"class{label}").mkdir(parents=True)
            for i in range(6):
                pixels = rng.integers(0, 100, size=(8, 8, 3)) + 100 * label
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / f"class{label}" / f"{i}.png")
    return root


@pytest.mark.integration
def test_what_is_recorded_is_said_at_once_in_the_same_words(tiny_run: Path, tmp_path: Path, capsys: Capture) -> None:
    argv = [str(tiny_run), f"random:{tiny_run}", "pixels", *QUICK, "--runs", str(tmp_path / "baselines")]
    assert answered(*argv) is None
    assert main(["evaluate", *argv]) == 0
    first = capsys.readouterr()
    assert answered(*argv) == first.out.splitlines()
    again = capsys.readouterr().err.splitlines()
    before = [line.partition(", ")[0] for line in first.err.splitlines() if line[0] == "[" or "%" in line]
    assert [line.partition(", ")[0] for line in again if line[0] == "[" or "%" in line] == before
    assert sum("recorded before" in line for line in again) == 6 and sum("left out" in line for line in again) == 3
    assert answered(*argv, "--force") is None
    assert answered(*argv, "--knn.k=[1,20]", "--knn.primary_k=20") is None, "other options, another number"
    assert answered(*argv[:-3], "--protocols=knn,linear") is None
    baselines = [*capsys.readouterr().out.splitlines(), *first.out.splitlines()[1:]]
    assert answered(*baselines, *QUICK) == baselines, "baselines by their folders"


def test_what_a_killed_evaluation_left_is_cleared(tiny_run: Path) -> None:
    (tiny_run / "features").mkdir()
    left = temporary_beside(tiny_run / "features" / "train.safetensors")
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{2**22 + 1}-"))  # no process has that number
    left.write_bytes(bytes(1000))
    assert main(["evaluate", str(tiny_run), "--protocols=ridge", "--device=cpu"]) == 0
    assert not left.exists()


@pytest.mark.integration
def test_no_torch_and_less_than_a_second(tiny_run: Path) -> None:
    argv = ["evaluate", str(tiny_run), *QUICK]
    assert main(argv) == 0
    code = f"import sys; from ssl_bench.cli.main import main; main({argv}); assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    before = sum(os.times()[2:4])
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(tiny_run)] and done.stderr.count("recorded before") == 2
    assert sum(os.times()[2:4]) - before < 1.0


def test_changed_weights_are_noticed(tiny_run: Path, capsys: Capture) -> None:
    argv = [str(tiny_run), *QUICK]
    assert main(["evaluate", *argv]) == 0
    assert answered(*argv) is not None
    weights = tiny_run / "backbone.safetensors"
    content, about = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert answered(*argv) is None, "the same size and time, one bit another"
    weights.write_bytes(content)
    assert answered(*argv) is not None
    (tiny_run / "predictions" / "knn.parquet").unlink()
    assert answered(*argv) is None


def test_changed_images_are_noticed(tmp_path: Path, capsys: Capture) -> None:
    root = folder_of_images(tmp_path / "photos")
    argv = ["pixels", "--data=folder", f"--data.root={root}", *QUICK, f"--runs={tmp_path / 'runs'}"]
    assert main(["evaluate", *argv]) == 0
    assert answered(*argv) is not None
    picture = root / "train" / "class0" / "0.png"
    about, other = picture.stat(), (root / "train" / "class0" / "1.png").read_bytes()
    picture.write_bytes(other)
    os.utime(picture, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert answered(*argv) is None, "whatever its time says"
    assert main(["evaluate", *argv]) == 0
    assert answered(*argv) is not None
    shutil.copy(picture, root / "train" / "class1" / "added.png")
    assert answered(*argv) is None
    (root / "train" / "class1" / "added.png").unlink()
    shutil.rmtree(root)
    assert answered(*argv) is None


def test_a_touched_file_costs_time_alone(tmp_path: Path, capsys: Capture) -> None:
    root = folder_of_images(tmp_path / "photos")
    argv = ["pixels", "--data=folder", f"--data.root={root}", *QUICK, f"--runs={tmp_path / 'runs'}"]
    assert main(["evaluate", *argv]) == 0
    (root / "train" / "class0" / "0.png").touch()
    assert answered(*argv) is None
    capsys.readouterr()
    assert main(["evaluate", *argv]) == 0
    assert capsys.readouterr().err.count("recorded before") == 2, "the content is the same"
    assert answered(*argv) is not None


@pytest.mark.integration
@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": 3}', '{"images": {"a": {"files": null}}}'])
def test_damaged_notes_cost_time_alone(text: str, tiny_run: Path, capsys: Capture) -> None:
    argv = [str(tiny_run), *QUICK]
    assert main(["evaluate", *argv]) == 0
    (tiny_run / "features" / "inputs.json").write_text(text)
    assert answered(*argv) is None
    assert main(["evaluate", *argv]) == 0 and capsys.readouterr().err.count("recorded before") == 2
    assert answered(*argv) is not None


def test_links_in_circles_and_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder_of_images(tmp_path / "photos")
    (root / "train" / "again").symlink_to(root)
    start = time.monotonic()
    first = input_files._listing(root)
    assert first is not None and first == input_files._listing(root) and time.monotonic() - start < 5
    monkeypatch.setattr(input_files, "MOST", 24)
    assert input_files._listing(root) == first
    monkeypatch.setattr(input_files, "MOST", 23)
    assert input_files._listing(root) is None
