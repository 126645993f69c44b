"""The table of packages in docs/architecture.md, enforced."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
from import_graph import cycles, longest_chain, module_graph, package_graph
from paths import ROOT

OPEN = {"errors", "console", "__version__"}  # to every package


class Row(NamedTuple):
    """One package: whether its modules may load torch, which do otherwise, and what it may import (None: anything)."""

    torch: bool
    exceptions: set[str]
    imports: set[str] | None


@cache
def table() -> dict[str, Row]:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Package structure")[2]
    rows: dict[str, Row] = {}
    for package, _, torch, exceptions, imports in re.findall(
        r"^\| (\w+) \| (.*?) \| (yes|no)(?:, but(?: not)? (.*?))? \| (.*?) ?\|$", text, re.MULTILINE
    ):
        allowed = None if imports == "anything" else _names(imports)
        rows[package] = Row(torch == "yes", _names(exceptions), allowed)
    return rows


def _names(text: str) -> set[str]:
    return {name for name in re.split(r",\s*", text) if name}


def files() -> list[tuple[str, Path]]:
    """Every source file with its package."""
    own = [(p.relative_to(ROOT / "ssl_bench"), p) for p in (ROOT / "ssl_bench").rglob("*.py")]
    found = [(p.parts[0].removesuffix(".py"), path) for p, path in own if str(p) not in ("__init__.py", "__main__.py")]
    for folder in ("methods", "evaluations"):
        found += [(folder, path) for path in (ROOT / folder).glob("*.py")]
    return sorted(found)


def imported_packages(path: Path) -> set[str]:
    """Packages of ssl_bench that a file imports, wherever in it."""
    packages: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            parts = (node.module or "").split(".")
            if parts[0] == "ssl_bench":
                packages |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            packages |= {n[1] for n in names if n[0] == "ssl_bench" and len(n) > 1}
    return packages


def test_every_package_is_in_the_table_and_every_row_is_a_package() -> None:
    assert {package for package, _ in files()} == set(table())


def forbidden(package: str, path: Path) -> set[str]:
    """Packages that a file of a package imports although its row does not name them; the command line in any case."""
    allowed = table()[package].imports
    imported = imported_packages(path) - {package}
    return imported & {"cli"} if allowed is None else imported - allowed - OPEN


@pytest.mark.parametrize("package", sorted({package for package, _ in files()}))
def test_a_package_imports_only_what_the_table_allows(package: str) -> None:
    for path in (path for owner, path in files() if owner == package):
        extra = forbidden(package, path)
        assert not extra, f"{path.relative_to(ROOT)} imports {sorted(extra)}: not in its row of docs/architecture.md"


@pytest.mark.parametrize(
    ("package", "source", "extra"),
    [
        ("statistics", "from ssl_bench.records.run import read_run", {"records"}),
        ("evaluation", "def later():\n    from ssl_bench.pretraining.method import Method", {"pretraining"}),
        ("data", "import ssl_bench.models.backbone as b", {"models"}),
        ("optim", "from ssl_bench import console, methods", {"methods"}),
        ("records", "if TYPE_CHECKING:\n    from ssl_bench.cli.main import main", {"cli"}),
        ("figures", "try:\n    from ssl_bench.cli import fit\nexcept ImportError:\n    pass", {"cli"}),
        ("leaderboard", "from ssl_bench.leaderboard.table import Row\nfrom ssl_bench.errors import near", set()),
    ],
)
def test_the_table_finds_what_it_forbids(package: str, source: str, extra: set[str], tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(source)
    assert forbidden(package, file) == extra


def test_no_package_imports_one_below_it_in_the_table() -> None:
    """So that there is no cycle between packages."""
    order = list(table())
    for package, row in table().items():
        assert row.imports is None or not row.imports - set(order[: order.index(package)]), package


def test_no_module_imports_itself_in_a_circle() -> None:
    """Within a package, too."""
    modules = {_dotted(path): path for _, path in files()}
    graph = {name: {m for m in _imported_modules(path) if m in modules} - {name} for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above[above.index(name) :], name))
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "ssl_bench" else ("ssl_bench", *parts)
    return ".".join(part for part in parts if part != "__init__")


def _imported_modules(path: Path) -> set[str]:
    """Modules that a file imports at its top level, types for the checker left out."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.integration
def test_torch_free_modules_load_no_torch() -> None:
    free = []
    for package, path in files():
        row = table()[package]
        parts = set(path.relative_to(ROOT).with_suffix("").parts)
        if row.torch == bool(parts & row.exceptions) and package != "methods" and package != "evaluations":
            free.append(_dotted(path))
    assert len(free) > 50
    code = f"import importlib, sys\nfor m in {free}: importlib.import_module(m); assert 'torch' not in sys.modules, m"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


@pytest.mark.integration
def test_importing_the_package_loads_the_standard_library_only() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nimport ssl_bench\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - {'ssl_bench'}\n"
        "assert new <= set(sys.stdlib_module_names), new"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_packages_are_small_and_say_what_they_hold() -> None:
    names = {"heads", "losses", "schedules", "views"}  # of the Python API: they hold imports alone
    top = {path.stem for path in (ROOT / "ssl_bench").glob("*.py")} - {"__init__", "__main__"}
    assert names <= top and len(top - names) <= 6
    for folder in {path.parent for _, path in files()} - {ROOT / "ssl_bench"}:
        assert len(list(folder.glob("*.py"))) <= 22, folder
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
        assert doc and doc.endswith("."), folder


def test_no_module_is_named_after_nothing() -> None:
    nothing = {"utils", "util", "misc", "common", "helpers", "helper"}
    assert not [path for _, path in files() if path.stem in nothing or path.parent.name in nothing]


@pytest.mark.integration
def test_the_figures_of_the_import_graph_are_those_of_the_tree() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Before and after")[2]
    written = dict(re.findall(r"^\| (\w.*?) \| .* \| (\d+) \|$", text, re.MULTILINE))
    modules = module_graph(ROOT)
    rows = package_graph(modules)
    inside = {name.split(".")[1] for name in modules if name.count(".") > 1}
    assert written == {
        "modules at the top of `ssl_bench/`": str(len(rows.keys() - inside)),
        "rows of the table above": str(len(rows)),
        "packages, `methods` and `evaluations` included": str(len(inside)),
        "longest chain of imports between rows of the table": str(len(longest_chain(rows)) - 1),
        "longest chain of imports between modules": str(len(longest_chain(modules)) - 1),
        "cycles between modules": str(len(cycles(modules))),
    }
    assert not cycles(rows)
