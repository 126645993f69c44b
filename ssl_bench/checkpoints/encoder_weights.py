"""The encoder in a file of weights: of any layout that `ssl-bench import` reads, or of a run's folder."""

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from ssl_bench.checkpoints.checkpoint_file import read_checkpoint
from ssl_bench.checkpoints.official.layout import FORMATS, IMAGENET
from ssl_bench.checkpoints.recognition import Match, prefixes, recognise
from ssl_bench.checkpoints.renaming import renamed
from ssl_bench.checkpoints.report import Report
from ssl_bench.errors import UserError
from ssl_bench.models.pretrained import Weights
from ssl_bench.models.saved_backbone import load_backbone


def encoder_weights(path: Path, as_they_are: bool = False) -> Weights:
    """What `--backbone.weights` names.

    Args:
        path: A .pth or .safetensors file, a folder that `ssl-bench export` or timm wrote, or a run's folder.
        as_they_are: The network is a class of the user's, whose names no layout knows.

    Raises:
        UserError: It cannot be read, or holds no network.
    """
    if (path / "run.json").is_file():
        backbone, mean, std = load_backbone(path)
        return Weights(str(path), backbone.model.state_dict(), mean, std)
    file = read_checkpoint(path)
    names = file.tensors.keys()
    match = None if as_they_are else _recognised(names, str(path))
    if match is None:
        prefix = _common(names)
        tensors = {
            name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)
        }
        return Weights(str(path), tensors)
    evaluated = match.kind.evaluated
    state = renamed(match, file, Report(), evaluated)
    tensors = {name.removeprefix(evaluated): tensor for name, tensor in state.items()}
    return Weights(str(path), tensors, *IMAGENET)


def _recognised(names: Collection[str], file: str) -> Match | None:
    """What the first layout whose files have these names takes them for; None for a network that no layout is of."""
    for format in FORMATS:
        with suppress(UserError):
            return recognise(format, names, file)
    return None


def _common(names: Collection[str]) -> str:
    """The longest prefix that all names have, of those that a network is kept under."""
    found = [prefix for prefix in prefixes(names) if all(name.startswith(prefix) for name in names)]
    return found[-1] if found else ""
