"""`fit`, `evaluate`, `save_run`, `load_results`, `leaderboard`, `compare` as one would use them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ssl_bench
from ssl_bench.api.images import data_options
from ssl_bench.api.runs import Run
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.data.image_summary import image_summary
from ssl_bench.errors import UserError
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.records.run_folder import run_folder

PICO = {"name": "vit_pico_patch4_32", "patch_size": 4, "depth": 1}
FIT: dict[str, Any] = {
    "data": "digits",
    "backbone": PICO,
    "max_epochs": 1,
    "batch_size": 64,
    "trainer": {"limit_train_batches": 2, "accelerator": "cpu", "precision": "32-true"},
    "optim": {"warmup_epochs": 0},
    "probe": {"every_n_epochs": 0},
}


class Net(nn.Module):
    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.first(images).relu().mean((2, 3))


def pretrained(backbone: Any, **options: Any) -> tuple[Any, pl.Trainer]:
    """A method after two steps of a trainer of one's own."""
    pl.seed_everything(0, verbose=False)
    method = ssl_bench.create_method("byol", backbone, image_size=8, hidden_dim=16, projection_dim=8, **options)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    trainer.fit(method, DataLoader(list(torch.rand(32, 3, 8, 8)), batch_size=16))  # type: ignore[arg-type]
    return method, trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run that was fitted from Python, evaluated beside baselines and a module."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_BENCH_CACHE", str(folder / "cache"))
        torch.manual_seed(0)
        yield ssl_bench.fit("simclr", temperature=0.2, runs=folder / "runs", **FIT)


@pytest.fixture(scope="module")
def table(run: Run) -> pd.DataFrame:
    torch.manual_seed(0)
    targets = [run, f"random:{run}", "pixels", Net()]
    return ssl_bench.evaluate(
        targets, "digits", {"knn": {"k": [1, 20]}}, runs=run.folder.parent, image_size=8, device="cpu"
    )


def test_fit_is_the_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The same configuration and folder, so that either finds what the other has done."""
    flags = ["--method=simclr", "--method.temperature=0.2", "--data=digits", "--data.batch_size=64"]
    flags += [f"--backbone.{name}={value}" for name, value in PICO.items()]
    flags += ["--trainer.limit_train_batches=2", "--trainer.accelerator=cpu", "--trainer.precision=32-true"]
    flags += ["--trainer.max_epochs=1", "--optim.warmup_epochs=0", "--probe.every_n_epochs=0"]
    parsed = parse_fit(flags, {}, look=image_summary).config
    assert run.config == parsed
    assert run.folder == run_folder(run.folder.parent, parsed)
    assert run.info.status == "finished" and run.info.steps == 2
    assert run.info.command[:4] == ["ssl-bench", "fit", "--method", "simclr"]
    again = ssl_bench.fit("simclr", temperature=0.2, runs=run.folder.parent, **FIT)
    assert again == run and capsys.readouterr().out == ""
    assert run.backbone()(torch.rand(2, 3, 8, 8)).shape == (2, 48)
    assert len(run.metrics.loss_epoch.dropna()) == 1


@pytest.mark.integration
def test_evaluate_gives_a_row_for_each_number(run: Run, table: pd.DataFrame) -> None:
    assert table.method.unique().tolist() == ["simclr", "random", "pixels", "Net"]
    own = table[table.method == "simclr"]
    assert own.variant.tolist()[0] == "k20" and own.primary.tolist().count(True) == 1
    from ssl_bench.records.result import read_result

    score = read_result(run.folder / "results" / "knn.json").variants["k20"]
    first = own.iloc[0]
    assert (first.value, first.low, first.high) == (score.value, *score.interval)
    assert first.n_test == 510 and first.data == "digits" and first.measure == "accuracy"


@pytest.mark.integration
def test_what_is_recorded_is_not_repeated(run: Run, table: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    again = ssl_bench.evaluate(
        [run, Net()], "digits", {"knn": {"k": [1, 20]}}, runs=run.folder.parent, image_size=8, device="cpu"
    )
    assert "recorded before" in capsys.readouterr().err
    assert again.equals(table[table.method.isin(["simclr", "Net"])].reset_index(drop=True))


def test_results_of_a_folder_and_their_predictions(run: Run, table: pd.DataFrame) -> None:
    found = ssl_bench.load_results(run.folder.parent)
    columns = [name for name in table.columns if name not in ("options", "chosen")]
    keys = ["run", "variant"]
    pd.testing.assert_frame_equal(
        found[columns].sort_values(keys).reset_index(drop=True), table[columns].sort_values(keys).reset_index(drop=True)
    )
    predictions = run.results(predictions=True)
    assert len(predictions) == 510 and predictions.image.is_unique
    assert predictions.correct.mean() == pytest.approx(table.value[0])


def test_leaderboard_and_compare(run: Run, table: pd.DataFrame, tmp_path: Path) -> None:
    """`ssl_bench.leaderboard` can be called although it is a package, too, whatever was imported before."""
    import ssl_bench.leaderboard.build  # which makes the package an attribute of ssl_bench

    runs = run.folder.parent
    text = ssl_bench.leaderboard(runs)
    assert isinstance(text, str) and "simclr" in text and "pixels" in text
    page = ssl_bench.leaderboard(runs, output=tmp_path / "page")
    assert page == tmp_path / "page" / "index.html" and "simclr" in page.read_text(encoding="utf-8")
    table_file = ssl_bench.leaderboard(runs, output=tmp_path / "table.csv", format="csv")
    assert isinstance(table_file, Path) and table_file.read_text(encoding="utf-8").count("\n") > 2
    with pytest.raises(UserError, match="no format 'cvs'; did you mean 'csv'"):
        ssl_bench.leaderboard(runs, format="cvs")
    pairs = ssl_bench.compare(runs, protocol="knn")
    assert {"a", "b", "difference", "low", "high", "p", "adjusted", "verdict"} <= set(pairs.columns)
    own = table[table.primary].set_index("method").value
    pair = pairs[(pairs.a == "pixels") & (pairs.b == "simclr")].iloc[0]
    assert pair.difference == pytest.approx(own["pixels"] - own["simclr"])
    assert pair.low < pair.difference < pair.high


@pytest.mark.integration
def test_a_method_of_ones_own_trainer_becomes_a_run(tmp_path: Path) -> None:
    method, trainer = pretrained(PICO, optim={"warmup_epochs": 0})
    run = ssl_bench.save_run(method, tmp_path / "mine", data="digits")
    info = run.info
    assert (info.status, info.kind, info.method, info.data.title) == ("finished", "pretrained", "byol", "digits")
    assert (info.epochs, info.steps, info.images_seen, info.views_per_image) == (1.0, 2, 32, 2.0)
    assert info.options["method"]["hidden_dim"] == 16
    network, mean, _ = load_backbone(run.folder)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(network.eval()(images), method.backbone.eval()(images))
    assert mean == (0.485, 0.456, 0.406)

    trainer.save_checkpoint(tmp_path / "last.ckpt")
    same = ssl_bench.save_run(tmp_path / "last.ckpt", tmp_path / "same", data="digits")
    weights = [(folder / "backbone.safetensors").read_bytes() for folder in (run.folder, same.folder)]
    assert weights[0] == weights[1]
    assert (same.info.epochs, same.info.steps, same.info.images_seen) == (1.0, 2, 32)
    with pytest.raises(UserError, match="mine is there already: choose another path, or overwrite=True"):
        ssl_bench.save_run(method, tmp_path / "mine")
    ssl_bench.save_run(method, tmp_path / "mine", overwrite=True)

    table = ssl_bench.evaluate([same, method], "digits", "knn", runs=tmp_path / "runs", device="cpu")
    measured = table[table.primary].groupby("branch").value
    assert measured.count().to_dict() == {"student": 2, "teacher": 2}
    assert measured.nunique().max() == 1, "the run and the method in memory are the same networks"
    assert "byol" in str(ssl_bench.leaderboard([same.folder, tmp_path / "runs"]))


def test_a_run_can_begin_where_a_trainer_of_ones_own_ended(tmp_path: Path) -> None:
    method, _ = pretrained(PICO, optim={"warmup_epochs": 0})
    run = ssl_bench.save_run(method, tmp_path / "mine")
    shared = {**FIT, "backbone": None, "optim": {"warmup_epochs": 0}}
    more = ssl_bench.fit("byol", config=run.folder / "config.yaml", init=run, runs=tmp_path, **shared)
    assert more.info.status == "finished" and more.config["method"]["hidden_dim"] == 16


@pytest.mark.integration
def test_a_module_of_ones_own_is_saved_and_evaluated(tmp_path: Path) -> None:
    net = Net()
    method, trainer = pretrained(net, optim={"warmup_epochs": 0})
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    run = ssl_bench.save_run(tmp_path / "last.ckpt", tmp_path / "mine", backbone=Net())
    assert run.info.backbone is not None and run.info.backbone.name.endswith("Net") and run.info.backbone.params == 224
    table = ssl_bench.evaluate(
        [net, method], "digits", ["knn", "ridge"], runs=tmp_path / "runs", image_size=8, device="cpu"
    )
    assert table.method.unique().tolist() == ["Net", "byol"]
    with pytest.raises(UserError, match="which only code can build: give the module itself"):
        ssl_bench.evaluate(run, "digits", "knn", device="cpu")
    for protocol, why in (("finetune", "its layers are unknown here"), ("attentive", "one feature per image")):
        with pytest.raises(UserError, match=why):
            ssl_bench.evaluate(net, "digits", protocol, runs=tmp_path / "runs", image_size=8, device="cpu")
    with pytest.raises(UserError, match=r"takes 2 channels.*evaluate_features"):
        from ssl_bench.models.module_backbone import ModuleBackbone

        ssl_bench.evaluate(ModuleBackbone(Net(2), 8, 2), "digits", "knn", device="cpu")


def test_data_is_a_name_a_path_or_options(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "shards" / "data").mkdir(parents=True)
    (tmp_path / "shards" / "data" / "train-0.parquet").touch()
    assert data_options("digits") == {"name": "digits"}
    assert data_options(tmp_path / "photos") == {"name": "folder", "root": str(tmp_path / "photos")}
    assert data_options(str(tmp_path / "shards"))["name"] == "parquet"
    assert data_options(tmp_path / "shards" / "data" / "train-0.parquet")["name"] == "parquet"
    assert data_options({"name": "cifar10", "download": True}) == {"name": "cifar10", "download": True}
    with pytest.raises(UserError, match="no data set and no folder 'digit'; did you mean 'digits'"):
        data_options("digit")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ssl_bench.fit("mea"), "no method 'mea'; did you mean 'mae'"),
        (lambda: ssl_bench.fit("mae", "nowhere/"), "no data set and no folder 'nowhere/'"),
        (lambda: ssl_bench.fit("simclr", "digits", temperatur=1), "no option --method.temperatur"),
        (lambda: ssl_bench.fit("simclr", "digits", optim={"base_lr": -1}), "--optim.base_lr"),
        (lambda: ssl_bench.fit("simclr", "digits", trainer={"max_epochs": 0}), "--trainer.max_epochs"),
        (lambda: ssl_bench.evaluate("runs/none"), "no run folder runs/none"),
        (lambda: ssl_bench.evaluate("pixels", protocols=["kn"]), "no evaluation 'kn'"),
        (lambda: ssl_bench.evaluate("pixels", "digits", "knn", device="gpu"), "--device"),
        (lambda: ssl_bench.load_results("none"), "none is no folder"),
        (lambda: ssl_bench.save_run("none.ckpt", "x"), "none.ckpt: no such file"),
        (lambda: ssl_bench.Run("."), "is no run folder"),
    ],
)
def test_mistakes_are_exceptions_of_one_line(call: Any, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=message) as error:
        call()
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""


@pytest.mark.integration
def test_the_package_says_what_it_has_without_loading_it() -> None:
    code = (
        "import sys, ssl_bench\n"
        "names = dir(ssl_bench)\n"
        "assert {'fit', 'create_method', 'losses', 'KNN', 'leaderboard', '__version__'} <= set(names), names\n"
        "ssl_bench.list_methods(), ssl_bench.list_backbones('vit*'), ssl_bench.Run, ssl_bench.schedules\n"
        "assert 'torch' not in sys.modules\n"
        "try: ssl_bench.nothing\n"
        "except AttributeError as error: assert 'nothing' in str(error)\n"
        "else: raise AssertionError\n"
    )
    import subprocess

    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_lists_have_what_the_command_lists() -> None:
    from ssl_bench.cli.list import listing

    for kind, names in (
        ("methods", ssl_bench.list_methods()),
        ("evaluations", ssl_bench.list_evaluations()),
        ("data", ssl_bench.list_datasets()),
        ("backbones", ssl_bench.list_backbones()),
    ):
        assert names == [line.split()[0] for line in listing(kind)], kind
    assert ssl_bench.list_backbones("resnet_*") == ["resnet_micro", "resnet_nano"]
