"""`create_method`: any Trainer, any loader; the numbers of `ssl-bench fit`."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from ssl_bench.api.methods import create_method, load_method
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.order import Order
from ssl_bench.data.pool import ResidentPool
from ssl_bench.errors import UserError
from ssl_bench.methods.byol import BYOL
from ssl_bench.pretraining.image_batches import ImageBatches, unpacked
from ssl_bench.pretraining.training import fit

IMAGES = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PICO = {"name": "vit_pico_patch4_32", "patch_size": 4, "depth": 1}
SMALL: dict[str, Any] = {"backbone": PICO, "image_size": 8, "optim": {"warmup_epochs": 0}}


def trainer(**options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return pl.Trainer(**{"accelerator": "cpu", "max_epochs": 1, "enable_model_summary": False, **quiet, **options})


def loader(images: Tensor = IMAGES, batch_size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(images), batch_size=batch_size)


class Convolutions(nn.Module):
    """A network that no library knows."""

    def __init__(self, channels: int = 3, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride=2)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.first(images)).relu().mean((2, 3))


class Recorded(pl.Callback):
    """The loss and the rate of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.rates.append(float(trainer.optimizers[0].param_groups[0]["lr"]))


class InOrder:
    """A loader of one's own: the images of `ssl-bench fit` in its order."""

    def __init__(self, pool: ResidentPool, batch_size: int) -> None:
        self.pool, self.batch_size, self.epoch = pool, batch_size, 0

    def __len__(self) -> int:
        return len(self.pool) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        for _, _, rows in Order(len(self.pool), self.batch_size, seed=3, epoch=lambda: epoch):
            yield {"image": self.pool.images[rows], "label": rows}


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("simclr", {"temperature": 0.2}),
        ("byol", {"hidden_dim": 32, "projection_dim": 16}),
        ("mae", {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}),
    ],
)
def test_losses_are_those_of_fit(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The same images in the same order and the same seed: every loss is the same number; masks are, too."""
    own, backbone = {"warmup_epochs": 1, "base_lr": 0.05}, {"name": "vit_pico_patch4_32", "patch_size": 2, "depth": 1}
    flags = [f"--method.{name}={value}" for name, value in options.items()]
    flags += [f"--backbone.{name}={value}" for name, value in {**backbone, "img_size": 8}.items()]
    flags += [f"--optim.{name}={value}" for name, value in own.items()]
    flags += ["--data=digits", "--data.batch_size=32", "--trainer.max_epochs=2", "--trainer.precision=32-true"]
    flags += [
        "--trainer.limit_train_batches=3",
        "--trainer.log_every_n_steps=1",
        "--probe.every_n_epochs=0",
        "--seed=3",
        "--trainer.accelerator=cpu",
    ]
    folder = fit(parse_fit([f"--method={method}", *flags], {}).config, tmp_path).folder
    with open(folder / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    expected = [float(row["loss"]) for row in rows]

    data = load_dataset(DataOptions("digits", batch_size=32))
    assert isinstance(data.pretrain, ResidentPool)
    pl.seed_everything(3, verbose=False)
    statistics = {"mean": data.mean, "std": data.std}
    made = create_method(method, backbone, image_size=8, optim=own, **statistics, **options)
    recorded = Recorded()
    trainer(max_epochs=2, limit_train_batches=3, callbacks=[recorded]).fit(made, InOrder(data.pretrain, 32))
    assert len(expected) == 6
    assert recorded.losses == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["alone", "labelled", "dict", "float", "half", "gray"])
def test_a_batch_may_be_packed_in_any_usual_way(form: str) -> None:
    """And gives the same views."""
    view = create_method("simclr", **SMALL).views()
    gray, halves = IMAGES[:, :1], (IMAGES / 255).half()
    batches: dict[str, Any] = {
        "alone": IMAGES,
        "labelled": [IMAGES, torch.arange(48)],
        "dict": {"pixel_values": IMAGES, "labels": torch.arange(48)},
        "float": IMAGES.float() / 255,
        "half": halves,
        "gray": gray,
    }
    make = ImageBatches(view, (0.5,) * 3, (0.2,) * 3, seed=1)
    whole = {"gray": gray.repeat(1, 3, 1, 1), "half": halves.float()}.get(form, IMAGES)
    expected = make(whole, epoch=2, number=3, rank=0).views
    found = make(batches[form], epoch=2, number=3, rank=0).views
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-6, rtol=0)
    assert not torch.equal(expected[0], make(whole, epoch=2, number=4, rank=0).views[0])
    assert not torch.equal(expected[0], make(whole, epoch=2, number=3, rank=1).views[0])


def test_views_of_other_channels_keep_their_values() -> None:
    """Of 13 channels, each of one value: crops and blurs leave it, colour operations have no meaning and do nothing."""
    make = ImageBatches(BYOL.views(create_method("byol", **SMALL)), (0.5,) * 13, (0.25,) * 13, seed=0)  # type: ignore[arg-type]
    level = torch.arange(13.0) / 26  # below 0.5, which solarising leaves as it is
    images = level.view(1, 13, 1, 1).expand(4, 13, 8, 8)
    for view in make(images, 0, 0, 0).views:
        assert view.shape == (4, 13, 8, 8)
        torch.testing.assert_close(view, ((level - 0.5) / 0.25).view(1, 13, 1, 1).expand_as(view), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"picture": IMAGES}, "a batch with picture has no images: name them 'image'"),
        (IMAGES[0], r"a \(3, 8, 8\) tensor where images should be"),
        ("photo.jpg", "a str where images should be"),
        (IMAGES.float(), "values from 0 to 255, not 0 to 1"),
        ((IMAGES.float() / 255 - 0.5) / 0.2, "leave normalising to the method"),
        (IMAGES.int(), "images of torch.int32"),
        (IMAGES[:, :2], "images of 2 channels, and mean and std are those of 3"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(batch: Any, message: str) -> None:
    make = ImageBatches(create_method("simclr", **SMALL).views(), (0.5,) * 3, (0.2,) * 3, seed=0)
    with pytest.raises(UserError, match=message):
        make(batch, 0, 0, 0)


def test_labels_stay_with_their_images() -> None:
    images, labels = unpacked((IMAGES, torch.arange(48), ["name"] * 48))
    assert images is IMAGES and labels is not None and labels.tolist() == [*range(48)]
    assert unpacked({"images": IMAGES, "caption": "x"})[1] is None


def test_rates_and_teacher_follow_the_steps_that_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 images in batches of 8, two of which make a step of 16: 3 steps an epoch, 6 in all."""
    from ssl_bench.pretraining.ema_teacher import EMATeacher

    moved: list[tuple[int, int]] = []
    monkeypatch.setattr(EMATeacher, "update", lambda self, step, total: moved.append((step, total)))
    own = {"name": "sgd", "base_lr": 1.6, "warmup_epochs": 1, "schedule": "cosine"}
    method = create_method("byol", PICO, image_size=8, optim=own, hidden_dim=16, projection_dim=8)
    recorded = Recorded()
    trainer(max_epochs=2, accumulate_grad_batches=2, callbacks=[recorded]).fit(method, loader(batch_size=8))
    assert moved == [(step, 6) for step in range(6)]
    peak = 1.6 * 16 / 256
    assert method.schedule.peak == pytest.approx(peak)
    rising = [0, peak / 3, 2 * peak / 3]
    falling = [peak, peak * 0.75, peak * 0.25]  # half a cosine over 3 steps
    at_updates = recorded.rates[1::2]
    assert at_updates == pytest.approx([*rising, *falling], abs=1e-7)


def test_a_loader_that_says_nothing_of_its_size() -> None:
    """What the learning rate needs to know is asked for, each by its name."""

    class Endless(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            while True:
                yield IMAGES[:16]

    batches = DataLoader(Endless(), batch_size=None)
    method = create_method("simclr", **SMALL)
    with pytest.raises(UserError, match=r"has no length: Trainer\(limit_train_batches=N\)"):
        trainer(max_steps=2).fit(method, batches)
    with pytest.raises(UserError, match=r"how many images a batch has.*create_method\(..., batch_size=N\)"):
        trainer(limit_train_batches=2).fit(method, batches)
    method = create_method("simclr", **SMALL, batch_size=16)
    trainer(limit_train_batches=2).fit(method, batches)
    assert method.schedule.total == 2 and method.schedule.images_per_step == 16
    with pytest.raises(UserError, match="give the Trainer max_epochs or max_steps"):
        trainer(max_epochs=-1).fit(method, loader())


def test_a_trainers_own_clipping_is_heeded() -> None:
    norms: list[float] = []

    class Norm(pl.Callback):
        def on_before_zero_grad(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
            found = [p.grad.norm() for p in module.parameters() if p.grad is not None]
            norms.extend([float(torch.stack(found).norm())] if found else [])

    method = create_method("simclr", **SMALL)
    trainer(gradient_clip_val=1e-3, callbacks=[Norm()]).fit(method, loader())
    assert norms and max(norms) == pytest.approx(1e-3, rel=1e-3)


def test_loggers_callbacks_and_resuming_work_as_usual(tmp_path: Path) -> None:
    """A training that is interrupted and resumed from Lightning's checkpoint ends with the very same weights."""

    def made(*callbacks: pl.Callback, **options: Any) -> tuple[Any, pl.Trainer]:
        pl.seed_everything(1, verbose=False)
        return create_method("simclr", **SMALL), trainer(max_epochs=2, callbacks=[*callbacks], **options)

    logger = CSVLogger(tmp_path / "whole", name=None, version="")
    keep = ModelCheckpoint(tmp_path / "whole", save_last=True)
    whole, runner = made(keep, enable_checkpointing=True, log_every_n_steps=1, logger=logger)
    runner.fit(whole, loader())
    first, runner = made(_StopAfterFirst())
    runner.fit(first, loader())
    assert runner.global_step == 3
    runner.save_checkpoint(tmp_path / "part.ckpt")
    again, runner = made()
    runner.fit(again, loader(), ckpt_path=str(tmp_path / "part.ckpt"), weights_only=True)
    assert runner.global_step == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    logged = (tmp_path / "whole" / "metrics.csv").read_text(encoding="utf-8")
    assert "loss" in logged and "lr" in logged
    assert "temperature: 0.1" in (tmp_path / "whole" / "hparams.yaml").read_text(encoding="utf-8")

    loaded = load_method(tmp_path / "whole" / "last.ckpt")
    assert all(torch.equal(t, whole.state_dict()[name]) for name, t in loaded.state_dict().items())


class _StopAfterFirst(pl.Callback):
    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        trainer.should_stop = True


@pytest.mark.parametrize(
    ("name", "options"), [("simclr", {}), ("byol", {}), ("dino", {"prototypes": 64, "hidden_dim": 16})]
)
def test_a_module_of_ones_own_is_pretrained(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    net = Convolutions(channels=1)
    before = net.first.weight.detach().clone()
    own = {"image_size": 16, "mean": [0.4], "std": [0.3], "optim": {"warmup_epochs": 0}}
    method = create_method(name, net, **own, **options)
    assert method.backbone.dim == 12
    runner = trainer()
    runner.fit(method, loader(torch.rand(32, 1, 20, 18)))
    assert not torch.equal(net.first.weight, before), "the module itself learns"
    assert len(method.branches) == (1 if name == "simclr" else 2)

    runner.save_checkpoint(tmp_path / "own.ckpt", weights_only=False)
    loaded = load_method(tmp_path / "own.ckpt", Convolutions(channels=1))
    assert torch.equal(loaded.backbone.model.first.weight, net.first.weight)
    with pytest.raises(UserError, match=r"give backbone: it holds a .*Convolutions"):
        load_method(tmp_path / "own.ckpt")
    with pytest.raises(UserError, match="holds the weights of another network"):
        load_method(tmp_path / "own.ckpt", Convolutions(channels=1, width=8))


def test_a_method_without_create_method_makes_its_views_too() -> None:
    """A class of one's own needs nothing else."""
    from ssl_bench.config.options import BackboneOptions
    from ssl_bench.models.backbone import Backbone

    pl.seed_everything(0, verbose=False)
    method = BYOL(Backbone(BackboneOptions(**PICO, img_size=8)), hidden_dim=16, projection_dim=8)
    recorded = Recorded()
    trainer(callbacks=[recorded]).fit(method, loader())
    assert len(recorded.losses) == 3 and torch.tensor(recorded.losses).isfinite().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "simclrr"}, "no method 'simclrr'; did you mean 'simclr'"),
        ({"backbone": "resnet_micr"}, "no backbone 'resnet_micr'; did you mean 'resnet_micro'"),
        ({"temperatur": 1}, "no option --method.temperatur; did you mean 'method.temperature'"),
        ({"temperature": -1.0}, "--method.temperature: -1.0 must be above 0"),
        ({"optim": {"lr": 1}}, "no option --optim.lr; did you mean 'optim.base_lr'"),
        ({"backbone": None}, "which network"),
        ({"mean": [0.5] * 3}, "give mean and std, or neither"),
        ({"mean": [0.5] * 3, "std": [0.0] * 3}, "std above 0"),
        ({"mean": [0.5], "std": [0.2]}, "networks by name take three"),
        ({"name": "mae", "backbone": Convolutions()}, "mae needs a ViT"),
        ({"name": "simmim", "backbone": Convolutions()}, "simmim needs a ViT or Swin"),
        ({"name": "ibot", "backbone": Convolutions()}, "ibot needs"),
        ({"backbone": nn.Conv2d(3, 4, 3)}, r"maps of shape \(2, 4, 6, 6\) and torch.float32, not.*AdaptiveAvgPool2d"),
        ({"backbone": nn.Sequential(nn.Flatten(2))}, r"\(2, 3, 64\).*of their mean"),
        ({"backbone": nn.Linear(4, 4)}, r"Linear does not take images of 3 x 8 x 8 pixels \(.*\); image_size says"),
        ({"name": "simclrv2-finetune"}, r"classes=...\) is needed"),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        create_method(**{"name": "simclr", **SMALL, **given})
    assert "\n" not in str(error.value) and "--help" not in str(error.value)


def test_modules_that_give_tuples_or_dicts_are_refused() -> None:
    class Pair(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return {"pooled": images.mean((2, 3))}

    with pytest.raises(UserError, match=r"gives a dict with pooled, not \(2, D\) features: wrap it"):
        create_method("simclr", Pair(), image_size=8)


def test_small_images_for_large_views_are_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    method = create_method("simclr", PICO, image_size=32, optim={"warmup_epochs": 0})
    assert method.image_batches is not None
    method.image_batches(IMAGES, 0, 0, 0)
    assert "images of 8 px are enlarged to views of 32 px: create_method(..., image_size=8)" in capsys.readouterr().err
