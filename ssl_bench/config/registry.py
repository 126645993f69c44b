"""Names on the command line: a file under methods/ or evaluations/, an entry point, or a class path. Torch-free.

A file `methods/mae.py` holds one public class whose name is `mae` but for case and underscores. A plug-in registers
`name = package.module:Class` under the entry points `ssl_bench.methods` or `ssl_bench.evaluations`.
"""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

from ssl_bench.errors import UserError, near

Kind = Literal["methods", "evaluations"]
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Found:
    """Where a class is, before anything of it is imported.

    Args:
        name: As the user wrote it.
        module: Dotted path of its file.
        class_name: The class in it.
    """

    name: str
    module: str
    class_name: str


def folder(kind: Literal["methods", "evaluations", "configs"]) -> Path:
    """Folder of our own pages: beside the package in a checkout, inside it when installed."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


@cache
def names(kind: Kind) -> dict[str, Found]:
    """Every name of a kind, ours and plug-ins'."""
    found = {}
    for file in sorted(folder(kind).glob("*.py")):
        if not file.stem.startswith("_"):
            name = file.stem.replace("_", "-")
            found[name] = Found(name, f"ssl_bench.{kind}.{file.stem}", _class_for(file))
    for point in entry_points(group=f"ssl_bench.{kind}"):
        module, _, class_name = point.value.partition(":")
        found.setdefault(point.name, Found(point.name, module, class_name))
    return found


def find(kind: Kind, name: str) -> Found:
    """The class a user means by a name or by a class path.

    Raises:
        UserError: Nothing has that name.
    """
    if name in names(kind):
        return names(kind)[name]
    if "/" in name or name.endswith(".py"):
        raise UserError(f"no {kind[:-1]} {name!r}: a class is named by its module, my_module.MyClass, not by its file")
    module, _, class_name = name.rpartition(".")
    if module and _importable(module):
        return Found(name, module, class_name)
    if module:
        raise UserError(f"no module {module!r} for {kind[:-1]} {name!r}: is its folder on PYTHONPATH?")
    raise UserError(f"no {kind[:-1]} {name!r}{near(name, names(kind))} (ssl-bench list {kind})")


def load(found: Found) -> type:
    """Import the class."""
    module = importlib.import_module(found.module)
    if not hasattr(module, found.class_name):
        classes = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise UserError(f"{found.module} has no class {found.class_name!r}{near(found.class_name, classes)}")
    cls: type = getattr(module, found.class_name)
    return cls


def summary(found: Found) -> str:
    """First sentence of the page's docstring."""
    source = source_of(found.module)
    doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) if source else None
    return (doc or "").partition("\n\n")[0].replace("\n", " ")


def source_of(module: str) -> Path | None:
    """A module's source file, found without importing the module itself."""
    package, _, stem = module.rpartition(".")
    if package in ("ssl_bench.methods", "ssl_bench.evaluations"):
        return folder(package.partition(".")[2]) / f"{stem}.py"  # type: ignore[arg-type]
    spec = importlib.util.find_spec(module)
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def recipes() -> Iterator[tuple[str, Path]]:
    """Name and file of each recipe in configs/methods/: `mae` as published, `mae-cifar10` for those images."""
    for file in sorted((folder("configs") / "methods").glob("*.yaml")):
        yield file.stem, file


def benchmarks() -> Iterator[tuple[str, Path]]:
    """Name and file of each benchmark and study in configs/."""
    for place in ("benchmarks", "studies"):
        for file in sorted((folder("configs") / place).glob("*.yaml")):
            yield file.stem, file


def _class_for(file: Path) -> str:
    wanted = file.stem.replace("_", "")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    return next((name for name in classes if name.lower() == wanted), classes[0] if classes else file.stem)


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # no such package; no name of a module
        return False
