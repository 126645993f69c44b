"""What there is, by name. Torch-free."""

import fnmatch
from collections.abc import Iterable

from ssl_bench.config import registry
from ssl_bench.data.catalogue import names
from ssl_bench.models.architectures import backbone_names


def list_methods(pattern: str = "*") -> list[str]:
    """Names of the methods, plug-ins among them, that match a pattern such as ``"sim*"``."""
    return _matching(registry.names("methods"), pattern)


def list_evaluations(pattern: str = "*") -> list[str]:
    """Names of the evaluation protocols and their presets that match a pattern."""
    return _matching(registry.names("evaluations"), pattern)


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of the networks that match a pattern such as ``"vit*"``."""
    return _matching(backbone_names(), pattern)


def list_datasets(pattern: str = "*") -> list[str]:
    """Names of the data sets that match a pattern."""
    return _matching(names(), pattern)


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    return fnmatch.filter([*names], pattern)
