"""YAML that is read as data, within a second and a few megabytes whatever it says. Torch-free."""

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from ssl_bench.errors import UserError

MOST_BYTES = 256 << 10  # the largest file of options is a hundredth of that
MOST_VALUES = 20_000  # once every alias is written out
MOST_LEVELS = 40
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # builds plain types alone: `!!python/...` is an error


def load_yaml(text: str, origin: str) -> Any:
    """What YAML says, as plain types.

    Args:
        text: YAML.
        origin: What it was read from, for messages.

    Raises:
        UserError: It is no YAML, or nested or repeated without end.
    """
    try:
        check_size(text, origin)
        return yaml.load(text, Loader=LOADER)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        tag = re.search(r"'(tag:\S+|!\S+)'", str(getattr(error, "problem", "")))
        why = f": {tag[1]} would run code or needs it, and values here are plain" if tag else ""
        raise UserError(f"{origin} is not YAML{f', line {where.line + 1}' if where else ''}{why}") from None
    except (ValueError, RecursionError) as error:  # a number or a date that there is not
        raise UserError(f"{origin} is not YAML: {error}") from None


def check_size(text: str, origin: str) -> None:
    """Refuse what would grow without end: deep nesting, aliases of aliases, an alias inside of what it names.

    Raises:
        UserError: It is so.
        yaml.YAMLError: It is not YAML.
    """
    sizes: dict[str | None, int] = {}  # of what each anchor names, aliases written out
    open_anchors: list[str | None] = []
    starts: list[int] = []
    count = 0
    for event in yaml.parse(text, Loader=LOADER):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in open_anchors:
                raise UserError(f"{origin}: *{event.anchor} stands inside of what it names: write the values out")
            count += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_anchors.append(event.anchor)
            starts.append(count)
            count += 1
            if len(starts) > MOST_LEVELS:
                raise UserError(f"{origin} nests more than {MOST_LEVELS} levels deep: options need no more than a few")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = open_anchors.pop(), starts.pop()
            if anchor:
                sizes[anchor] = count - start
        if count > MOST_VALUES:
            raise UserError(f"{origin} holds more than {MOST_VALUES:,} values once its aliases are written out")


def refuse_costly(value: str, origin: str) -> None:
    """The same for the text of a flag or variable, which is read as YAML too.

    Raises:
        UserError: It would grow without end.
    """
    if len(value) > MOST_BYTES:
        raise UserError(f"{origin} is given {len(value):,} characters: an option's value is short")
    if digits := re.search(r"\d{300,}", value):
        raise UserError(f"{origin} is given a number of {len(digits[0]):,} digits: no option takes one so large")
    if ("&" in value and "*" in value) or value.count("[") + value.count("{") > MOST_LEVELS:
        try:
            check_size(value.partition("=")[2] if value.startswith("--") else value, origin)
        except yaml.YAMLError:
            return  # the option's type refuses it, or it is text


def read_text(path: Path) -> str:
    """The text of a plain file of bearable size.

    Raises:
        UserError: It is missing, a pipe, a device or a folder, too large, or no text.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            raise UserError(f"{path} is {_kind(kind)}: options are read from plain files")
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES >> 10} KiB: a file of options is small")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def _kind(mode: int) -> str:
    kinds = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
    return next((name for test, name in kinds.items() if test(mode)), "a device")
