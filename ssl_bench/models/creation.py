"""A network made by timm, or by a class of the user's, with messages for what either cannot make.

Shapes: B images, 3 x s x s pixels, D features.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ssl_bench.config import class_paths, registry
from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.selective_kernel import stem_arguments
from ssl_bench.models.timm_arguments import family_of, timm_arguments

NATIVE = 224  # pixels of a network that does not say what it was made for
HINT = "--backbone.timm_args holds what its constructor takes"


@dataclass(frozen=True)
class Created:
    """A network and what made it.

    Args:
        model: The network; its (B, 3, s, s) images become (B, D) features.
        architecture: timm's name, or a class path.
        args: Of the constructor.
        family: `ssl_bench.models.timm_arguments.family_of`; `own` for a class of the user's.
        stem: First layer of a ResNet before it was widened.
    """

    model: Any
    architecture: str
    args: dict[str, Any]
    family: str
    stem: type | None = None


def create_network(options: BackboneOptions) -> Created:
    """The network that the options describe, with random weights.

    Raises:
        UserError: The name is unknown, or an option does not apply to it.
    """
    if class_paths.is_class_path(class_paths.BACKBONE, options.name):
        return _of_class(options)
    architecture, args = timm_arguments(options)
    family, stem = family_of(architecture), None
    if family == "resnet" and (options.width is not None or options.selective_kernel):
        with torch.device("meta"):
            narrow = _made(options, architecture, args)
        stem = type(narrow.conv1)
        args |= stem_arguments(narrow, options.width or 1, bool(options.selective_kernel))
    if family == "eva":  # some pool by attention, which pretraining leaves out
        with torch.device("meta"):
            args["global_pool"] = "token" if _made(options, architecture, args).cls_token is not None else "avg"
    if family == "other" and "img_size" in args and not _takes(architecture, args, "img_size"):
        args = {name: value for name, value in args.items() if name != "img_size"}  # it takes any size
    return Created(_made(options, architecture, args), architecture, args, family, stem)


def _takes(architecture: str, args: dict[str, Any], option: str) -> bool:
    """Whether a network's constructor knows an argument; timm's entry points hide theirs."""
    with torch.device("meta"):
        try:
            timm.create_model(architecture, pretrained=False, num_classes=0, **args)
        except TypeError as error:
            return option not in str(error)
        except Exception:  # which is reported when it is made in earnest
            return True
    return True


def _made(options: BackboneOptions, architecture: str, args: dict[str, Any]) -> Any:
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=0, **args)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if options.timm_args:  # whatever is in there may be of the wrong type, length or family
            given = f"--backbone.timm_args {options.timm_args}"
            raise UserError(f"backbone {options.name}, {given}: {reason}") from None
        if "drop_path_rate" in reason:
            raise UserError(f"--backbone.drop_path: {options.name} has no stochastic depth: leave it out") from None
        if isinstance(error, AssertionError | ValueError | TypeError):
            raise UserError(f"backbone {options.name} with {args}: {reason}") from None
        raise


def _of_class(options: BackboneOptions) -> Created:
    class_paths.refuse_unnamed(class_paths.BACKBONE, options.name)
    cls = registry.load(registry.class_at(options.name, "backbone"))
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"backbone {options.name} is no torch.nn.Module")
    for option in ("patch_size", "width", "depth", "num_heads", "small_stem", "selective_kernel"):
        if getattr(options, option) is not None:
            raise UserError(f"--backbone.{option} is none of {options.name}'s: {HINT}")
    args = dict(options.timm_args or {})
    if "img_size" in inspect.signature(cls).parameters:
        args.setdefault("img_size", options.img_size or NATIVE)
    if options.channels is not None and "in_chans" in inspect.signature(cls).parameters:
        args.setdefault("in_chans", options.channels)
    try:
        model = cls(**args)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"backbone {options.name} with {args}: {reason}") from None
    return Created(model, options.name, args, "own")


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


def pooled_width(model: nn.Module, name: str, size: int, native: int | None, channels: int = 3) -> int:
    """D of the (B, D) features that a network gives, found by one forward pass.

    Args:
        model: The network.
        name: For messages.
        size: Pixels of a side of the images.
        native: Those that the network was made for, where that is known.
        channels: Of the images.

    Raises:
        UserError: It does not take such images, or gives something else.
    """
    try:
        features = evaluated(model, model, size, channels)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        other = f"; it was made for {native}: --backbone.img_size {native}" if native not in (None, size) else ""
        many = f" and {channels} channels" if channels != 3 else ""
        raise UserError(
            f"backbone {name} does not take images of {size} x {size} pixels{many} ({reason}){other}"
        ) from None
    if isinstance(features, Tensor) and features.ndim == 2 and features.is_floating_point():
        return int(features.shape[1])
    raise UserError(f"backbone {name} gives {_said_of(features)}")


def _said_of(output: Any) -> str:
    """What a network gives instead of (B, D) features, and how it is wrapped."""
    wanted = "features are (images, D): let the forward of a small class of yours return"
    if isinstance(output, dict):
        return f"a dict with {', '.join(map(str, list(output)[:6]))}; {wanted} one of its entries, pooled"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)}; {wanted} one of them, pooled"
    if not isinstance(output, Tensor):
        return f"a {type(output).__name__}; {wanted} a tensor"
    shape = tuple(output.shape)
    ways = {4: "maps of shape {}; {} x.mean((2, 3))", 3: "tokens of shape {}; {} x[:, 0] or x.mean(1)"}
    return ways.get(output.ndim, "a tensor of shape {}; {} (images, D)").format(shape, wanted)
