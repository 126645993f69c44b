"""Weights that a run begins with, out of an earlier run, and those it leaves: the backbone, or the tokenizer."""

from collections.abc import Sequence
from pathlib import Path

from ssl_bench.data.dataset import Dataset
from ssl_bench.errors import UserError
from ssl_bench.models.discrete_vae import DiscreteVAE
from ssl_bench.models.saved_backbone import write_backbone
from ssl_bench.models.weights_files import plain_file, read_json, read_pickled, write_weights
from ssl_bench.pretraining.last_checkpoint import fault_of
from ssl_bench.pretraining.method import Method
from ssl_bench.records.files import write_json


def start_from(method: Method, run: Path) -> None:
    """Begin with the weights of an earlier run (`--init RUN`), which stays as it is.

    Raises:
        UserError: The folder has no such weights, or they do not fit.
    """
    file = run / "checkpoints" / "last.ckpt"
    try:
        fault = fault_of(plain_file(file))
        earlier = {} if fault else read_pickled(file)["state_dict"]
    except FileNotFoundError:
        raise UserError(f"--init {run}: no {file}; is it the folder of a run that has begun?") from None
    except UserError:
        raise
    except Exception as error:
        fault = type(error).__name__
    if fault:
        raise UserError(f"--init {run}: {file.name} is damaged ({fault})")
    weights = method.starting_weights(earlier)
    own = method.state_dict()
    for name in [*(name for name in own if name not in weights), *(name for name in weights if name not in own)]:
        where = "the method here" if name in own else f"the run {run}"
        raise UserError(f"--init {run}: only {where} has {name}: is it the same method, with the same options?")
    for name, tensor in weights.items():
        if tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)} there, {tuple(own[name].shape)} here"
            raise UserError(f"--init {run}: {name} is {shapes}: give the options in {run}/config.yaml")
    described = run / "backbone.json"  # there when the run is finished
    if described.is_file():
        try:
            there = any(read_json(described, run)["pretrained_cfg"]["mean"])
        except (ValueError, LookupError, TypeError):
            raise UserError(f"--init {run}: backbone.json is damaged") from None
        if there != method.standardize:
            text = f"its network saw images {'less' if there else 'without subtracting'} their mean, this one would not"
            raise UserError(f"--init {run}: {text}: --method.standardize {str(there).lower()}")
    method.load_state_dict(dict(weights))


def save_backbone(folder: Path, method: Method, data: Dataset) -> None:
    """The evaluated backbone of a method, with the data's mean and deviation, and its other branches beside it."""
    write_backbones(folder, method, data.mean, data.std)


def write_backbones(folder: Path, method: Method, mean: Sequence[float], std: Sequence[float]) -> None:
    """A method's evaluated backbone as `write_backbone` has it, and backbone-BRANCH.safetensors of each other."""
    evaluated, *others = method.branches.items()
    for branch, backbone in others:
        write_weights(folder / f"backbone-{branch}.safetensors", backbone.model.state_dict())
    write_backbone(folder, evaluated[1], mean, std)


def save_tokenizer(folder: Path, method: Method) -> None:
    """tokenizer.safetensors, and tokenizer.json with the arguments of the `DiscreteVAE` that holds those weights."""
    tokenizer = method.tokenizer
    assert isinstance(tokenizer, DiscreteVAE)
    write_weights(folder / "tokenizer.safetensors", tokenizer.state_dict())
    write_json(folder / "tokenizer.json", tokenizer.spec)
