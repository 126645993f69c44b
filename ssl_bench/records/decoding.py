"""JSON as typed records: a value of another type than its field is refused by name."""

import dataclasses
import functools
import json
import marshal
import math
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from ssl_bench.errors import UserError
from ssl_bench.records.files import read_regular
from ssl_bench.records.renamed import current

Record = TypeVar("Record")
Decoder: TypeAlias = Callable[[Any, str], Any]  # of a value, and of where it stands, for who reads the error
Measured: TypeAlias = Annotated[float, "may be NaN or infinite, as the loss of a run that diverged"]

MOST_BYTES = 2**24  # of a record
MOST_DEPTH = 32  # of lists and objects within each other
MOST_SHARED = 2**20  # bytes of a value that is kept to be shared
MOST_KNOWN = 4096  # such values
LARGEST_INT = 2**63 - 1
LARGEST_FLOAT = 1e100  # beyond it is damage, and products of a few such numbers would not be finite

_known: dict[tuple[Decoder, str, bytes], Any] = {}


def read_record(kind: type[Record], path: Path) -> Record:
    """A record out of its file.

    Raises:
        UserError: The file cannot be read, or is no such record.
    """
    try:
        value = json.loads(read_regular(path, MOST_BYTES))
        of: Any = kind
        return kind(**_fields(of)(current(value), ""))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError as error:
        raise UserError(f"{path} is damaged (nested too deeply): delete it and run its command again") from error
    except ValueError as error:  # of json, of the encoding, of a decoder
        raise UserError(f"{path} is damaged ({error}): delete it and run its command again") from error


@functools.cache
def _fields(kind: Any) -> Callable[[Any, str], dict[str, Any]]:
    """Decoder of the fields of a dataclass; those it does not know are left out."""
    hints = get_type_hints(kind, include_extras=True)
    missing = dataclasses.MISSING
    known = [
        (item.name, _field_decoder(hints[item.name]), item.default is missing and item.default_factory is missing)
        for item in dataclasses.fields(kind)
    ]

    def decode(value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{where.rstrip('.') or 'its content'} is {_shown(value)}")
        found = {}
        for name, decoder, required in known:
            if name in value:
                found[name] = decoder(value[name], f"{where}{name}")
            elif required:
                raise ValueError(f"{where}{name} is missing")
        return found

    return decode


def _field_decoder(kind: Any) -> Decoder:
    """Decoder of a field. What thousands of records have alike, such as their images, is decoded once and shared."""
    of = _decoder(kind)
    return of if kind in (int, str, bool) or _has_floats(kind) else functools.partial(_shared, of)


def _has_floats(kind: Any) -> bool:
    """Whether values of a type hold measured numbers, which no two records have alike."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return any(map(_has_floats, get_type_hints(kind).values()))
    return kind is float or any(map(_has_floats, get_args(kind)))


def _shared(of: Decoder, value: Any, where: str) -> Any:
    if not isinstance(value, dict | list):
        return of(value, where)
    text = marshal.dumps(value, 2)  # of version 2: the same for equal values
    key = of, where, text
    if key not in _known:
        found = of(value, where)
        if len(text) > MOST_SHARED:
            return found
        if len(_known) >= MOST_KNOWN:
            _known.clear()
        _known[key] = found
    return _known[key]


@functools.cache
def _decoder(kind: Any) -> Decoder:
    """Decoder of one type; ValueError names the key whose value does not fit."""
    if kind is Any:
        return _anything
    if kind is float:
        return _float
    if kind is Measured:
        return _measured
    if kind in (int, str, bool):
        return functools.partial(_exactly, kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return functools.partial(_record, kind)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        (of,) = (_decoder(arg) for arg in args if arg is not types.NoneType)
        return lambda value, where: None if value is None else of(value, where)
    if origin is Literal:
        return functools.partial(_one_of, args)
    if origin is dict:
        return functools.partial(_dict, _decoder(args[1]))
    if origin is list:
        return functools.partial(_list, _decoder(args[0]))
    assert origin is tuple, kind
    return functools.partial(_tuple, tuple(map(_decoder, args)))


def _record(kind: type, value: Any, where: str) -> Any:
    return kind(**_fields(kind)(value, f"{where}."))


def _exactly(kind: type, value: Any, where: str) -> Any:
    if type(value) is not kind or (isinstance(value, int) and abs(value) > LARGEST_INT):
        raise ValueError(f"{where} is {_shown(value)}")
    return value


def _measured(value: Any, where: str) -> float:
    if type(value) is float:
        return value
    if type(value) is not int or abs(value) > LARGEST_INT:
        raise ValueError(f"{where} is {_shown(value)}")
    return float(value)


def _float(value: Any, where: str) -> float:
    found = _measured(value, where)
    if not abs(found) <= LARGEST_FLOAT:
        raise ValueError(f"{where} is {_shown(value)}")
    return found


def _one_of(known: tuple[Any, ...], value: Any, where: str) -> Any:
    if value not in known:
        raise ValueError(f"{where} is {_shown(value)}")
    return value


def _dict(of: Decoder, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {_shown(value)}")
    return {key: of(item, f"{where}.{key}") for key, item in value.items()}


def _list(of: Decoder, value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{where} is {_shown(value)}")
    if of is _measured and set(map(type, value)) <= {float}:
        return value  # curves are long
    return [of(item, where) for item in value]


def _tuple(of: tuple[Decoder, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) != len(of):
        raise ValueError(f"{where} is {_shown(value)}")
    return tuple(decoder(item, where) for decoder, item in zip(of, value, strict=True))


def _anything(value: Any, where: str, depth: int = 0) -> Any:
    """Options and the like: of any type, but neither deep nor with numbers that cannot be computed with."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float):
        if isinstance(value, int) and abs(value) > LARGEST_INT or LARGEST_FLOAT < abs(value) < math.inf:
            raise ValueError(f"{where} is {_shown(value)}")
        return value
    if depth == MOST_DEPTH:
        raise ValueError(f"{where} is nested more than {MOST_DEPTH} deep")
    for item in value.values() if isinstance(value, dict) else value:
        if not isinstance(item, str):
            _anything(item, where, depth + 1)
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
