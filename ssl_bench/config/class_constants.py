"""A constant of a class, read from its text: importing a method or an evaluation would take seconds. Torch-free."""

import ast
from functools import cache
from typing import Any

from ssl_bench.config import registry


@cache
def class_constant(found: registry.Found, name: str, default: Any) -> Any:
    """A constant of a class or of one that it is made from; the default where neither has it.

    Args:
        found: Where the class is.
        name: Of the constant, a literal.
        default: Hashable.
    """
    source = registry.source_of(found.module)
    if source is None:
        return getattr(registry.load(found), name, default)
    tree = ast.parse(source.read_text(encoding="utf-8"))
    cls = next((n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == found.class_name), None)
    for node in cls.body if cls else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return ast.literal_eval(node.value) if node.value else default
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    imported = {a.asname or a.name: n.module for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names}
    for given in cls.bases if cls else ():
        base = given.value if isinstance(given, ast.Subscript) else given  # `Evaluation[Head]`
        module = imported.get(base.id) if isinstance(base, ast.Name) else None
        if isinstance(base, ast.Name) and module and module.startswith("ssl_bench"):
            value = class_constant(registry.Found(found.name, module, base.id), name, None)
            if value is not None:
                return value
    return default
