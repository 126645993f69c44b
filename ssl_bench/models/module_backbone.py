"""A network that is known by one feature per image and nothing else, and how many numbers that has.

Shapes: B images, C x H x W pixels, D features.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError

WANTED = "not (2, D) features: wrap it in a module whose forward returns a (B, D) tensor"
SIZE = "; image_size says which it takes"


@final
class ModuleBackbone(nn.Module):
    """Any module whose forward takes (B, C, H, W) images and gives (B, D) features.

    Args:
        model: The module; it is trained as it is, not copied.
        img_size: Pixels of a (square) image that it is shown.
        channels: C.

    Raises:
        UserError: Its forward fails on such images, or gives something else.
    """

    baseline = ""
    is_vit = False
    is_resnet = False
    is_swin = False
    is_pooled = True
    has_relative_positions = False
    timm_can_build = False
    feature_types = ("features",)
    primary_feature_type = "features"

    def __init__(self, model: nn.Module, img_size: int, channels: int = 3) -> None:
        super().__init__()
        self.model = model
        self.img_size, self.channels = img_size, channels
        self.dim = feature_size(model, type(model).__name__, img_size, channels, SIZE)
        self.options = BackboneOptions(name=class_path(model), img_size=img_size)
        self.architecture, self.args = self.options.name, {"channels": channels, "features": self.dim}

    @property
    def spec(self) -> dict[str, Any]:
        """What tells this network from others, plain types only; code builds it again, not this."""
        shapes = [[name, list(tensor.shape)] for name, tensor in self.model.state_dict().items()]
        return {"architecture": "module", "class": self.architecture, "args": self.args, "shapes": shapes}

    def takes(self, size: int) -> bool:
        """Whether images of this size can be its input as well."""
        try:
            return feature_size(self.model, self.architecture, size, self.channels) == self.dim
        except UserError:
            return False

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        features: Tensor = self.model(images)
        return features

    def features(self, images: Tensor, feature_types: Sequence[str]) -> dict[str, Tensor]:
        """(B, C, H, W) -> (B, D), under its only name."""
        return {feature_type: {"features": self.model}[feature_type](images) for feature_type in feature_types}

    def token_grid(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, D), the only token."""
        return self.forward(images)[:, None]


@torch.no_grad()
def evaluated(model: nn.Module, forward: Callable[[Tensor], Any], size: int, channels: int = 3) -> Any:
    """What comes out of two black images of this size, in eval mode; the network stays as it was."""
    modes = {module: module.training for module in model.modules()}
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    try:
        model.eval()
        return forward(torch.zeros(2, channels, size, size, device=device))
    finally:
        for module, training in modes.items():
            module.training = training


def feature_size(model: nn.Module, name: str, size: int, channels: int = 3, remedy: str = "") -> int:
    """D of the (B, D) features that a network gives.

    Args:
        model: The network.
        name: For messages.
        size: Pixels of a side of the images.
        channels: C.
        remedy: What helps where it does not take such images, for the message.

    Raises:
        UserError: It does not take them, or gives something else; how to wrap it.
    """
    try:
        found = evaluated(model, model, size, channels)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        images = f"images of {channels} x {size} x {size} pixels"
        raise UserError(f"{name} does not take {images} ({reason}){remedy}") from None
    if isinstance(found, Tensor) and found.ndim == 2 and len(found) == 2 and found.is_floating_point():
        return int(found.shape[1])
    raise UserError(f"{name} gives {_described(found)}")


def _described(output: Any) -> str:
    """What a network gives instead of (2, D) features, and how it is wrapped."""
    if isinstance(output, dict):
        return f"a dict with {', '.join(map(str, list(output)[:6]))}, {WANTED}, one of its entries, pooled"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)}, {WANTED}, one of them, pooled"
    if not isinstance(output, Tensor):
        return f"a {type(output).__name__}, {WANTED}"
    ways = {
        4: ": x.mean((2, 3)), or nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten())",
        3: ": x[:, 0] or x.mean(1), of the class token or of their mean",
    }
    kind = {4: "maps", 3: "tokens"}.get(output.ndim, "a tensor")
    return f"{kind} of shape {tuple(output.shape)} and {output.dtype}, {WANTED}{ways.get(output.ndim, '')}"


def class_path(model: nn.Module) -> str:
    """`package.module.Net`."""
    cls = type(model)
    module = inspect.getmodule(cls)
    return f"{module.__name__ if module is not None else cls.__module__}.{cls.__qualname__}"
