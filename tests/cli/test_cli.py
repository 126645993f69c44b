"""The command line as a user meets it."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from tiny import TINY

from ssl_bench.cli.main import main

Capture = pytest.CaptureFixture[str]


def test_threads_that_wait_give_their_core_away_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for told, then in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", told or "")  # so that it is as it was afterwards
        if told is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        main(["list", "methods"])
        assert os.environ["OMP_WAIT_POLICY"] == then


QUICK = [
    ["--help"],
    ["--version"],
    ["fit", "--help"],
    ["fit", "--method", "mae", "--help"],
    ["fit", "--method", "simclr", "--print_config"],
    ["evaluate", "--help"],
    ["fit", "--help-all"],
    ["list"],
    ["list", "methods"],
    ["list", "evaluations"],
    ["list", "data"],
    ["list", "backbones"],
    ["list", "recipes"],
    ["benchmark", "--help"],
    ["benchmark", "-c", "cifar10-protocols", "--dry-run", "--no-estimate", "--runs", "nowhere"],
    ["leaderboard", "--help"],
    ["compare", "--help"],
    ["import", "--help"],
    ["export", "--help"],
    ["completion", "bash"],
]


def answer_without_torch(argv: list[str], code: int, folder: Path) -> bytes:
    """What a command prints, given in less than a second of processor time, without torch and without a file."""
    program = (
        f"import sys\nfrom ssl_bench.cli.main import main\nassert main(sys.argv[1:]) == {code}\n"
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    seconds: list[float] = []
    while len(seconds) < 3 and (not seconds or seconds[-1] >= 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run = subprocess.run([sys.executable, "-c", program, *argv], env=environment, cwd=folder, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run.returncode == 0, run.stderr.decode()
        # Of the processor, not of the clock: a busy machine must not fail this.
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1, seconds
    assert not list(folder.iterdir())
    return run.stdout


@pytest.mark.integration
@pytest.mark.parametrize("argv", QUICK, ids=" ".join)
def test_what_needs_no_torch_loads_none_and_answers_at_once(argv: list[str], tmp_path: Path) -> None:
    assert answer_without_torch(argv, 0, tmp_path)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fti"], "no command 'fti'; did you mean 'fit'?"),
        (["list", "method"], "nothing called 'method'; did you mean 'methods'?"),
        (["list", "models"], "nothing called 'models'; did you mean 'backbones'?"),
        (["list", "datasets"], "did you mean 'data'?"),
        (["--foo"], "unrecognized arguments: --foo"),
        (["evaluate", "pixels", "--device", "2"], "--device: 2 must be auto, cpu, mps, cuda, or cuda:N"),
        (["evaluate", "pixels", "--device", "foo"], "--device: foo must be auto, cpu, mps, cuda, or cuda:N"),
        (["evaluate", "random:resnet18@99999999999999999999"], "the seed after @ is a whole number from 0 to"),
        (["figures", "nowhere", "--device", "foo"], "foo must be auto, cpu, mps, cuda, or cuda:N"),
        (["fit", "--method", "./x.py"], "a class is named by its module, my_module.MyClass, not by its file"),
        (["fit", "--method", "mae", "--init", "nowhere"], "--init nowhere: no such folder"),
        (["fit", "--method", "mae", "--data", "cifra10"], "did you mean 'cifar10'?"),
        (["fit", "--method", "cae", "--method.tokenizer", "nowhere"], "--method.tokenizer nowhere: no such file"),
        (["leaderboard", "--fromat", "csv"], "did you mean '--format'?"),
        (["leaderboard", "--format", "cvs"], "no format 'cvs'; did you mean 'csv'?"),
        (["leaderboard", "nowhere"], "nowhere is no folder"),
        (["compare"], "the following arguments are required: RUNS"),
        (["compare", "nowhere"], "nowhere is no folder"),
        (["evaluate", "nowhere"], "no run folder nowhere"),
        (["evaluate", "random:"], "of which backbone?"),
        (["evaluate", "pixels", "--protocols", "knm"], "no evaluation 'knm'; did you mean 'knn'?"),
        (["evaluate", "random:resnet17", "--data", "digits"], "no backbone 'resnet17'; did you mean 'resnet18'?"),
        (["evaluate", "pixels", "--data", "cifra10"], "did you mean 'cifar10'?"),
        (["evaluate", "pixels", "--data", "cifar10", "--data.root", "nowhere"], "--data.download"),
        (["evaluate", "pixels", "--data", "digits", "--knn.primary_k", "3"], "primary_k 3 is not among k"),
        (["leaderboard", "--by", "epoch"], "no budget 'epoch'; did you mean 'epochs'?"),
        (["benchmark", "-c", "dmeo"], "no benchmark 'dmeo'; did you mean 'demo'?"),
        (["benchmark", "-c", "missing.yaml"], "no file missing.yaml"),
        (["completion", "bsh"], "did you mean 'bash'?"),
        (["fit", "--method", "mae", "--backbone", "resnet_nano", "--data", "digits"], "mae needs a ViT"),
        (["fit", "--method", "mae", "--data", "folder", "--data.root", "nowhere"], "nowhere"),
        (["fit", "--method", "mae", "--method.mask_ratio", "1.5", "--data", "digits-canvas"], "between 0 and 1"),
        (["fit", "--method", "ssl_bench.augment.views.View", "--data", "digits"], "needs a type and a default"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(argv: list[str], message: str, capsys: Capture, tmp_path: Path) -> None:
    if argv[0] in ("fit", "evaluate"):
        argv = [*argv, "--runs", str(tmp_path)]
    assert main(argv) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ssl-bench")]
    assert len(said) == 1 and message in said[0], said


WRONG = [
    ["fit", "--method", "mae", "--data", "folder", "--data.root", "nowhere"],
    ["fit", "--method", "mae", "--init", "nowhere"],
    ["fit", "--method", "mae", "--optim.lr", "1"],
    ["fit", "--method", "mae", "--optim.clip", "0"],
    ["fit", "--method", "mae", "--runs", "s3://bucket"],
    ["evaluate", "nowhere"],
    ["evaluate", "pixels", "--device", "2"],
    ["leaderboard", "nowhere"],
    ["compare", "nowhere"],
    ["benchmark", "-c", "nowhere.yaml"],
    ["figures", "nowhere"],
    ["figures", "nowhere", "--only", "mask"],
    ["export", "nowhere", "-o", "exported"],
    ["import", "nowhere", "--format", "dino", "-o", "imported"],
    ["import", "nowhere", "--format", "dinno", "-o", "imported"],
]


@pytest.mark.integration
@pytest.mark.parametrize("argv", WRONG, ids=" ".join)
def test_a_mistake_is_found_before_torch_is_loaded(argv: list[str], tmp_path: Path) -> None:
    answer_without_torch(argv, 2, tmp_path)


@pytest.mark.parametrize("command", ["fit", "evaluate", "benchmark"])
def test_help_is_a_page(command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") <= 60 and "examples:" in said and "--help-all" in said
    assert main([command, "--help-all"]) == 0
    whole = capsys.readouterr().out
    for noise in ("CONFIG", "type:", "Annotated", "SUPPRESS", "typing.", "Path to a configuration file"):
        assert noise not in said and noise not in whole
    assert len(whole) > len(said) - 100
    assert all(len(line) <= 120 for line in whole.splitlines())


def test_help_shows_ranges(capsys: Capture) -> None:
    assert main(["fit", "--method", "mae", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "default 0.75; between 0 and 1" in said
    assert main(["fit", "--help-all"]) == 0
    assert "(default 0.9; at least 0, below 1)" in " ".join(capsys.readouterr().out.split())


def test_old_names_of_options_are_taken_with_a_hint(capsys: Capture) -> None:
    assert main(["fit", "--method", "mae", "--data.selection_fraction", "0.2", "--print_config"]) == 0
    shown = capsys.readouterr()
    assert "val_fraction: 0.2" in shown.out
    assert shown.err == "the command line: --data.selection_fraction is now --data.val_fraction\n"


def test_what_a_run_takes_is_said_before_it_begins(capsys: Capture, tmp_path: Path) -> None:
    assert main(["fit", "--method", "mae", *TINY, f"--runs={tmp_path}"]) == 0
    said = capsys.readouterr().err
    assert "vit_pico_patch4_32 with patches of 2 px at 8 px, 3 epochs, about a minute on this machine" in said


def test_fit_evaluate_leaderboard(tmp_path: Path, capsys: Capture) -> None:
    runs = ["--runs", str(tmp_path)]
    assert main(["fit", "--method", "mae", *TINY, *runs]) == 0
    folder = capsys.readouterr().out.splitlines()[-1]
    assert main(["fit", "--method", "mae", *TINY, *runs]) == 0
    again = capsys.readouterr()
    assert again.out.splitlines() == [folder] and "already done" in again.err
    targets = [folder, "random:vit_pico_patch4_32", "pixels"]
    options = [
        "--data",
        "digits",
        "--backbone.img_size",
        "8",
        "--linear.iterations",
        "50",
        "--linear.batch_size",
        "64",
        "--linear.views=0",
    ]
    assert main(["evaluate", *targets, *options, *runs]) == 0
    folders = capsys.readouterr().out.splitlines()
    assert folders[0] == folder and len(folders) == 3
    result = json.loads((Path(folder) / "results" / "linear.json").read_text())
    assert result["selected"]["selected_on"] == "validation" and result["n_test"] > 400
    assert (Path(folder) / "predictions" / "knn.parquet").exists()
    assert main(["evaluate", *folders, *options, "--runs", str(tmp_path / "elsewhere")]) == 0  # baselines by folder
    again = capsys.readouterr()
    assert again.err.count("recorded before") == 6 and again.out.splitlines() == folders
    assert main(["leaderboard", str(tmp_path), "--format", "json"]) == 0
    table = json.loads(capsys.readouterr().out)
    assert "pixels" in json.dumps(table) and "random" in json.dumps(table)
    page = tmp_path / "page.html"
    assert main(["leaderboard", str(tmp_path), "--format", "html", "--output", str(page)]) == 0
    assert "<table" in page.read_text()


@pytest.mark.integration
def test_transfer_is_recorded_beside_not_over(tiny_run: Path, capsys: Capture) -> None:
    options = ["--protocols", "knn", "--backbone.img_size", "8"]
    assert main(["evaluate", str(tiny_run), *options]) == 0
    assert main(["evaluate", str(tiny_run), *options, "--data", "digits-canvas"]) == 0
    assert sorted(p.name for p in (tiny_run / "results").glob("*.json")) == ["knn.json", "knn@digits-canvas.json"]


@pytest.mark.integration
def test_student_and_teacher_are_evaluated_side_by_side(tmp_path: Path, capsys: Capture) -> None:
    own = ["--method.prototypes=32", "--method.hidden_dim=16", "--method.bottleneck_dim=8", "--method.local_views=0"]
    tiny = [flag for flag in TINY if not flag.startswith("--method.")]
    runs = [f"--runs={tmp_path}"]
    assert main(["fit", "--method=dino", *tiny, *own, "--trainer.max_epochs=1", "--optim.warmup_epochs=0", *runs]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((folder / "run.json").read_text())["branch"] == "teacher"
    assert (folder / "backbone-student.safetensors").read_bytes() != (folder / "backbone.safetensors").read_bytes()
    assert main(["evaluate", str(folder), "--protocols=ridge", "--branch=student"]) == 0
    assert [file.name for file in (folder / "results").iterdir()] == ["ridge.student.json"]
    assert main(["evaluate", str(folder), "--protocols=ridge"]) == 0
    values = {file.name: json.loads(file.read_text()) for file in (folder / "results").iterdir()}
    assert {name: value["branch"] for name, value in values.items()} == {
        "ridge.json": "teacher",
        "ridge.student.json": "student",
    }
    assert main(["leaderboard", str(tmp_path)]) == 0
    assert "branch=" not in capsys.readouterr().out
    assert main(["leaderboard", str(tmp_path), "--branches=all"]) == 0
    shown = capsys.readouterr().out
    assert "branch=student" in shown and "branch=teacher" in shown
    assert main(["evaluate", str(folder), "--protocols=ridge", "--branch=both"]) == 2


def test_an_unfinished_run_is_not_evaluated(tiny_run: Path, capsys: Capture) -> None:
    (tiny_run / "backbone.safetensors").unlink()
    (tiny_run / "backbone.json").unlink()
    assert main(["evaluate", str(tiny_run)]) == 2
    assert "finishes it" in capsys.readouterr().err


def test_a_damaged_backbone_is_said_so(tiny_run: Path, capsys: Capture) -> None:
    (tiny_run / "backbone.safetensors").write_bytes(b"not weights")
    assert main(["evaluate", str(tiny_run)]) == 2
    assert "the backbone is damaged" in capsys.readouterr().err


def test_no_command_shows_help(capsys: Capture) -> None:
    assert main([]) == 0
    assert "benchmark" in capsys.readouterr().out


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["fit", *TINY, "--method=mae", f"--runs={tmp_path}/file/runs"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ssl-bench: error: ") and "choose another place" in error
