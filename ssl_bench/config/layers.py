"""Options from files, the environment and flags, later over earlier. Torch-free."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.config.constraints import local_path
from ssl_bench.config.safe_yaml import load_yaml, read_text, refuse_costly
from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.records.renamed import OPTIONS

ENVIRONMENT = "SSL_BENCH_"
NO_OPTIONS = ("SSL_BENCH_CACHE",)  # variables of that beginning that are none of a command's options
NAMED = ("method", "backbone", "data", "executor")  # `--data cifar10` is short for `--data.name cifar10`


@dataclass(frozen=True)
class Layers:
    """Options from everything but flags, flat, later over earlier.

    Args:
        values: `optim.base_lr` -> value.
        origins: The same keys -> the file or variable that set them.
    """

    values: dict[str, Any]
    origins: dict[str, str]

    def tokens(self) -> list[str]:
        """As flags."""
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.values.items()}
        return [f"--{key}={text}" for key, text in texts.items()]


def flatten(tree: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """`{data: cifar10, optim: {base_lr: 1}}` -> `{data.name: cifar10, optim.base_lr: 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{origin}: option names are text, not {key!r}")
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value, origin).items()}
        else:
            flat[f"{key}.name" if key in NAMED else key] = value
    return flat


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of options.

    Raises:
        UserError: It cannot be read, is not YAML, grows without end, or is no mapping.
    """
    text = read_text(path)
    if not text.strip():
        say(f"warning: {path} is empty")
    tree = load_yaml(text, str(path))
    if not isinstance(tree, dict) and tree is not None:
        raise UserError(f"{path} holds no options: it must be a mapping such as `optim: {{base_lr: 0.1}}`")
    return tree or {}


def environment_layer(environ: Mapping[str, str]) -> dict[str, Any]:
    """`SSL_BENCH_OPTIM__BASE_LR=1` -> `{optim.base_lr: "1"}`."""
    chosen = {k: v for k, v in environ.items() if k.startswith(ENVIRONMENT) and k not in NO_OPTIONS}
    for name, value in chosen.items():
        refuse_costly(value, name)
    return {k.removeprefix(ENVIRONMENT).lower().replace("__", "."): v for k, v in chosen.items()}


def stack(layers: Iterable[tuple[str, dict[str, Any]]]) -> Layers:
    """Layers over one another; one that names another backbone or executor drops what earlier ones said of theirs."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        layer = {current_name(f"{k}.name" if k in NAMED else k, origin): v for k, v in layer.items()}
        for group in ("backbone", "executor"):
            named = layer.get(f"{group}.name")
            if named is not None and values.get(f"{group}.name", named) != named:
                for key in [k for k in values if k.startswith(f"{group}.")]:
                    del values[key], origins[key]
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    return Layers(values, origins)


def current_name(option: str, origin: str) -> str:
    """What an option is called today; one line says so where it had another name before."""
    if option in OPTIONS:
        say(f"{origin}: --{option} is now --{OPTIONS[option]}")
    return OPTIONS.get(option, option)


def split_argv(argv: Sequence[str]) -> tuple[list[Path], dict[str, Any], list[str]]:
    """(config files, names given by flags, other flags with short names written out)."""
    files: list[Path] = []
    named: dict[str, Any] = {}
    rest: list[str] = []
    queue = list(argv)
    peeked = (*NAMED, *(f"{name}.name" for name in NAMED), "recipe")
    while queue:
        token = queue.pop(0)
        flag, equals, value = token.partition("=")
        key = flag.removeprefix("--")
        if flag in ("-c", "--config") or (flag.startswith("--") and key in peeked):
            if not equals:
                if not queue:
                    raise UserError(f"{flag} needs a value")
                value = queue.pop(0)
            if flag in ("-c", "--config"):
                files.append(Path(checked_path(value, flag)))
            else:
                named[f"{key}.name" if key in NAMED else key] = value
        elif flag.startswith("--") and key in OPTIONS:
            rest.append(f"--{current_name(key, 'the command line')}{equals}{value}")
        else:
            rest.append(token)
    return files, named, rest


def checked_path(text: str, flag: str) -> str:
    """A path given by a flag, `~` expanded.

    Raises:
        UserError: It is a web address, or names a user there is not.
    """
    try:
        return local_path(text)
    except ValueError as error:
        raise UserError(f"{flag} {text} {error}") from None


def flag_value(flags: Sequence[str], name: str) -> str | None:
    """Value of one flag among unparsed ones."""
    for i, token in enumerate(flags):
        if token == name and i + 1 < len(flags):
            return flags[i + 1]
        if token.startswith(f"{name}="):
            return token.partition("=")[2]
    return None
