"""Every option of every command is given values that it cannot have: one line, exit code 2, never a traceback."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from every_option import COMMANDS, all_options, options, parser_of

from ssl_bench.config.constraints import LocalPath, NonEmpty, Range, TwoNumbers, checked, constraints_of, plain_type
from ssl_bench.config.parser import Parser
from ssl_bench.errors import UserError

BAD = {
    int: ["nan", ".nan", "inf", "1.5", "x", "[1]", "true", "9" * 30, "-" + "9" * 30, "-99", "9" * 5000, "{a: 1}"],
    float: ["nan", ".nan", "1e400", "-.inf", "x", "[1]", "true", "9" * 500, "-1e300", "{a: 1}"],
    bool: ["2", "maybe", "[true]"],
    Literal: ["nonsense", "1e400", "[1]"],
    LocalPath: ["s3://bucket/x", "file:///x", "http://host/x", "hf://a/b", "a::b", "~nobody-of-this-name/x"],
    tuple: ["x", "{a: 1}", "[x]", "[[1]]", "1"],
    TwoNumbers: ["0.5", "5,1", "1,1", "0,nan", "0,1,2", "x,y", "0,1e400"],
}
WITHOUT_RANGE: dict[str, str] = {}  # option -> why any number will do


def kinds_of(annotation: Any) -> Iterator[Any]:
    """The alternatives of a type."""
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from kinds_of(member)
    else:
        yield annotation


def bad_values(annotation: Any) -> Iterator[str]:
    """What an option of a type cannot be."""
    if get_args(plain_type(annotation)) == (str, ...):  # names, which whatever has them looks up
        return
    kinds = [kind for kind in kinds_of(annotation) if kind is not type(None)]
    plain = {get_origin(plain_type(kind)) or plain_type(kind) for kind in kinds}
    if any(isinstance(note, LocalPath) for note in constraints_of(annotation)):
        yield from BAD[LocalPath]  # type: ignore[index]
    elif any(isinstance(note, TwoNumbers) for note in constraints_of(annotation)):
        yield from BAD[TwoNumbers]  # type: ignore[index]
    elif len(plain) == 1:
        yield from BAD.get(plain.pop(), [])
    if any(isinstance(note, NonEmpty) for note in constraints_of(annotation)):
        yield "[]"


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.integration
def test_a_value_that_an_option_cannot_have_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name, annotation in options(command):
        for value in bad_values(annotation):
            said = refusal(parser_of(command), [f"--{name}={value}"], capsys)
            assert said.count("\n") == 1 and said.startswith("ssl-bench") and f"--{name}" in said, said
            assert len(said) < 400 and "Traceback" not in said and "<class" not in said, said
        infinite = any(isinstance(note, Range) and note.infinite for note in constraints_of(annotation))
        assert not infinite or name == "partial_finetune.depths", name


def refusal(parser: Parser, tokens: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command line says."""
    try:
        parser.parse_args(tokens)
    except UserError as error:  # the command line prints it and exits with code 2
        return f"ssl-bench: error: {error}\n"
    except SystemExit as stop:
        assert stop.code == 2
        return capsys.readouterr().err
    pytest.fail(f"{tokens} is taken")


def numbers_without_range(annotation: Any, bounded: bool = False) -> bool:
    """Whether a type holds numbers of any size."""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        return numbers_without_range(inner, bounded or any(isinstance(note, Range) for note in notes))
    if annotation in (int, float):
        return not bounded
    if get_origin(annotation) in (Union, types.UnionType, tuple, list):
        return any(numbers_without_range(kind, bounded) for kind in get_args(annotation))
    return False


def test_every_number_has_a_range_and_every_default_is_in_it() -> None:
    everything = all_options()
    without = {name for _, name, annotation in everything if numbers_without_range(annotation)}
    assert without == set(WITHOUT_RANGE) | {"trainer.devices"}  # whose number is part of a pattern
    assert len(everything) > 500
    for command, name, annotation in everything:
        default = parser_of(command).get_defaults()[name]
        assert default is None or checked(annotation, default) == default, (command, name)
