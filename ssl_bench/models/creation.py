"""A network made by timm, or by a class of the user's, with messages for what either cannot make."""

import inspect
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

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
