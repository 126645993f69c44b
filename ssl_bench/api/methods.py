"""Methods as Lightning modules, for a Trainer and a loader of one's own."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_bench.config import registry, signatures
from ssl_bench.config.fit_config import plain
from ssl_bench.config.layers import flatten, stack
from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.config.parser import Parser, errors_raised
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.module_backbone import ModuleBackbone
from ssl_bench.models.weights_files import plain_file, read_pickled
from ssl_bench.pretraining.building import construct, method_class
from ssl_bench.pretraining.image_batches import IMAGENET, ImageBatches
from ssl_bench.pretraining.method import Method

PHOTOGRAPH = 224  # pixels that a network of one's own is shown where nothing else is asked


def create_method(
    name: str,
    backbone: str | Mapping[str, Any] | nn.Module | None = None,
    *,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int | None = None,
    classes: int | None = None,
    optim: Mapping[str, Any] | None = None,
    seed: int | None = None,
    **options: Any,
) -> Method:
    """A method that any Lightning Trainer can train on any loader of images.

    ``pl.Trainer(max_epochs=100).fit(create_method("simclr", backbone="resnet18"), loader)``: the loader gives batches
    (B, C, H, W), uint8 from 0 to 255 or float from 0 to 1, alone, with labels, or in a dict. The method makes its views
    of them on the device. Its schedules and moving averages follow the steps that the Trainer will take.

    Args:
        name: Of the method (`list_methods`), or a class path `package.module.MyMethod`.
        backbone: Name of a network (`list_backbones`); its options, `{"name": "resnet18", "drop_path": 0.1}`; or a
            module that gives (B, D) features.
        image_size: Pixels of the views; the network's own size, mostly 224, when not given.
        mean: Of each channel, of images in [0, 1]; ImageNet's when not given.
        std: Likewise, their standard deviation.
        batch_size: Images of a batch on a device, for loaders that do not say; the learning rate is multiplied by it.
        classes: Number of them, for methods that learn from labels.
        optim: What differs from the method's recipe: `{"base_lr": 0.1, "warmup_epochs": 1}`.
        seed: Of views and masks; torch's seed, as `pl.seed_everything` sets it, when not given.
        **options: Of the method: `temperature=0.2`.

    Raises:
        UserError: An unknown name, an option that does not fit, or a network that the method cannot train.
    """
    found = registry.find("methods", name)
    cls = method_class(found)
    is_module = isinstance(backbone, nn.Module)
    if backbone is None and signatures.takes(found, "backbone"):
        raise UserError(f'create_method("{name}", backbone=...): which network? A name such as "resnet18", or a module')
    network = {"name": backbone} if isinstance(backbone, str) else backbone if isinstance(backbone, Mapping) else {}
    sized = network if image_size is None else {**network, "img_size": image_size}
    config = _checked(found, {"method": options, "backbone": sized, "optim": dict(optim or {})})
    statistics = _statistics(mean, std, backbone)
    seed = torch.initial_seed() if seed is None else seed
    size = config["backbone"]["img_size"] or PHOTOGRAPH
    parts: dict[str, Callable[[], Any]] = {
        "backbone": lambda: _network(backbone, config["backbone"], size, len(statistics[0])),
        "image_size": lambda: size,
        "statistics": lambda: statistics,
        "classes": lambda: _given(classes, "classes", name),
    }
    method = construct(cls, config["method"], config["optim"], parts)
    shown = statistics if method.standardize else ((0.0,) * len(statistics[0]), (1.0,) * len(statistics[0]))
    method.image_batches = ImageBatches(method.views(), *shown, seed)
    method.batch_size = batch_size
    own_class = method.backbone.architecture if is_module else None
    config |= {"mean": [*statistics[0]], "std": [*statistics[1]], "seed": seed, "classes": classes}
    method.save_hyperparameters({"name": name, "image_size": image_size, "module": own_class, **config})
    return method


def load_method(checkpoint: str | PathLike[str], backbone: nn.Module | None = None) -> Method:
    """The method in a checkpoint that a Trainer has written of one from `create_method`.

    Args:
        checkpoint: The file.
        backbone: The module that was pretrained, if it was one of one's own: its class with any weights.

    Raises:
        UserError: It is no such checkpoint, or not of this module.
    """
    path = Path(checkpoint)
    try:
        entries = read_pickled(plain_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    made = entries.get("hyper_parameters", {})
    if "state_dict" not in entries or not {"name", "method", "optim", "module"} <= set(made):
        raise UserError(f"{path} is no checkpoint of a method from create_method; `ssl-bench import` reads others")
    if (made["module"] is not None) != (backbone is not None):
        text = f"backbone: it holds a {made['module']}" if made["module"] else "no backbone: its network has a name"
        raise UserError(f"{path}: give {text}")
    return _loaded(path, made, entries["state_dict"], backbone)


def _loaded(path: Path, made: dict[str, Any], weights: dict[str, Any], backbone: nn.Module | None) -> Method:
    named = made.get("backbone")
    shared = {key: made[key] for key in ("name", "image_size", "mean", "std", "classes", "optim", "seed")}
    method = create_method(backbone=backbone if backbone is not None else named, **shared, **made["method"])
    try:
        method.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} holds the weights of another network: {reason}") from None
    return method


def _checked(found: registry.Found, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the method, its optimiser and its network, all of them, held to their types as a command's are."""
    default: Any = signatures.read(found)
    optim = default().optim
    parser = Parser(prog="create_method")
    parser.add_class_arguments(default, "method", skip={"optim"})
    parser.add_class_arguments(Optim, "optim")
    parser.set_defaults({f"optim.{key}": value for key, value in vars(optim).items()})
    parser.add_class_arguments(BackboneOptions, "backbone")
    given = {key: value for key, value in flatten(tree, "create_method").items() if value is not None}
    with errors_raised():
        config = plain(parser.parse_args(stack([("create_method", given)]).tokens()))
        Optim(**config["optim"])  # what is wrong between its options is found now
    return {"method": {}, **config}


def _network(
    backbone: str | Mapping[str, Any] | nn.Module | None, options: dict[str, Any], size: int, channels: int
) -> Backbone | ModuleBackbone:
    if isinstance(backbone, Backbone | ModuleBackbone):
        return backbone
    return (
        ModuleBackbone(backbone, size, channels)
        if isinstance(backbone, nn.Module)
        else Backbone(BackboneOptions(**options))
    )


def _statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, backbone: Any
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if (mean is None) != (std is None):
        raise UserError("give mean and std, or neither: they normalise the images together")
    mean, std = IMAGENET if mean is None or std is None else (tuple(mean), tuple(std))
    if len(mean) != len(std) or not mean or min(std) <= 0:
        raise UserError(f"mean {mean} and std {std}: one number for each channel, std above 0")
    if len(mean) != 3 and not isinstance(backbone, nn.Module):
        raise UserError(f"mean of {len(mean)} channels: networks by name take three; give a module that takes others")
    return mean, std


def _given(value: Any, option: str, method: str) -> Any:
    if value is None:
        raise UserError(f'create_method("{method}", {option}=...) is needed: the method learns from labels')
    return value
