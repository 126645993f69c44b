"""The options of a method or evaluation, read from its constructor without importing its file.

A method's module imports torch, which takes seconds; its typed signature and docstring are text. They are read with
`ast` and become a dataclass that the parser understands. A signature that text alone cannot explain (a computed
default, an annotation from a package that must be imported) is read from the imported class instead.
"""

import ast
import dataclasses
import inspect
import typing
from collections.abc import Iterator
from typing import Any

from ssl_bench.config import constraints, options, registry
from ssl_bench.errors import UserError

# What the framework hands to a constructor; not options.
GIVEN = ("self", "backbone", "classes", "image_size", "statistics")
# Options of ours that any network has, whatever its constructor takes.
NETWORK = ("name", "img_size", "weights")


def takes(found: registry.Found, parameter: str) -> bool:
    """Whether a constructor has this parameter; one that trains a tokenizer takes no backbone."""
    source = registry.source_of(found.module)
    init = _init(ast.parse(source.read_text(encoding="utf-8")), found.class_name) if source is not None else None
    if init is not None:
        return parameter in {arg.arg for arg in (*init.args.args, *init.args.kwonlyargs)}
    return parameter in inspect.signature(registry.load(found)).parameters


class _Unreadable(Exception):
    """Text does not say."""


def read(found: registry.Found) -> type:
    """A dataclass with one field per option: name, type, default and help.

    Args:
        found: The class.

    Raises:
        UserError: A parameter has no type or no default, which leaves the command line nothing to offer.
    """
    parameters, doc = _parameters(found)
    fields: list[Any] = []
    for name, annotation, default in parameters:
        if name in GIVEN:
            continue
        if annotation is inspect.Parameter.empty or default is inspect.Parameter.empty:
            raise UserError(f"{found.module}.{found.class_name}: parameter {name!r} needs a type and a default")
        fields.append((name, annotation, dataclasses.field(default_factory=lambda value=default: value)))  # type: ignore[misc]
    cls = dataclasses.make_dataclass(found.class_name, fields, frozen=True)
    cls.__doc__ = doc
    return cls


def read_network(found: registry.Found) -> type:
    """Options of a run whose backbone is a class of the user's: ours that fit any network, and its constructor's.

    A parameter without a type has that of its default; `*args` and `**kwargs` are no options.

    Raises:
        UserError: A parameter has no default.
    """
    cls = registry.load(found)
    hints = typing.get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    own: list[Any] = []
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in NETWORK:
            continue
        default = parameter.default
        if default is parameter.empty:
            raise UserError(f"{found.module}.{found.class_name}: parameter {name!r} needs a default")
        annotation = hints.get(name, Any if default is None else type(default))
        own.append((name, annotation, dataclasses.field(default_factory=lambda value=default: value)))  # type: ignore[misc]
    ours = [
        (each.name, typing.get_type_hints(options.BackboneOptions, include_extras=True)[each.name], each.default)
        for each in dataclasses.fields(options.BackboneOptions)
        if each.name in NETWORK
    ]
    made = dataclasses.make_dataclass(found.class_name, [*ours, *own], frozen=True)
    made.__doc__ = inspect.getdoc(cls) or ""
    return made


def _parameters(found: registry.Found) -> tuple[list[tuple[str, Any, Any]], str]:
    """Name, type and default of each parameter of a constructor, and the docstring of its class."""
    source = registry.source_of(found.module)
    try:
        if source is None:
            raise _Unreadable
        return _from_text(ast.parse(source.read_text(encoding="utf-8")), found.class_name)
    except _Unreadable:
        return _from_class(registry.load(found))


def _from_class(cls: type) -> tuple[list[tuple[str, Any, Any]], str]:
    hints = typing.get_type_hints(cls.__init__, include_extras=True)  # type: ignore[misc]
    signature = inspect.signature(cls)
    read = [(p.name, hints.get(p.name, p.empty), p.default) for p in signature.parameters.values()]
    return read, inspect.getdoc(cls) or ""


def _from_text(tree: ast.Module, class_name: str) -> tuple[list[tuple[str, Any, Any]], str]:
    cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), None)
    init = _init(tree, class_name)
    if cls is None or init is None or init.args.vararg or init.args.kwarg or init.args.posonlyargs:
        raise _Unreadable
    names = dict(_names(tree))
    args = init.args
    defaults: list[ast.expr | None] = [*[None] * (len(args.args) - len(args.defaults)), *args.defaults]
    read = []
    for arg, default in zip([*args.args, *args.kwonlyargs], [*defaults, *args.kw_defaults], strict=True):
        if arg.arg in GIVEN:
            continue
        empty = inspect.Parameter.empty
        annotation = _value(arg.annotation, names) if arg.annotation else empty
        read.append((arg.arg, annotation, _value(default, names) if default is not None else empty))
    return read, ast.get_docstring(cls) or ""


def _init(tree: ast.Module, class_name: str) -> ast.FunctionDef | None:
    """The constructor that a class itself has in this text."""
    body = next((n.body for n in tree.body if isinstance(n, ast.ClassDef) and n.name == class_name), [])
    return next((n for n in body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)


def _names(tree: ast.Module) -> Iterator[tuple[str, Any]]:
    """Names that a signature may use: from typing and our options, and constants of the module itself."""
    known: dict[str, Any] = {
        "typing": typing,
        "collections.abc": typing,
        "ssl_bench.config.constraints": constraints,
        "ssl_bench.config.options": options,
    }
    so_far: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                if hasattr(known[node.module], alias.name):
                    so_far[alias.asname or alias.name] = getattr(known[node.module], alias.name)
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                so_far[node.targets[0].id] = _value(node.value, so_far)
            except _Unreadable:
                continue
    yield from so_far.items()


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """Value of an expression that uses builtin types and the given names alone."""
    builtin = {t.__name__: t for t in (int, float, str, bool, tuple, list, dict)}
    try:
        code = compile(ast.Expression(node), "<signature>", "eval")
        return eval(code, {"__builtins__": {}}, builtin | names)
    except Exception as error:
        raise _Unreadable from error
