"""Methods at sizes for tests, images for them, and a data module that is only its batches."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config import registry
from ssl_bench.config.options import BackboneOptions, DataOptions
from ssl_bench.data.batch import Batch
from ssl_bench.models.backbone import Backbone
from ssl_bench.pretraining.method import Method

CLASSES = 10
# Options that only set a size, whatever method has them; conftest.py adds the folder of a teacher.
SIZES: dict[str, Any] = {
    "decoder_dim": 48,
    "decoder_depth": 1,
    "decoder_heads": 3,
    "prototypes": 64,
    "hidden_dim": 48,
    "projection_dims": (48, 48, 24),
    "bottleneck_dim": 24,
    "local_views": 2,
    "predictor_dim": 24,
    "predictor_depth": 1,
    "min_keep": 4,
    "regressor_depth": 1,
    "vocabulary": 32,
    "dim": 24,
    "classes": CLASSES,
}

WITHOUT_CLASS_TOKEN = ("ijepa",)


def build(name: str, backbone: str | BackboneOptions, seed: int = 0, img_size: int = 32, **given: Any) -> Method:
    """A method by its name on the command line; one that makes a tokenizer takes no backbone."""
    torch.manual_seed(seed)
    cls = registry.load(registry.find("methods", name))
    wanted = inspect.signature(cls).parameters
    sizes: dict[str, Any] = {option: size for option, size in SIZES.items() if option in wanted}
    if "backbone" in wanted:
        if isinstance(backbone, str):
            plain = name in WITHOUT_CLASS_TOKEN and backbone.startswith("vit")
            args = {"class_token": False, "global_pool": "avg"} if plain else None
            backbone = BackboneOptions(backbone, img_size=img_size, timm_args=args)
        sizes["backbone"] = Backbone(backbone)
    if "image_size" in wanted:
        sizes["image_size"] = img_size
    method = cls(**sizes | given)
    assert isinstance(method, Method)
    if method.evaluated_classifier is not None:
        torch.nn.init.normal_(method.evaluated_classifier.linear.weight, std=0.01)  # its zeros send no gradient back
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


def labels_of(images: int) -> Tensor:
    """A class for each image."""
    return torch.arange(images) % CLASSES


class Loader:
    """Batches in a fixed order."""

    def __init__(self, batches: list[list[Tensor]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for views in self.batches:
            yield Batch(views, torch.arange(len(views[0])), labels_of(len(views[0])))


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
