"""Methods at sizes for tests, images for them, and a data module that is only its batches."""

import inspect
from collections.abc import Iterator
from typing import Any

import ssl_bench.torchvision_guard  # noqa: F401  before lightning, which imports torchvision

# isort: split
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench import registry
from ssl_bench.backbone import Backbone
from ssl_bench.batch import Batch
from ssl_bench.method import Method
from ssl_bench.options import BackboneOptions, DataOptions

# Options that only set a size, whatever method has them.
SIZES = {"decoder_dim": 48, "decoder_depth": 1, "decoder_heads": 3}


def build(name: str, backbone: str, seed: int = 0, img_size: int = 32, **given: Any) -> Method:
    """A method by its name on the command line."""
    torch.manual_seed(seed)
    cls = registry.load(registry.find("methods", name))
    sizes = {option: size for option, size in SIZES.items() if option in inspect.signature(cls).parameters}
    method = cls(Backbone(BackboneOptions(backbone, img_size=img_size)), **sizes | given)
    assert isinstance(method, Method)
    return method


def views_of(method: Method, images: int, seed: int = 0) -> list[Tensor]:
    """Views as the method describes them: smooth random images, each view of one with noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    scene = torch.rand(images, 3, 5, 5, generator=generator)
    views = []
    for view in method.views():
        for _ in range(view.count):
            clean = F.interpolate(scene, size=(view.size, view.size), mode="bilinear")
            views.append(clean + 0.1 * torch.randn(clean.shape, generator=generator))
    return views


class Loader:
    """Batches in a fixed order."""

    def __init__(self, batches: list[list[Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for views in self.batches:
            yield Batch(views, torch.arange(len(views[0])))


class GivenViews(pl.LightningDataModule):
    """A data module whose views are made already."""

    def __init__(self, batches: list[list[Tensor]]) -> None:
        super().__init__()
        self.batches = batches
        self.options = DataOptions(batch_size=len(batches[0][0]))

    def train_dataloader(self) -> Loader:
        return Loader(self.batches)


def trainer(**given: Any) -> pl.Trainer:
    """A Trainer that writes nothing."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
    }
    return pl.Trainer(**quiet | given)
