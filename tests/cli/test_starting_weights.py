"""From published weights to a run, a row and a folder, on the command line and against a hub on this machine."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub_server import hub
from safetensors.torch import save, save_file

from ssl_bench.cli.main import main
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.records.run import read_run

Capture = pytest.CaptureFixture[str]
SHORT = [
    *("--data=digits", "--data.batch_size=32", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"),
    *("--trainer.accelerator=cpu", "--probe.every_n_epochs=0", "--trainer.precision=32-true"),
    *("--method.prototypes=64", "--method.hidden_dim=32", "--method.bottleneck_dim=16", "--method.local_views=0"),
]


@pytest.fixture
def donor(tmp_path: Path) -> timm.models.VisionTransformer:
    torch.manual_seed(1)
    return timm.create_model("test_vit", num_classes=0)


def options(flags: list[str]) -> dict[str, Any]:
    config = parse_fit(["--method=dino", "--data=cifar10", *flags], {}).config
    return {"backbone": config["backbone"], **config["optim"]}


def test_a_run_with_weights_has_the_recipe_for_continuing() -> None:
    plain = options([])
    assert plain["backbone"]["patch_size"] == 4 and plain["layer_decay"] is None
    for flags in (
        ["--backbone=vit_small_patch14_dinov2", "--backbone.pretrained=true"],
        ["--backbone=vit_small_patch14_dinov2", "--backbone.pretrained", "true"],
        ["--backbone=hf-hub:org/net"],
        ["--backbone=vit_small_patch14_dinov2", "--backbone.weights=w.pth"],
    ):
        chosen = options(flags)
        assert chosen["backbone"]["patch_size"] is None, "the recipe's own network is left out"
        assert (chosen["name"], chosen["base_lr"], chosen["warmup_epochs"]) == ("adamw", 1e-4, 1)
        assert chosen["layer_decay"] == 0.75
        assert chosen["weight_decay"] == plain["weight_decay"], "the method's own"
    assert options([*flags, "--optim.base_lr=1e-3"])["base_lr"] == 1e-3
    assert options([*flags, "--recipe=dino"])["base_lr"] == 5e-4
    assert options(["--recipe=continue"])["base_lr"] == 1e-4


@pytest.mark.integration
def test_timms_weights_are_fetched_continued_and_evaluated(
    donor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    runs = tmp_path / "runs"
    served = {"timm/test_vit.r160_in1k": {"model.safetensors": save(donor.state_dict())}}
    with hub(monkeypatch, str(tmp_path / "cache"), served):
        flags = ["--method=dino", "--backbone=test_vit", "--backbone.pretrained=true", "--optim.base_lr=0", *SHORT]
        assert main(["fit", *flags, "--optim.min_lr=0", "--runs", str(runs)]) == 0
        said = capsys.readouterr()
        run = Path(said.out.strip())
        assert "starting from timm:test_vit.r160_in1k" in said.err and "at 16 pixels" in said.err
        assert "positions 10 x 10 -> 1 x 1" in said.err and "images are normalised as its own were" in said.err
        begun = read_run(run).options["start"]
        assert begun["source"] == "timm:test_vit.r160_in1k" and len(begun["digest"]) == 64
        backbone, mean, _ = load_backbone(run)  # nothing was learned at a rate of 0
        expected = donor.state_dict()
        for name, tensor in backbone.model.state_dict().items():
            if name != "pos_embed":  # the teacher's average rounds
                torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-9)
        assert mean == pytest.approx(timm.get_pretrained_cfg("test_vit").mean)
        assert main(["fit", *flags, "--optim.min_lr=0", "--runs", str(runs)]) == 0  # already done: known by its options
        target = ["timm:test_vit.r160_in1k", "--backbone.img_size=32", "--data=digits", "--protocols=knn"]
        assert main(["evaluate", *target, "--runs", str(runs)]) == 0
        folder = Path(capsys.readouterr().out.split()[-1])
        info = read_run(folder)
        assert (info.kind, info.method, info.options["start"]["digest"]) == ("baseline", "timm", begun["digest"])
        assert main(["evaluate", *target, "--runs", str(runs)]) == 0
    again = capsys.readouterr()
    assert Path(again.out.split()[-1]) == folder
    assert main(["evaluate", str(folder), "--protocols=knn"]) == 0  # its folder is enough
    assert main(["leaderboard", str(runs), "--format=csv"]) == 0
    assert "timm" in capsys.readouterr().out


def test_weights_of_a_file_and_of_a_run(donor: Any, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "mine.pth"
    torch.save({"model": {f"backbone.{name}": tensor for name, tensor in donor.state_dict().items()}}, file)
    network = ["--backbone=test_vit", "--backbone.img_size=32", "--runs", str(tmp_path / "runs")]
    common = ["--method=dino", *network, *SHORT]
    assert main(["fit", *common, "--backbone.weights", str(file)]) == 0
    run = Path(capsys.readouterr().out.strip())
    assert read_run(run).options["start"]["source"] == str(file)
    moved = tmp_path / "elsewhere.pth"
    file.rename(moved)
    assert main(["fit", *common, "--backbone.weights", str(moved)]) == 0  # known by its content
    assert "already done" in capsys.readouterr().err
    assert main(["fit", "--method=simclr", *network, *SHORT[:7], "--backbone.weights", str(run)]) == 0
    assert read_run(Path(capsys.readouterr().out.strip())).options["start"]["source"] == str(run)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone=test_vit", "--backbone.weights=nowhere.pth"], "--backbone.weights nowhere.pth: no such file"),
        (["--backbone=test_vit", "--backbone.pretrained=true", "--init=."], "--init and --backbone.pretrained: a run"),
        (["--backbone=test_vit.r160_in1k"], "'r160_in1k' names weights: --backbone.pretrained true starts from them"),
        (["--backbone=local-dir:nowhere"], "--backbone local-dir:nowhere: "),
        (["--backbone=effcientnet_b0"], "did you mean 'efficientnet_b0'"),
    ],
)
def test_what_cannot_be_started_is_said_in_a_line(
    flags: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["fit", "--method=dino", *flags, *SHORT, "--runs", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


def test_a_file_of_another_network_is_refused(tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"layer.weight": torch.ones(3)}, file)
    flags = ["--backbone=test_vit", "--backbone.img_size=32", "--backbone.weights", str(file), *SHORT]
    assert main(["fit", "--method=dino", *flags, "--runs", str(tmp_path / "runs")]) == 2
    assert "has no cls_token" in capsys.readouterr().err and not (tmp_path / "runs").exists()
