"""Names on the command line: a file under methods/ or evaluations/, an entry point, or a class path. Torch-free.

A file `methods/mae.py` holds one public class whose name is `mae` but for case and underscores. A plug-in registers
`name = package.module:Class` under the entry points `ssl_bench.methods` or `ssl_bench.evaluations`.

A preset is an evaluation under another name with options of its own: `configs/evaluations/labels-1pct.yaml`, or a file
of the user's, holds `evaluation: {name: labels, fraction: 0.01}`.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from ssl_bench.errors import UserError, near

Kind = Literal["methods", "evaluations"]
PlugIn = Literal["data", "operations"]  # kinds that are functions, and of which ours are no plug-ins
GROUPS: dict[PlugIn, str] = {"data": "ssl_bench.data", "operations": "ssl_bench.augment.operations"}  # entry points
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Found:
    """Where a class is, before anything of it is imported.

    Args:
        name: As the user wrote it.
        module: Dotted path of its file.
        class_name: The class in it.
        preset: File of the options that a preset changes; None for the class as it is.
    """

    name: str
    module: str
    class_name: str
    preset: Path | None = None


def folder(kind: Literal["methods", "evaluations", "configs"]) -> Path:
    """Folder of our own files: beside the package in a checkout, inside it when installed."""
    inside = PACKAGE / kind
    return inside if inside.is_dir() else PACKAGE.parent / kind


@cache
def names(kind: Kind) -> dict[str, Found]:
    """Every name of a kind, ours and plug-ins', and our presets."""
    found = {}
    for file in sorted(folder(kind).glob("*.py")):
        if not file.stem.startswith("_"):
            name = file.stem.replace("_", "-")
            found[name] = Found(name, f"ssl_bench.{kind}.{file.stem}", _class_for(file))
    for point in entry_points(group=f"ssl_bench.{kind}"):
        module, _, class_name = point.value.partition(":")
        found.setdefault(point.name, Found(point.name, module, class_name))
    if kind == "evaluations":
        for name, file in _files("evaluations"):
            found[name] = _preset(name, file, found)
    return dict(sorted(found.items()))


def find(kind: Kind, name: str) -> Found:
    """The class a user means by a name, by a class path, or by the file of a preset.

    Raises:
        UserError: Nothing has that name, or the file is no preset.
    """
    if kind == "evaluations" and name.endswith((".yaml", ".yml")):
        return _user_preset(Path(name))
    if name in names(kind):
        return names(kind)[name]
    if "/" in name or name.endswith(".py"):
        raise UserError(f"no {kind[:-1]} {name!r}: a class is named by its module, my_module.MyClass, not by its file")
    if "." in name:
        return class_at(name, kind[:-1])
    raise UserError(f"no {kind[:-1]} {name!r}{near(name, names(kind))} (ssl-bench list {kind})")


def class_at(path: str, what: str) -> Found:
    """The class `package.module.Class`; its module is not imported, packages around it are.

    Args:
        path: As the user wrote it.
        what: method, evaluation or backbone, for messages.

    Raises:
        UserError: There is no such module.
    """
    module, _, class_name = path.rpartition(".")
    if not module or not _importable(module):
        raise UserError(f"no module {module!r} for {what} {path!r}: is its folder on PYTHONPATH?")
    return Found(path, module, class_name)


@cache
def plug_ins(kind: PlugIn) -> dict[str, Found]:
    """Data sets or operations that installed packages register, by their names."""
    found = {}
    for point in entry_points(group=GROUPS[kind]):
        module, _, attribute = point.value.partition(":")
        found[point.name] = Found(point.name, module, attribute)
    return dict(sorted(found.items()))


def find_plug_in(kind: PlugIn, name: str) -> Found:
    """What a name or a class path means.

    Raises:
        UserError: Nothing.
    """
    if name in plug_ins(kind):
        return plug_ins(kind)[name]
    what = {"data": "data set", "operations": "operation"}[kind]
    if "." not in name:
        raise UserError(f"no {what} {name!r}{near(name, plug_ins(kind))}: name it as my_module.{name}, or install it")
    return class_at(name, what)


def load_object(found: Found) -> Any:
    """Import a function or a class.

    Raises:
        UserError: Its module has none of that name.
    """
    module = importlib.import_module(found.module)
    if not hasattr(module, found.class_name):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise UserError(f"{found.module} has no {found.class_name!r}{near(found.class_name, public)}")
    return getattr(module, found.class_name)


def all_evaluations() -> list[str]:
    """What `--protocols all` means: every evaluation, those of which there are presets by these alone."""
    found = names("evaluations")
    presets = {(each.module, each.class_name) for each in found.values() if each.preset}
    return [name for name, each in found.items() if each.preset or (each.module, each.class_name) not in presets]


def preset_options(found: Found) -> dict[str, Any]:
    """Option -> value of a preset's file; nothing where there is no preset."""
    from ssl_bench.config.layers import read_yaml  # with yaml, which names alone do not need

    given = read_yaml(found.preset)["evaluation"] if found.preset else {}
    return {option: value for option, value in given.items() if option != "name"}


def _user_preset(file: Path) -> Found:
    name = file.stem
    if not re.fullmatch(r"\w[\w-]*", name):  # it names results' files and a group of options
        raise UserError(f"{file}: a preset is called what its file is: letters, digits, - and _ only")
    found = _preset(name, file, names("evaluations"))
    own = names("evaluations").get(name)
    if own and (own.preset is None or own.preset.resolve() != file.resolve()):
        raise UserError(f"{file}: there is an evaluation {name} already: give the file another name")
    return found


def _preset(name: str, file: Path, known: dict[str, Found]) -> Found:
    """The evaluation that a preset's file names, under the preset's name."""
    from ssl_bench.config.layers import read_yaml  # with yaml, which names alone do not need

    tree = read_yaml(file)
    given = tree.get("evaluation")
    if set(tree) != {"evaluation"} or not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise UserError(f"{file} is no preset of an evaluation: `evaluation: {{name: labels, fraction: 0.05}}` is one")
    base = known.get(given["name"]) or find("evaluations", given["name"])
    if base.preset:
        raise UserError(f"{file}: {base.name} is a preset itself: name the evaluation")
    return replace(base, name=name, preset=file)


def load(found: Found) -> type:
    """Import the class."""
    module = importlib.import_module(found.module)
    if not hasattr(module, found.class_name):
        classes = [n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        raise UserError(f"{found.module} has no class {found.class_name!r}{near(found.class_name, classes)}")
    cls: type = getattr(module, found.class_name)
    return cls


def summary(found: Found) -> str:
    """First sentence of the module's docstring, or the first line of a preset's file."""
    if found.preset:
        return first_line(found.preset)
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
    yield from _files("methods")


def benchmarks() -> Iterator[tuple[str, Path]]:
    """Name and file of each benchmark and study in configs/."""
    for folder_name in ("benchmarks", "studies"):
        yield from _files(folder_name)


def _files(folder_name: str) -> Iterator[tuple[str, Path]]:
    for file in sorted((folder("configs") / folder_name).glob("*.yaml")):
        yield file.stem, file


def first_line(file: Path) -> str:
    """What a YAML file's first line, a comment, says of it."""
    first = file.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("#") else ""


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
