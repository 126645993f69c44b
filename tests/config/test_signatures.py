"""Options read from a constructor's text equal those of the imported class."""

import dataclasses
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from paths import ROOT

from ssl_bench.config import registry, signatures
from ssl_bench.errors import UserError

PAGES = [(kind, name) for kind in ("methods", "evaluations") for name in registry.names(kind)]


@pytest.mark.parametrize(("kind", "name"), PAGES)
def test_text_says_what_the_class_says(kind: registry.Kind, name: str) -> None:
    found = registry.find(kind, name)
    cls = registry.load(found)
    read = {f.name: (f.type, f.default_factory()) for f in dataclasses.fields(signatures.read(found))}
    hints = typing.get_type_hints(cls.__init__, include_extras=True)
    parameters = inspect.signature(cls).parameters.values()
    assert read == {p.name: (hints[p.name], p.default) for p in parameters if p.name not in signatures.GIVEN}
    assert inspect.cleandoc(signatures.read(found).__doc__ or "") == inspect.getdoc(cls)


@pytest.mark.parametrize(("kind", "name"), PAGES)
def test_every_option_is_explained(kind: registry.Kind, name: str) -> None:
    cls = signatures.read(registry.find(kind, name))
    for field in dataclasses.fields(cls):
        assert f"\n    {field.name}: " in (cls.__doc__ or ""), f"{name}: no help for {field.name}"


@pytest.mark.integration
def test_reading_loads_no_torch() -> None:
    code = (
        "import sys\nfrom ssl_bench.config import registry, signatures\n"
        "for kind in ('methods', 'evaluations'):\n"
        "    for found in registry.names(kind).values(): signatures.read(found)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> registry.Found:
    package = tmp_path / f"somebodys_{name}"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return registry.find("methods", f"somebodys_{name}.{name}.Mine")


def test_a_users_class_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doc = '"""Mine.\n\n    Args:\n        t: Heat.\n    """'
    text = f"class Mine:\n    {doc}\n    def __init__(self, t: float = 0.1): ...\n"
    found = write(tmp_path, monkeypatch, "plain", text)
    assert [(f.name, f.type, f.default_factory()) for f in dataclasses.fields(signatures.read(found))] == [
        ("t", float, 0.1)
    ]


def test_what_text_cannot_say_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "import math\nclass Base:\n    def __init__(self, backbone, t: float = math.pi): ...\nclass Mine(Base): ...\n"
    )
    found = write(tmp_path, monkeypatch, "computed", text)
    assert [f.default_factory() for f in dataclasses.fields(signatures.read(found))] == [pytest.approx(3.14159265)]


@pytest.mark.parametrize("parameter", ["t=1", "t: float"])
def test_an_option_needs_type_and_default(parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "untyped" if "=" in parameter else "required"
    found = write(tmp_path, monkeypatch, name, f"class Mine:\n    def __init__(self, backbone, {parameter}): ...\n")
    with pytest.raises(UserError, match="'t' needs a type and a default"):
        signatures.read(found)


def test_a_class_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = write(tmp_path, monkeypatch, "other", "class Mind: ...\n")
    with pytest.raises(UserError, match="has no class 'Mine'; did you mean 'Mind'"):
        signatures.read(found)
