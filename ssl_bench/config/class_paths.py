"""Class paths run code when they are looked up, so only those that the user names are: none that only a file names.

A class path is `package.module.Class`, a tokenizer's `package.module:Class`. Names of ours and of installed plug-ins
are none. Torch-free; nothing is imported here.
"""

import importlib.util
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ssl_bench.config import registry
from ssl_bench.errors import UserError

# Options whose value may be a class path.
METHOD, BACKBONE, TOKENIZER = "method.name", "backbone.name", "method.tokenizer"
DATA, OPERATIONS, CALLBACKS = "data.name", "operations", "trainer.callbacks"
FLAGS = {METHOD: "--method", BACKBONE: "--backbone", TOKENIZER: f"--{TOKENIZER}", DATA: "--data"}
FLAGS |= {OPERATIONS: f"--{OPERATIONS}", CALLBACKS: f"--{CALLBACKS}"}
USERS = ("flags", "the environment")  # origins that are the user's own word
_NAMED: set[str] = set()  # by the user, to this process


def check(values: Mapping[str, Any], origins: Mapping[str, str], named: Collection[str] = ()) -> None:
    """Refuse a class path that only a file names.

    Args:
        values: Flat options.
        origins: The same names -> the file that set them, or one of USERS.
        named: Class paths that the user named.

    Raises:
        UserError: There is one; the message says how to name it.
    """
    given = [(option, name) for option in FLAGS for name in _names(values.get(option))]
    for option, value in given:
        flag, origin = FLAGS[option], origins.get(option, "")
        if not is_class_path(option, value):
            continue
        if origin in USERS or value in named:
            name_classes(value)
        else:
            remedy = f"name it yourself: {flag} {value} (of benchmark and figures: --classes {value})"
            raise UserError(f"{origin} names the class {value}, and a file alone has no code run: {remedy}")


def _names(value: Any) -> list[str]:
    """The names that an option holds: one, or a list of them."""
    if isinstance(value, str):
        return [part.strip(" '\"") for part in value.strip("[]").split(",")]
    return [str(part) for part in value] if isinstance(value, list | tuple) else []


def names_in(text: str | None) -> tuple[str, ...]:
    """The names in an option that holds several, with commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def name_classes(*names: str) -> None:
    """The user has named these classes: from now on, what this process reads from files may name them too."""
    _NAMED.update(names)


def refuse_unnamed(option: str, name: str) -> None:
    """Refuse to import a class that only a run folder names.

    Args:
        option: BACKBONE, DATA, OPERATIONS or CALLBACKS.
        name: Its class path.

    Raises:
        UserError: The user has not named it.
    """
    if name not in _NAMED:
        what = {
            BACKBONE: "the network is of the class",
            DATA: "the images are read by",
            OPERATIONS: "views are made by",
            CALLBACKS: "training calls",
        }
        remedy = f"name it yourself: --classes {name} (of fit: {FLAGS[option]} {name})"
        raise UserError(f"{what[option]} {name}, and a file alone has no code run: {remedy}")


def check_evaluations(names: Collection[str], origin: str, named: Collection[str] = ()) -> None:
    """Likewise of protocols.

    Raises:
        UserError: A file names a class path.
    """
    for name in names:
        if origin not in USERS and name not in named and "." in name and name not in registry.names("evaluations"):
            remedy = f"name it yourself: --protocols {name} (of benchmark: --classes {name})"
            raise UserError(f"{origin} names the class {name}, and a file alone has no code run: {remedy}")


def is_class_path(option: str, value: str) -> bool:
    """Whether a value can only be a class path."""
    if option == METHOD:
        return "." in value and value not in registry.names("methods")
    if option == CALLBACKS:
        return bool(value)
    if option in (DATA, OPERATIONS):
        own = registry.plug_ins("data" if option == DATA else "operations")
        plain = "." in value and not set("/:~") & set(value) and value not in own and not Path(value).exists()
        return plain and _is_package(value.partition(".")[0])
    if option == BACKBONE:  # timm's names have dots too, before the name of their weights
        return "." in value and not set(":/") & set(value) and _is_package(value.partition(".")[0])
    return ":" in value and not Path(value).exists()


def _is_package(name: str) -> bool:
    """Whether the first part of a path can be imported; it is not."""
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:
        return False
