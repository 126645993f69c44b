"""The encoder in a file of weights: of any layout that `ssl-bench import` reads, or of a run's folder."""

from collections.abc import Collection
from pathlib import Path

from ssl_bench.checkpoints.checkpoint_file import read_checkpoint
from ssl_bench.checkpoints.official.layout import FORMATS, IMAGENET, layout
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
    format = None if as_they_are else _format(names, str(path))
    if format is None:
        prefix = _common(names)
        tensors = {
            name.removeprefix(prefix): tensor for name, tensor in file.tensors.items() if name.startswith(prefix)
        }
        return Weights(str(path), tensors)
    match = recognise(format, names, str(path))
    kind = match.kind
    state = renamed(match, file, Report(), kind.evaluated)
    tensors = {name.removeprefix(kind.evaluated): tensor for name, tensor in state.items()}
    return Weights(str(path), tensors, *IMAGENET)


def _format(names: Collection[str], file: str) -> str | None:
    """The layout whose files have these names; None for a network that no layout is of."""
    for format in FORMATS:
        try:
            match: Match = recognise(format, names, file)
        except UserError:
            continue
        if any(kind is match.kind for kind in layout(format).kinds):
            return format
    return None


def _common(names: Collection[str]) -> str:
    """The longest prefix that all names have, of those that a network is kept under."""
    found = [prefix for prefix in prefixes(names) if all(name.startswith(prefix) for name in names)]
    return found[-1] if found else ""
