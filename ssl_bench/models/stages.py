"""The parts of any network from its input to its output, which layer-wise rates and partial fine-tuning count by."""

from collections.abc import Iterator

from timm.models import group_parameters
from torch import nn

LISTS = (nn.Sequential, nn.ModuleList)


def stages(model: nn.Module) -> dict[str, int]:
    """Name of each parameter -> its stage, 0 for the stem.

    timm's grouping (`group_matcher`, coarse: a stage of a convolutional network, a block of one with equal blocks); of
    a network that has none, its children in their order, those of lists one by one. What holds nothing but norms and
    biases belongs to the stage before it.
    """
    found = _grouped(model) or _children(model)
    weighty = {found[name] for name, parameter in model.named_parameters() if parameter.ndim > 1}
    numbers: dict[int, int] = {}
    for group in sorted(set(found.values())):
        numbers[group] = max(0, sum(1 for each in weighty if each <= group) - 1)
    return {name: numbers[group] for name, group in found.items()}


def _grouped(model: nn.Module) -> dict[str, int] | None:
    if not hasattr(model, "group_matcher"):
        return None
    names = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    own = {name for name, _ in model.named_parameters()}
    return {name: int(group) for name, group in names.items()} if own == set(names) else None


def _children(model: nn.Module) -> dict[str, int]:
    found = {name: 0 for name, _ in model.named_parameters(recurse=False)}
    for number, (prefix, child) in enumerate(_parts(model, "")):
        found |= {f"{prefix}.{name}": number for name, _ in child.named_parameters()}
    return found


def _parts(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Children with parameters, lists taken apart."""
    for name, child in module.named_children():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(child, LISTS):
            yield from _parts(child, path)
        elif next(child.parameters(), None) is not None:
            yield path, child
