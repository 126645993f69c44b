"""JSON as typed records: a value of another type than its field is refused by name."""

import dataclasses
import functools
import json
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ssl_bench.errors import UserError
from ssl_bench.records.renamed import current

Record = TypeVar("Record")


def read_record(kind: type[Record], path: Path) -> Record:
    """A record out of its file.

    Raises:
        UserError: The file cannot be read, or is no such record.
    """
    try:
        value = current(json.loads(path.read_text(encoding="utf-8")))
        return kind(**_decode_fields(kind, value, ""))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:  # of json, of the encoding, of _decode
        raise UserError(f"{path} is damaged ({error}): delete it and run its command again") from error


@functools.cache
def _fields(kind: type) -> list[tuple[str, Any, bool]]:
    hints = get_type_hints(kind)
    missing = dataclasses.MISSING
    return [
        (item.name, hints[item.name], item.default is missing and item.default_factory is missing)
        for item in dataclasses.fields(kind)
    ]


def _decode_fields(kind: type, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where.rstrip('.') or 'its content'} is {_shown(value)}")
    known = {}
    for name, hint, required in _fields(kind):
        if name in value:
            known[name] = _decode(hint, value[name], f"{where}{name}")
        elif required:
            raise ValueError(f"{where}{name} is missing")
    return known


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Value of JSON as a type of the records above; ValueError names the key that does not fit."""
    if kind is Any:
        return value
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return kind(**_decode_fields(kind, value, f"{where}."))
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        kinds = [arg for arg in args if arg is not types.NoneType]
        return None if value is None else _decode(kinds[0], value, where)
    if origin is Literal and value in args:
        return value
    if origin is dict and isinstance(value, dict):
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_decode(args[0], item, where) for item in value]
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        return tuple(_decode(arg, item, where) for arg, item in zip(args, value, strict=True))
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {_shown(value)}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
