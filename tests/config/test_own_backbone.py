"""A network of the user's, by its class: its options, its features, and whose word its code runs on."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssl_bench.cli.main import main
from ssl_bench.config.fit_config import dump, parse_fit
from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.records.run import read_run

MODULE = '''
import torch
from torch import nn


class Net(nn.Module):
    """A small one.

    Args:
        depth: Convolutions.
    """

    def __init__(self, depth: int = 2, width=8, gives="features", *args, **kwargs):
        super().__init__()
        widths = [3] + [width] * depth
        self.layers = nn.Sequential(*(nn.Conv2d(i, o, 3, 2, 1) for i, o in zip(widths, widths[1:])))
        self.norm = nn.BatchNorm2d(width)
        self.gives = gives

    def forward(self, images):
        maps = self.norm(self.layers(images).relu())
        if self.gives == "maps":
            return maps
        if self.gives == "tokens":
            return maps.flatten(2).mT
        if self.gives == "dict":
            return {"out": maps, "aux": maps}
        if self.gives == "tuple":
            return maps, maps
        return maps.mean((2, 3))


class NeedsWidth(nn.Module):
    def __init__(self, width):
        super().__init__()


class NoModule:
    pass
'''


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("ssl_bench.config.class_paths._NAMED", set())
    package = tmp_path / "users_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "net.py").write_text(MODULE)
    yield "users_package.net.Net"
    for name in [name for name in sys.modules if name.partition(".")[0] == "users_package"]:
        del sys.modules[name]


def parse(*argv: str) -> dict[str, object]:
    found: dict[str, object] = parse_fit(["--method", "simclr", "--data", "digits", *argv], {}).config["backbone"]
    return found


def test_options_of_its_constructor_are_options(net: str, tmp_path: Path) -> None:
    chosen = parse("--backbone", net, "--backbone.depth", "4")
    assert chosen["timm_args"] == {"depth": 4, "width": 8, "gives": "features"} and chosen["name"] == net
    file = tmp_path / "again.yaml"
    file.write_text(dump({"backbone": chosen}))
    assert parse("--backbone", net, "-c", str(file)) == chosen
    assert parse("-c", str(file), "--backbone", net, "--backbone.depth", "3")["timm_args"]["depth"] == 3  # type: ignore[index]
    with pytest.raises(SystemExit):
        parse("--backbone", net, "--backbone.depth", "deep")
    with pytest.raises(SystemExit):
        parse("--backbone", net, "--backbone.num_heads", "2")


def test_a_file_alone_has_no_code_run(net: str, tmp_path: Path) -> None:
    file = tmp_path / "received.yaml"
    file.write_text(f"method: simclr\nbackbone: {{name: {net}}}\n")
    with pytest.raises(UserError, match=rf"names the class {net}, and a file alone has no code run.*--backbone {net}"):
        parse_fit(["-c", str(file)], {})
    assert "users_package.net" not in sys.modules
    from ssl_bench.models.backbone import Backbone

    with pytest.raises(UserError, match=rf"--classes {net}"):
        Backbone(BackboneOptions(net, img_size=8))
    assert "users_package.net" not in sys.modules


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gives": "maps"}, r"gives maps of shape \(2, 8, 4, 4\) .*x\.mean\(\(2, 3\)\)"),
        ({"gives": "tokens"}, r"gives tokens of shape \(2, 16, 8\) .*x\[:, 0\] or x\.mean\(1\)"),
        ({"gives": "dict"}, r"a dict with out, aux, not \(2, D\) features: wrap it .*one of its entries, pooled"),
        ({"gives": "tuple"}, r"gives a tuple of 2, not \(2, D\) features: wrap it .*, one of them, pooled"),
        ({"depth": "deep"}, r"with \{'depth': 'deep'\}: TypeError"),
    ],
)
def test_what_gives_no_features_is_said_how_to_be_wrapped(net: str, given: dict[str, object], message: str) -> None:
    from ssl_bench.config import class_paths
    from ssl_bench.models.backbone import Backbone

    class_paths.name_classes(net, "users_package.net.NoModule")
    with pytest.raises(UserError, match=message):
        Backbone(BackboneOptions(net, img_size=16, timm_args=given))
    with pytest.raises(UserError, match=r"NoModule is no torch\.nn\.Module"):
        Backbone(BackboneOptions("users_package.net.NoModule"))


def test_what_is_not_there_or_cannot_be_asked_for_is_said(net: str) -> None:
    for name, message in (
        ("users_package.nets.Net", "no module 'users_package.nets' for backbone"),
        ("users_package.net.Nett", "has no class 'Nett'; did you mean 'Net'"),
        ("users_package.net.NeedsWidth", "parameter 'width' needs a default"),
    ):
        with pytest.raises(UserError, match=message):
            parse("--backbone", name)


@pytest.mark.integration
def test_it_is_pretrained_evaluated_and_exported(net: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--data=digits", "--data.batch_size=64", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    short += ["--trainer.accelerator=cpu", "--probe.every_n_epochs=0", "--optim.warmup_epochs=0"]
    runs = str(tmp_path / "runs")
    assert main(["fit", "--method=simclr", "--backbone", net, "--backbone.depth=3", "--runs", runs, *short]) == 0
    run = Path(capsys.readouterr().out.strip())
    assert read_run(run).backbone is not None and read_run(run).backbone.args["depth"] == 3  # type: ignore[union-attr]
    from ssl_bench.config import class_paths

    class_paths._NAMED.clear()  # another process, to which nothing is named
    assert main(["evaluate", str(run), "--protocols=knn"]) == 2
    assert f"--classes {net}" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--protocols=knn", "--classes", net]) == 0
    assert (run / "results").is_dir()
    assert main(["export", str(run), "-o", str(tmp_path / "out"), "--format=torchscript", "--classes", net]) == 0
    assert main(["export", str(run), "-o", str(tmp_path / "timm"), "--classes", net]) == 2
    assert "--format torchscript or onnx" in capsys.readouterr().err
