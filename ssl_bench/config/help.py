"""`--help` of the commands whose options are typed: the usual ones first, all with `--help-all`. Torch-free."""

import argparse
import json
import shutil
import textwrap
import types
from collections.abc import Collection, Iterator
from typing import Any, Literal, Union, get_args, get_origin

from ssl_bench.config.constraints import Constraint, LocalPath, Range, constraints_of, plain_type

WIDTH = 110  # at most, where the terminal is wider
COLUMN = 34  # where explanations begin
SHORT_NAMES = {"method.name": "method", "data.name": "data", "backbone.name": "backbone"}


def help_text(
    parser: argparse.ArgumentParser, usual: Collection[str], whole: bool, groups: Collection[str], examples: str
) -> str:
    """What `--help` prints.

    Args:
        parser: Whose options.
        usual: Names of the options that are shown first.
        whole: Show all others too, each under its group's heading.
        groups: Prefixes of groups that are shown in any case.
        examples: Commands to end with.
    """
    width = min(WIDTH, shutil.get_terminal_size((100, 24)).columns)
    actions = {action.dest: action for action in parser._actions}
    parts = [f"usage: {parser.usage}", textwrap.fill(str(parser.description), width)]
    arguments = [action for action in parser._actions if not action.option_strings]
    first = [*arguments, *(actions[name] for name in usual if name in actions)]
    parts.append("\n".join(line for action in first for line in _lines(action, width, short=not whole)))
    for title, members in _groups(parser, {action.dest for action in first}):
        if whole or any(action.dest.startswith(f"{group}.") for group in groups for action in members):
            lines = [line for action in members for line in _lines(action, width, short=not whole)]
            parts.append("\n".join([f"{title}:", *lines]))
    hidden = sum(bool(action.option_strings) and action.help != argparse.SUPPRESS for action in actions.values())
    if not whole:
        parts.append(f"--help-all explains all {hidden} options.")
    parts.append(textwrap.dedent(examples).strip())
    return "\n\n".join(part for part in parts if part) + "\n"


def describe(annotation: Any) -> str:
    """What a value of a type must be, in words to follow "must be"."""
    origin = get_origin(annotation)
    words = next((text for note in constraints_of(annotation) if (text := note.described())), "")
    plain = plain_type(annotation)
    if origin is Literal:
        return f"one of {', '.join(str(choice) for choice in get_args(annotation))}"
    if origin in (Union, types.UnionType):
        return " or ".join(
            dict.fromkeys("null" if kind is type(None) else describe(kind) for kind in get_args(annotation))
        )
    if get_origin(plain) is tuple:
        kinds = get_args(plain)
        what = {int: "whole numbers", float: "numbers"}.get(plain_type(kinds[0]), "values")
        return f"a list of {'' if kinds[-1] is ... else f'{len(kinds)} '}{what}{f', {words}' if words else ''}"
    name = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    if plain in (int, float):
        return f"{name[plain]}{',' if words.startswith('at ') else ''} {words}".rstrip()
    return words or name.get(get_origin(plain) or plain, "of another type")


def _groups(parser: argparse.ArgumentParser, shown: Collection[str]) -> Iterator[tuple[str, list[argparse.Action]]]:
    """Headings and the options under each, without those that are shown."""
    for group in parser._action_groups:
        members = [action for action in group._group_actions if action.option_strings and action.dest not in shown]
        members = [action for action in members if action.help != argparse.SUPPRESS]
        if members:
            named = members[0].dest.partition(".")[0] if "." in members[0].dest else ""
            title = (group.title or "").partition(". ")[0].partition(": ")[0].rstrip(".:")
            yield f"{title} (--{named}.*)" if named else "others", members


def _lines(action: argparse.Action, width: int, short: bool) -> list[str]:
    """An option, what it takes, and what it is for."""
    annotation = getattr(action, "_typehint", None)
    names = [f"--{SHORT_NAMES[action.dest]}"] if action.dest in SHORT_NAMES else list(action.option_strings[:2])
    takes = _takes(action, annotation)
    left = ", ".join(names) if names else takes
    left = f"  {left} {takes}".rstrip() if names else f"  {left}"
    text = " ".join(str(action.help or "").split())
    text = (text.partition(". ")[0] if short else text).rstrip(".")
    text = text[:1].lower() + text[1:] if text[1:2].islower() else text
    notes = list(dict.fromkeys(word for note in constraints_of(annotation) if (word := _rule(note))))
    if action.default not in (None, "", False, argparse.SUPPRESS) and names and action.nargs != 0:
        notes.insert(0, f"default {_shown(action.default)}")
    text += f" ({'; '.join(notes)})" if notes else ""
    wrapped = textwrap.wrap(text, max(30, width - COLUMN)) or [""]
    rest = [" " * COLUMN + line for line in wrapped[1:]]
    if len(left) < COLUMN - 1:
        return [f"{left:<{COLUMN}}{wrapped[0]}", *rest]
    return [left, " " * COLUMN + wrapped[0], *rest]


def _rule(constraint: Constraint) -> str:
    """A rule in words; without a bound that only keeps out what no machine could hold."""
    if isinstance(constraint, Range) and constraint.max is not None and constraint.max > 1024:
        return f"at least {constraint.min}" if constraint.min else ""
    return constraint.described()


def _takes(action: argparse.Action, annotation: Any) -> str:
    """A word for the value."""
    if action.nargs == 0:
        return ""
    if action.metavar and not str(action.metavar).startswith(("[", "{")):
        word = str(action.metavar)
        return f"{word}..." if action.nargs in ("*", "+") else word
    if action.choices:
        return "|".join(str(choice) for choice in action.choices)
    kinds = [kind for kind in get_args(annotation) or () if kind is not type(None)]
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = kinds[0] if kinds else annotation
    plain = plain_type(annotation)
    if get_origin(plain) is Literal:
        choices = "|".join(str(choice) for choice in get_args(plain))
        return choices if len(choices) <= COLUMN else "NAME"
    if any(isinstance(note, LocalPath) for note in constraints_of(annotation)):
        return "PATH"
    if get_origin(plain) is tuple:
        return "[X, ...]"
    return {int: "N", float: "X", bool: "true|false", dict: "{...}"}.get(get_origin(plain) or plain, "NAME")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value, default=str)
