"""From a configuration to data, method and data module."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_bench.config import class_paths, registry
from ssl_bench.config.options import BackboneOptions, DataOptions, Optim
from ssl_bench.console import say
from ssl_bench.data.dataset import Dataset, load_dataset
from ssl_bench.data.module import DataModule
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.pretrained import Weights, is_pretrained, network_of, start, timm_weights
from ssl_bench.pretraining.checkpoint import start_from
from ssl_bench.pretraining.method import Method


def build(config: dict[str, Any], weights: Weights | None = None) -> tuple[Dataset, Method, DataModule]:
    """Data, method and data module of a configuration.

    Args:
        config: Of the run.
        weights: What `--backbone.weights` names; not of a run that is only looked at.
    """
    return build_on(load_dataset(DataOptions(**config["data"])), config, weights)


def build_on(
    data: Dataset, config: dict[str, Any], weights: Weights | None = None
) -> tuple[Dataset, Method, DataModule]:
    """The same on data that are open already."""
    data_options = data.options
    given = dict(config["method"])
    found = registry.find("methods", given.pop("name"))
    cls = method_class(found)
    if "backbone" in inspect.signature(cls).parameters:
        network = BackboneOptions(**config["backbone"])
        weights = timm_weights(network.name) if is_pretrained(network) else weights
    parts: dict[str, Callable[[], Any]] = {
        "backbone": lambda: Backbone(network_of(network, data.image_size, data.channels)),
        "image_size": lambda: data.image_size,
        "statistics": lambda: (data.mean, data.std),
        "classes": lambda: _classes(data),
    }
    method = construct(cls, given, config["optim"], parts)
    if config["init"] is not None:
        start_from(method, Path(config["init"]))
    elif weights is not None:
        data = begin_with(method, weights, data)
    if not method.standardize:
        data = replace(data, mean=(0.0,) * data.channels, std=(1.0,) * data.channels)
    if method.needs_labels:
        if data_options.label_fraction is not None:
            say(f"learning from {100 * data_options.label_fraction:g} % of the labels: --data.label_fraction")
        data = _labelled(data, method)
    elif data_options.label_fraction is not None:
        learners = "simclrv2-finetune, or simclrv2-distill with --method.alpha below 1"
        raise UserError(f"--data.label_fraction: {config['method']['name']} here learns from no labels, as {learners}")
    operations = class_paths.names_in(config.get("operations"))
    for name in operations:
        if class_paths.is_class_path(class_paths.OPERATIONS, name):
            class_paths.refuse_unnamed(class_paths.OPERATIONS, name)
    seed, labels = config["seed"], method.needs_labels
    return data, method, DataModule(data, data_options, method.views(), seed, labels, operations)


def begin_with(method: Method, weights: Weights, data: Dataset) -> Dataset:
    """Put weights in place of a method's random ones, its teachers' too; says what was made to fit.

    Returns:
        The data, normalised as these weights' network had them.

    Raises:
        UserError: They do not fit.
    """
    copies = [module for module in method.modules() if isinstance(module, Backbone) and _equal(module, method.backbone)]
    begun = start(method.backbone, weights)
    for copied in copies:
        copied.load_state_dict(method.backbone.state_dict())
    adapted = [*begun.adapted]
    mean, std = weights.mean, weights.std
    if mean is not None and std is not None and len(mean) == data.channels and (mean, std) != (data.mean, data.std):
        data = replace(data, mean=mean, std=std)
        adapted.append("images are normalised as its own were")
    method.start = asdict(replace(begun, adapted=tuple(adapted)))
    size = method.backbone.img_size
    say("; ".join([f"starting from {begun.source} (sha256 {begun.digest[:8]}) at {size} pixels", *adapted]))
    return data


def _equal(one: Backbone, other: Backbone) -> bool:
    own, theirs = one.state_dict(), other.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in own.items())


def method_class(found: registry.Found) -> type[Method]:
    """The class that a name means.

    Raises:
        UserError: It is no method.
    """
    cls = registry.load(found)
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise UserError(f"{found.module}.{found.class_name} is no subclass of ssl_bench.pretraining.method.Method")
    return cls


def construct(
    cls: type[Method], options: Mapping[str, Any], optim: Mapping[str, Any], parts: Mapping[str, Callable[[], Any]]
) -> Method:
    """A method with its options, and those of the ``parts`` that its constructor asks for.

    Args:
        cls: Its class.
        options: Of its own.
        optim: Options of its optimiser, as a configuration has them.
        parts: Name -> what makes it: the backbone, the images' size or ``statistics`` (what undoes the views'
            normalisation), the number of classes of a stage that learns from labels.
    """
    wanted = inspect.signature(cls).parameters
    as_tuples = {"betas": tuple(optim["betas"]), "milestones": tuple(optim["milestones"])}
    made = {name: make() for name, make in parts.items() if name in wanted}
    return cls(optim=Optim(**{**optim, **as_tuples}), **options, **made)


def _classes(data: Dataset) -> int:
    data.require_labels("classes")
    return len(data.classes or ())


def _labelled(data: Dataset, method: Method) -> Dataset:
    """What a method that learns from labels trains on."""
    data.require_labels("classes")
    names = method.evaluated_classifier.names if method.evaluated_classifier is not None else None
    if names is not None and names != data.classes:
        raise UserError(f"{data.title} has other classes than the network that is to name them: choose its data set")
    return data.labelled(method.unlabelled_too)


def require_images(method: Method, images: int, options: DataOptions, devices: int, synchronised: bool) -> None:
    """Whether a batch has as many images as a method and its batch norms need.

    Args:
        method: As built.
        images: To train on.
        options: With the batch size that was asked for.
        devices: That train together.
        synchronised: Whether batch norms see the images of all devices.

    Raises:
        UserError: It has fewer.
    """
    each = min(options.batch_size, images // devices)
    norms = any(isinstance(module, _BatchNorm) for module in method.modules())
    for needed, there, why in (
        (method.min_images, each * devices, "its loss compares images"),
        (2 if norms else 1, each * (devices if synchronised else 1), "batch norm takes statistics of a batch"),
    ):
        if 0 < there < needed:
            name = type(method).__name__
            remedy = (
                "--data.batch_size" if each == options.batch_size else "--data.root, whose training images are too few"
            )
            raise UserError(f"{name} needs {needed} images in a batch ({why}) and here is {there}: change {remedy}")
