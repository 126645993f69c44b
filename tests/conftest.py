"""What several test files share."""

import ssl_bench.torchvision_guard  # noqa: F401  before any test imports timm, lightly or torchvision

# isort: split
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssl_bench.configuration import parse_fit

TINY = (
    "--method.decoder_dim=16 --method.decoder_depth=1 --method.decoder_heads=2 --backbone=vit_pico_patch4_32 "
    "--backbone.img_size=8 --backbone.depth=1 --data=digits --data.batch_size=64 --trainer.max_epochs=3 "
    "--trainer.accumulate_grad_batches=1 --trainer.limit_train_batches=4 --trainer.precision=32-true --optim.base_lr=1e-2 "
    "--optim.warmup_epochs=1 --trainer.accelerator=cpu --probe.images=64 --probe.every_n_epochs=3"
).split()


@pytest.fixture
def tiny_config() -> Callable[..., dict[str, Any]]:
    """Configuration of an MAE run of a second; flags override."""

    def config(*flags: str) -> dict[str, Any]:
        return parse_fit(["--method=mae", *TINY, *flags], {}).config

    return config


@pytest.fixture
def tiny_run(tiny_config: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """Folder of a finished MAE run."""
    from ssl_bench.training import fit

    return fit(tiny_config(), tmp_path / "runs").folder
