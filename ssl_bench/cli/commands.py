"""The commands, each a module of this package, and what their parsers share. Torch-free."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssl_bench.config.constraints import PathText, checked, plain_type
from ssl_bench.config.help import describe
from ssl_bench.errors import UserError, near

COMMANDS = {
    "fit": "pretrain a backbone",
    "evaluate": "measure what pretrained backbones, or baselines, have learned",
    "benchmark": "methods x data x backbones x seeds x any option: fit, evaluate, leaderboard; skips what is done",
    "leaderboard": "one table of all results: terminal, CSV, Markdown, JSON, LaTeX, a web page",
    "compare": "which differences between methods are significant, image by image; ranks over protocols",
    "figures": "pictures of runs: reconstructions, attention, neighbours, a map of features, masks, views",
    "import": "a checkpoint of an official repository becomes a run folder",
    "export": "a run's backbone as a folder that timm loads, with a model card",
    "list": "methods, evaluations, data, backbones, recipes",
    "completion": "a script that completes commands and options in your shell",
}


def refuse(parser: argparse.ArgumentParser) -> Any:
    """argparse's message in one line, with the nearest option."""

    def error(message: str) -> None:
        options = [o for action in parser._actions for o in action.option_strings]
        unknown = message.partition("unrecognized arguments: ")[2].split()
        raise UserError(message + (near(unknown[0], options) if unknown else ""))

    return error


def typed(annotation: Any) -> Callable[[str], Any]:
    """For argparse's `type=`: text becomes a value that is held to all that a type says (`config/constraints.py`)."""
    plain = plain_type(annotation)

    def convert(text: str) -> Any:
        try:
            value = plain(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text[:60]} must be {describe(annotation)}") from None
        try:
            return checked(annotation, value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text[:60]} {error}") from None

    return convert


def path(text: str) -> Path:
    """The same for paths: `~` is expanded, and web addresses are refused."""
    return Path(typed(PathText)(text))


def import_torch() -> None:
    """Say what the seconds are for."""
    if sys.stderr.isatty():
        print("loading torch ...", end="\r", file=sys.stderr, flush=True)
