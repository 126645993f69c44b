"""The command line. Torch-free until a command needs it: help, lists, plans and the leaderboard answer at once."""

import argparse
import importlib
import keyword
import os
import sys
from collections.abc import Sequence
from functools import partial

import ssl_bench
from ssl_bench.cli.commands import COMMANDS, refuse
from ssl_bench.errors import UserError, near

EXAMPLES = """examples:
  ssl-bench list methods
  ssl-bench fit --method simclr              pretrain on embedded images; prints its run folder
  ssl-bench evaluate runs/simclr-... pixels  measure it, beside raw pixels
  ssl-bench leaderboard                      all results in one table
  ssl-bench COMMAND --help                   options and examples of a command"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; give its exit code: 0, 1 (it failed), 2 (bad input), 130 (Ctrl-C)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except UserError as error:
        print(f"ssl-bench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ssl-bench: interrupted; the same command continues where this one stopped", file=sys.stderr)
        return 130
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        print(f"ssl-bench: error: {error.filename}: {error.strerror}; choose another place", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `ssl-bench list backbones | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2


def _dispatch(argv: list[str]) -> int:
    top = argparse.ArgumentParser(
        "ssl-bench",
        description="A benchmark of self-supervised visual pretraining: pretrain, evaluate, compare.",
        epilog=EXAMPLES,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=16, width=110),
        allow_abbrev=False,
    )
    top.error = refuse(top)  # type: ignore[method-assign]
    top.add_argument("--version", action="version", version=f"ssl-bench {ssl_bench.__version__}")
    commands = top.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        commands.add_parser(name, help=help_text, add_help=False)
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UserError(f"no command {argv[0]!r}{near(argv[0], COMMANDS)} ({', '.join(COMMANDS)})")
    if not argv or argv[0] not in COMMANDS:
        top.parse_args(argv)
        top.print_help()
        return 0
    name = argv[0] + "_" * keyword.iskeyword(argv[0])
    code: int = importlib.import_module(f"ssl_bench.cli.{name}").main(argv[1:])
    return code
