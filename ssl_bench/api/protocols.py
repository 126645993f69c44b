"""How protocols and options are written in Python: turned into what the command line would be given. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ssl_bench.config.layers import Layers, flatten

Protocols: TypeAlias = str | Sequence[str] | Mapping[str, Mapping[str, Any]]


def protocol_flags(protocols: Protocols) -> list[str]:
    """`["knn", "ridge"]` or `{"knn": {"k": [1, 20]}}` as `--protocols` and the options of each."""
    names = [protocols] if isinstance(protocols, str) else list(protocols)
    options = protocols if isinstance(protocols, Mapping) else {}
    groups = {name.rpartition(".")[2].replace("-", "_"): dict(given) for name, given in options.items()}
    return ["--protocols", ",".join(names), *flags(groups)]


def flags(tree: Mapping[str, Any]) -> list[str]:
    """Nested options as flags; those that are None are left out."""
    return Layers({k: v for k, v in flatten(tree, "options").items() if v is not None}, {}).tokens()
