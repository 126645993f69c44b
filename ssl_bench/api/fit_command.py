"""A `fit` command, once its options are parsed: what is done is said at once, then it runs. Torch-free until then."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.config.fit_config import FitConfig
from ssl_bench.config.options import DataOptions, TrainerOptions
from ssl_bench.console import say
from ssl_bench.data.files.content import Content, folder_of_run
from ssl_bench.data.image_summary import check_place
from ssl_bench.errors import RunFailed, UserError
from ssl_bench.pretraining.fit_cost import described
from ssl_bench.records.claim import refuse_if_taken
from ssl_bench.records.run import is_finished
from ssl_bench.runtime.launch import adopt_launcher, requested_processes, run_processes

if TYPE_CHECKING:
    from ssl_bench.models.pretrained import Weights


@dataclass(frozen=True)
class FitDone:
    """How a command ended.

    Args:
        folder: Of the run.
        already_done: The run had been finished before.
        code: Of the processes that did it, if it took several; 0 if they succeeded.
        said: Whether one of these has printed the folder.
    """

    folder: Path
    already_done: bool = False
    code: int = 0
    said: bool = False


def run_fit(parsed: FitConfig, argv: Sequence[str], before_torch: Callable[[], None] = lambda: None) -> FitDone:
    """Pretrain, in this process or in several that are started for it, unless the run is finished.

    Args:
        parsed: The command.
        argv: What it was parsed from, to repeat it.
        before_torch: Called before torch is loaded, which takes seconds.

    Raises:
        UserError: The configuration does not fit the data, the network or the machine.
        RunFailed: The loss is no longer a number, or a process is gone.
    """
    check_place(parsed.config["data"])
    check_runs_named(parsed.config)
    launch = adopt_launcher()
    known: dict[DataOptions, Content | None] = {}
    folder = folder_of_run(parsed.runs, parsed.config, known)
    if is_finished(folder):
        return FitDone(folder, already_done=True)
    if launch is None or launch.rank == 0:  # which has it before the others ask
        refuse_if_taken(folder)
    trainer = parsed.config["trainer"]
    count = 1 if launch else requested_processes(trainer["devices"], trainer["accelerator"])
    if launch is None or launch.launcher != "--trainer.devices":
        for note in parsed.notes:
            say(note)
        say(described(parsed))
    if count > 1 or (launch is None and trainer["num_nodes"] > 1):
        before_torch()
        from ssl_bench.runtime.devices import check_trainer

        check_trainer(TrainerOptions(**trainer))  # before so many processes are started to find it out
        return FitDone(folder, code=run_processes(["fit", *argv], count, trainer["num_nodes"]), said=True)
    before_torch()
    from ssl_bench.pretraining.nan_guard import DivergenceError
    from ssl_bench.pretraining.training import fit

    try:
        command = ["ssl-bench", "fit", *argv]
        fitted = fit(parsed.config, parsed.runs, command, parsed.wandb, known, weights_named(parsed.config))
    except DivergenceError as error:
        raise RunFailed(str(error)) from None
    return FitDone(fitted.folder, fitted.already_done)  # done by another process, meanwhile


def check_runs_named(config: dict[str, Any]) -> None:
    """Refuse earlier runs and files that are not there, before anything heavy is loaded.

    Raises:
        UserError: Which option names one.
    """
    init, network = config["init"], config.get("backbone", {})
    starts = [
        *(["--init"] if init is not None else []),
        *(["--backbone.weights"] if network.get("weights") else []),
        *(["--backbone.pretrained"] if network.get("pretrained") else []),
    ]
    if len(starts) > 1:
        raise UserError(f"{' and '.join(starts)}: a run starts from one set of weights: leave the others out")
    if network.get("weights") and not Path(network["weights"]).exists():
        raise UserError(f"--backbone.weights {network['weights']}: no such file or folder")
    if init is not None and not Path(init).is_dir():
        raise UserError(f"--init {init}: no such folder; is it the folder of a run that has begun?")
    for option in ("teacher", "tokenizer"):
        named = config["method"].get(option)
        is_class = isinstance(named, str) and ":" in named  # package.module:Class
        if isinstance(named, str) and named not in ("", "pixels") and not is_class and not Path(named).exists():
            raise UserError(f"--method.{option} {named}: no such file or folder")


def weights_named(config: dict[str, Any]) -> "Weights | None":
    """What `--backbone.weights` names."""
    from ssl_bench.checkpoints.encoder_weights import encoder_weights
    from ssl_bench.config.class_paths import BACKBONE, is_class_path

    network = config.get("backbone", {})
    if not network.get("weights"):
        return None
    return encoder_weights(Path(network["weights"]), is_class_path(BACKBONE, network["name"]))
