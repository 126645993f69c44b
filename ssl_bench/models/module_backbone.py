"""A network of one's own, as methods and evaluations see networks: one feature per image, and nothing else.

Shapes: B images, C x H x W pixels, D features.
"""

import inspect
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError

WRAP = "wrap it in a module whose forward returns a (B, D) tensor"


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
        self.dim = feature_size(model, img_size, channels)
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
            return feature_size(self.model, size, self.channels) == self.dim
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


def feature_size(model: nn.Module, img_size: int, channels: int) -> int:
    """D, found by showing the module two black images in eval mode, without gradient.

    Raises:
        UserError: That fails, or it gives no (2, D) tensor; how to wrap it.
    """
    name = type(model).__name__
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            found = model.eval()(torch.zeros(2, channels, img_size, img_size, device=device))
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        what = f"images of {channels} x {img_size} x {img_size} pixels"
        raise UserError(f"{name} cannot be run on {what}: {reason} (image_size says which it takes)") from None
    finally:
        for module, was in training.items():
            module.training = was
    if isinstance(found, Tensor) and found.ndim == 2 and len(found) == 2 and found.is_floating_point():
        return int(found.shape[1])
    if isinstance(found, Tensor):
        shape, how = tuple(found.shape), ""
        if found.ndim == 4:
            how = ", say nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten())"
        elif found.ndim == 3:
            how = ", say of the class token, net(x)[:, 0], or of their mean, net(x).mean(1)"
        raise UserError(f"{name} gives {found.dtype} {shape} for 2 images, not (2, D) features: {WRAP}{how}")
    kind = type(found).__name__
    keys = f" with {', '.join(map(str, found))}" if isinstance(found, dict) else ""
    raise UserError(f"{name} gives a {kind}{keys}, not (2, D) features: {WRAP}, the entry of it that you mean")


def class_path(model: nn.Module) -> str:
    """`package.module.Net`."""
    cls = type(model)
    module = inspect.getmodule(cls)
    return f"{module.__name__ if module is not None else cls.__module__}.{cls.__qualname__}"
