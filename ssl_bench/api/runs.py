"""Runs: `ssl-bench fit` from Python, and what a run folder holds."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import pandas as pd

from ssl_bench.api.fit_command import run_fit
from ssl_bench.api.images import Data, data_options
from ssl_bench.api.protocols import flags
from ssl_bench.api.results import load_results
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.layers import read_yaml
from ssl_bench.config.parser import errors_raised
from ssl_bench.data.files.location import located
from ssl_bench.data.image_summary import image_summary
from ssl_bench.errors import RunFailed, UserError
from ssl_bench.records.run import RunInfo, read_run

if TYPE_CHECKING:
    from torch import nn


@final
@dataclass(frozen=True)
class Run(PathLike[str]):
    """A run folder; whatever takes the path of one takes a `Run`.

    Args:
        folder: The path.

    Raises:
        UserError: It is none.
    """

    folder: Path

    def __init__(self, folder: str | PathLike[str]) -> None:
        path = Path(folder).expanduser()
        if not (path / "run.json").is_file():
            raise UserError(f"{path} is no run folder: it has no run.json")
        object.__setattr__(self, "folder", path)

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def info(self) -> RunInfo:
        """What the run is, how far it came, what it took."""
        return read_run(self.folder)

    @property
    def config(self) -> dict[str, Any]:
        """The configuration, with which `ssl-bench fit -c` repeats it."""
        return read_yaml(self.folder / "config.yaml")

    @property
    def metrics(self) -> pd.DataFrame:
        """Loss, learning rate and probes over time."""
        return pd.read_csv(self.folder / "metrics.csv")

    def results(self, *, predictions: bool = False) -> pd.DataFrame:
        """As `load_results`, of this run alone."""
        return load_results(self.folder, predictions=predictions)

    def backbone(self, branch: str = "") -> "nn.Module":
        """The pretrained network: (B, 3, H, W) images, normalised as in pretraining, to (B, D) features.

        Args:
            branch: Of a student and a teacher, another than the one that the method's paper evaluates.
        """
        from ssl_bench.models.saved_backbone import load_backbone

        return load_backbone(self.folder, branch)[0].eval()


def fit(
    method: str,
    data: Data | None = None,
    backbone: str | Mapping[str, Any] | None = None,
    *,
    max_epochs: int | None = None,
    batch_size: int | None = None,
    runs: str | PathLike[str] = "runs",
    seed: int = 0,
    recipe: str | None = None,
    config: str | PathLike[str] | None = None,
    init: str | PathLike[str] | None = None,
    optim: Mapping[str, Any] | None = None,
    trainer: Mapping[str, Any] | None = None,
    probe: Mapping[str, Any] | None = None,
    wandb: str = "off",
    **options: Any,
) -> Run:
    """Pretrain as `ssl-bench fit` does: the same numbers, the same folder; a run that is finished is not repeated.

    Args:
        method: Its name (`list_methods`).
        data: A data set (`list_datasets`), the path of your images, or options,
            `{"name": "cifar10", "download": True}`.
        backbone: A network's name (`list_backbones`), or its options, `{"name": "resnet18", "img_size": 64}`.
        max_epochs: Passes over the images.
        batch_size: Images per batch and device.
        runs: Where run folders live.
        seed: Of everything.
        recipe: Numbers to start from; by default the method's for such images.
        config: A YAML file of options, above the recipe and below what is given here.
        init: A run whose weights it starts from.
        optim: Options of the optimiser: `{"base_lr": 1e-3, "warmup_epochs": 5}`.
        trainer: Of the trainer: `{"devices": 2, "precision": "bf16-mixed"}`.
        probe: Of the online probe: `{"every_n_epochs": 0}`.
        wandb: off, online, offline or auto.
        **options: Of the method: `mask_ratio=0.6`.

    Raises:
        UserError: An unknown name or option, or options that do not fit the data, the network or the machine.
        RunFailed: The loss is no longer a number, or a process is gone.
    """
    network = {"name": backbone} if isinstance(backbone, str) else dict(backbone or {})
    groups: dict[str, dict[str, Any]] = {
        "method": options,
        "data": {**data_options(data), "batch_size": batch_size},
        "backbone": network,
        "optim": dict(optim or {}),
        "trainer": {**(trainer or {}), "max_epochs": max_epochs},
        "probe": dict(probe or {}),
    }
    groups["data"] = _given(groups["data"], data)
    groups["trainer"] = _given(groups["trainer"], trainer)
    shared = {"runs": runs, "init": init, "recipe": recipe}
    single = {name: os.fspath(value) for name, value in shared.items() if value is not None}
    files = ["-c", os.fspath(config)] if config is not None else []
    argv = ["--method", method, *files, *flags({**groups, **single, "seed": seed, "wandb": wandb})]
    with errors_raised():
        parsed = parse_fit(argv, look=image_summary, locate=located)
    done = run_fit(parsed, argv)
    if done.code:
        raise RunFailed(f"fit ended with exit code {done.code}, as the lines above say")
    return Run(done.folder)


def _given(group: dict[str, Any], said: Any) -> dict[str, Any]:
    """A group without the arguments that were left out, which are not to hide what it says itself."""
    own = said if isinstance(said, Mapping) else {}
    return {name: own.get(name) if value is None else value for name, value in group.items()}
