"""Every option of every command, with its type."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from ssl_bench.benchmark.runner import parse_benchmark
from ssl_bench.config import registry
from ssl_bench.config.fit_config import fit_parser
from ssl_bench.config.parser import Parser
from ssl_bench.evaluation.evaluate_config import parse_evaluate

METHODS = sorted(registry.names("methods"))


class Caught(Exception):
    """A command's parser, taken just before it would parse."""


@cache
def parser_of(command: str) -> Parser:
    """The parser of `benchmark`, of `fit` with a method, or of `evaluate` with a protocol."""
    if command in METHODS:
        return with_kept_defaults(fit_parser(command))

    def caught(self: Parser, *_: Any, **__: Any) -> Any:
        raise Caught(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Caught) as found:
        patch.setattr(Parser, "parse_args", caught)
        if command == "benchmark":
            parse_benchmark([])
        else:
            parse_evaluate(["pixels", f"--protocols={command}"], {})
    return with_kept_defaults(found.value.args[0])


def with_kept_defaults(parser: Parser) -> Parser:
    """A parser that is fast: otherwise it collects its defaults again for each of thousands of values."""
    defaults = parser.get_defaults()
    parser.get_defaults = lambda *_, **__: defaults.clone()
    return parser


def options(command: str) -> Iterator[tuple[str, Any]]:
    """Name and type of each option that has one; those that are shared, of one method and one protocol alone."""
    own = ("method.", f"{command.replace('-', '_')}.")
    for action in parser_of(command)._actions:
        annotation = getattr(action, "_typehint", None)
        if annotation is not None and (command in ("knn", "benchmark", "mae") or action.dest.startswith(own)):
            yield action.dest, annotation


COMMANDS = (*METHODS, *sorted(registry.names("evaluations")), "benchmark")


@cache
def all_options() -> list[tuple[str, str, Any]]:
    """Command, name and type of each."""
    return [(command, *option) for command in COMMANDS for option in options(command)]
