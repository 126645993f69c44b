"""TensorBoard and MLflow, through Lightning's loggers, beside metrics.csv and W&B."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.config.layers import flatten
from ssl_bench.errors import UserError
from ssl_bench.records.files import read_regular, write_text

if TYPE_CHECKING:
    from pytorch_lightning.loggers import Logger

MLFLOW_RUN = "mlflow_run.txt"  # in a run's folder: MLflow's name for it, so that continuing it goes on there
EXPERIMENT = "ssl-bench"


def other_loggers(names: tuple[str, ...], folder: Path, config: Mapping[str, Any]) -> "list[Logger]":
    """The loggers of these names that need a package of their own; `csv` and `wandb` are made elsewhere.

    Args:
        names: Of `--trainer.loggers`.
        folder: Of the run.
        config: What they are told of the run.

    Raises:
        UserError: A package is missing.
    """
    made = {"tensorboard": _tensorboard, "mlflow": _mlflow}
    found = [made[name](folder) for name in names if name in made]
    options = {name: value for name, value in flatten(config, "the configuration").items() if value is not None}
    for logger in found:
        logger.log_hyperparams(options)
    return found


def _tensorboard(folder: Path) -> "Logger":
    """Events in the run's folder: `tensorboard --logdir runs`."""
    from pytorch_lightning.loggers import TensorBoardLogger

    try:
        return TensorBoardLogger(folder, name="tensorboard", version="", default_hp_metric=False)
    except ModuleNotFoundError:
        raise UserError("--trainer.loggers tensorboard: pip install 'ssl-bench[tensorboard]'") from None


def _mlflow(folder: Path) -> "Logger":
    """A run at $MLFLOW_TRACKING_URI, else in mlruns/ beside the run folders."""
    from pytorch_lightning.loggers import MLFlowLogger

    place = os.environ.get("MLFLOW_TRACKING_URI") or f"file:{folder.parent.resolve() / 'mlruns'}"
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
    try:
        known = read_regular(folder / MLFLOW_RUN, 1 << 10).decode().strip() or None
    except OSError:
        known = None
    try:
        logger = MLFlowLogger(experiment, run_name=folder.name, tracking_uri=place, run_id=known)
        name = logger.run_id
    except ModuleNotFoundError:
        raise UserError("--trainer.loggers mlflow: pip install 'ssl-bench[mlflow]'") from None
    except Exception as error:  # of MLflow, its store or its server
        raise UserError(f"--trainer.loggers mlflow at {place}: {' '.join(str(error).split())[:200]}") from None
    write_text(folder / MLFLOW_RUN, f"{name}\n")
    return logger
