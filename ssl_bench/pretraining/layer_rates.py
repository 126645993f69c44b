"""Lower rates for lower layers of a backbone that begins with weights, so that what it has learned is kept."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from ssl_bench.models.backbone import Backbone
from ssl_bench.models.stages import layers


def decayed_by_layer(backbone: Backbone, groups: Sequence[dict[str, Any]], factor: float) -> list[dict[str, Any]]:
    """Groups of parameters split by the backbone's layers, each with its own factor on the rate.

    Args:
        backbone: Whose layers; what is on top of it learns at the full rate.
        groups: As `Method.parameter_groups` makes them; a `lr_scale` that they have is multiplied.
        factor: Per layer, from the output down.
    """
    numbers, top = layers(backbone)
    layer = {id(parameter): numbers[name] for name, parameter in backbone.named_parameters()}
    found: list[dict[str, Any]] = []
    for group in groups:
        parts: dict[int, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            parts.setdefault(layer.get(id(parameter), top), []).append(parameter)
        for number in sorted(parts, reverse=True):
            scale = group.get("lr_scale", 1.0) * factor ** (top - number)
            found.append({**group, "params": parts[number], "lr_scale": scale})
    return found
