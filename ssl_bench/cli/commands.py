"""The commands, each a module of this package, and what their parsers share. Torch-free."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ssl_bench.config.constraints import PathText, checked, plain_type
from ssl_bench.config.help import describe
from ssl_bench.errors import UserError, near

COMMANDS = {
    "fit": "pretrain a backbone",
    "evaluate": "measure what pretrained backbones, or baselines, have learned",
    "benchmark": "pretrain, evaluate and rank methods x data x backbones x seeds x any option",
    "leaderboard": "put all results into one table: text, Markdown, CSV, JSON, LaTeX or a web page",
    "compare": "test which differences between methods are significant, and rank methods over protocols",
    "figures": "draw pictures of runs: reconstructions, attention, neighbours, a map, masks, views",
    "import": "turn a checkpoint of an official repository into a run folder",
    "export": "write a run's backbone as a folder that timm loads, with a model card",
    "list": "list methods, evaluations, data, backbones, recipes and benchmarks",
    "completion": "print a script that completes commands and options in your shell",
}

WIDTH = 100


def command_parser(name: str, examples: str = "") -> argparse.ArgumentParser:
    """An empty parser of one command, whose mistakes are one line.

    Args:
        name: Of the command.
        examples: Shown at the end of its help.
    """
    parser = argparse.ArgumentParser(
        f"ssl-bench {name}",
        description=f"{COMMANDS[name][0].upper()}{COMMANDS[name][1:]}.",
        epilog=f"examples:\n{examples}" if examples else None,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=32, width=WIDTH),
        allow_abbrev=False,
    )
    parser.error = refuse(parser)  # type: ignore[method-assign]
    return parser


def table_options(parser: argparse.ArgumentParser) -> None:
    """How `leaderboard` and `compare` group results into tables."""
    by = "what the budgets in a table have in common: nothing, their views (epochs x views of an image) or their epochs"
    default = "as the benchmark that made the runs, otherwise nothing"
    parser.add_argument("--by", metavar="nothing|views|epochs", help=f"{by} (default: {default})")
    branches = "networks of a run that have a row: its default one, or all, such as student and teacher"
    parser.add_argument("--branches", default="default", metavar="default|all", help=f"{branches} (default: default)")


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
