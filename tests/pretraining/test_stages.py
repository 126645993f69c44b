"""SimCLRv2's three stages from the command line, and the accuracy of what comes out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssl_bench.cli.main import main
from ssl_bench.records.run import read_run

Capture = pytest.CaptureFixture[str]

TINY = [
    "--data=digits",
    "--backbone=resnet50",
    "--backbone.selective_kernel=true",
    "--backbone.width=2",
    "--backbone.timm_args={layers: [1, 1, 1, 1], channels: [4, 8, 8, 8]}",
    "--data.batch_size=64",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=6",
    "--trainer.precision=32-true",
    "--trainer.accelerator=cpu",
    "--optim.warmup_epochs=0",
    "--probe.every_n_epochs=0",
]
SMALL = ["--backbone=resnet50", "--backbone.timm_args={layers: [1, 1, 1, 1], channels: [4, 4, 4, 4]}"]


@pytest.fixture
def run(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> "Run":
    monkeypatch.chdir(tmp_path)
    return Run(capsys)


class Run:
    """A command of ours; gives the last line of its output."""

    def __init__(self, capsys: Capture) -> None:
        self.capsys = capsys

    def __call__(self, *argv: str, code: int = 0) -> str:
        assert main(list(argv)) == code
        shown = self.capsys.readouterr()
        return shown.err if code else shown.out.splitlines()[-1]


@pytest.mark.integration
def test_pretrain_finetune_distill_evaluate(run: Run) -> None:
    pretrained = run("fit", "--method=simclrv2", *TINY)
    tuned = run("fit", "--method=simclrv2-finetune", f"--init={pretrained}", *TINY, "--data.label_fraction=0.1")
    same = [option for option in TINY if "--backbone" not in option]
    student = run("fit", "--method=simclrv2-distill", f"--method.teacher={tuned}", *same, *SMALL)
    mixed = ["--method.alpha=0.5", "--data.label_fraction=0.1"]
    again = ["--method=simclrv2-distill", f"--method.teacher={student}", f"--init={student}"]
    both = run("fit", *again, *same, *SMALL, *mixed)
    folders = [Path(folder) for folder in (pretrained, tuned, student, both)]

    assert not (folders[0] / "classifier.json").exists()
    for folder in folders[1:]:
        about = json.loads((folder / "classifier.json").read_text())
        assert about["names"] == [str(digit) for digit in range(10)]
        assert load_file(folder / "classifier.safetensors")["linear.weight"].shape == (10, about["dim"])
    kept = torch.load(folders[1] / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert {"head.hidden.0.weight", "head.hidden.1.running_mean"} <= kept.keys()
    assert read_run(folders[1]).steps == 2 * 2  # 129 of 1287 labels in batches of 64
    assert read_run(folders[2]).steps == 2 * 6  # all images

    run("evaluate", *map(str, folders), "--protocols=classifier", "--device=cpu")
    assert not (folders[0] / "results").exists()
    for folder in folders[1:]:
        result = json.loads((folder / "results" / "classifier.json").read_text())
        low, high = result["interval"]
        assert result["n_test"] == 510 and low <= result["value"] <= high and result["primary"] == "own"
    assert "no classifier for these images" in run("evaluate", pretrained, "--protocols=classifier", code=2)
    assert main(["leaderboard", "runs"]) == 0
    table = run.capsys.readouterr().out
    assert "classifier" in table and "simclrv2-finetune" in table and "simclrv2-distill" in table

    about = folders[1] / "classifier.json"  # it answers no other question
    about.write_text(about.read_text().replace('"0"', '"zero"'))
    assert "no classifier for these images" in run("evaluate", tuned, "--protocols=classifier", code=2)
    student_of = [f"--method.teacher={tuned}", "--method.alpha=0.5"]
    assert "digits has other classes" in run("fit", "--method=simclrv2-distill", *student_of, *same, *SMALL, code=2)


@pytest.mark.integration
def test_seeds_of_a_stage_are_one_row_and_other_beginnings_another(run: Run) -> None:
    for seed, rate in (("0", "0.1"), ("1", "0.1"), ("0", "0.2")):
        seeded = [*TINY, f"--seed={seed}", "--trainer.max_epochs=1"]
        pretrained = run("fit", "--method=simclrv2", f"--optim.base_lr={rate}", *seeded)
        tuned = run("fit", "--method=simclrv2-finetune", f"--init={pretrained}", "--data.label_fraction=0.1", *seeded)
        run("evaluate", tuned, "--protocols=classifier", "--device=cpu")
    assert main(["leaderboard", "runs", "--format=json"]) == 0
    (block,) = json.loads(run.capsys.readouterr().out)["blocks"]
    assert sorted(row["seeds"] for row in block["rows"]) == [[0], [0, 1]]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fit", "--method=simclr", "--data.label_fraction=0.1", *TINY], "learns from no labels"),
        (["fit", "--method=simclrv2-distill", *TINY], "simclrv2-distill needs --method.teacher RUN"),
        (["fit", "--method=simclrv2-finetune", "--init=nowhere", *TINY], "is it the folder of a run that has begun?"),
        (
            ["evaluate", "random:resnet_nano", "--data=digits", "--data.label_fraction=0.1"],
            "evaluations use all labels",
        ),
    ],
)
def test_mistakes(argv: list[str], message: str, run: Run) -> None:
    assert message in run(*argv, code=2)
