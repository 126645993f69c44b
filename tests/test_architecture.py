"""The rooms table of docs/architecture.md, enforced."""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from paths import ROOT


@cache
def table() -> dict[str, tuple[bool, set[str] | None]]:
    """Room -> (may load torch, rooms it may import; None for any)."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Rooms")[2]
    rooms: dict[str, tuple[bool, set[str] | None]] = {}
    for room, _, torch, imports in re.findall(r"^\| (\w+) \| (.*?) \| (yes|no) \| (.*?) ?\|$", text, re.MULTILINE):
        allowed = None if imports.startswith("anything") else {name for name in re.split(r",\s*", imports) if name}
        rooms[room] = torch == "yes", allowed
    return rooms


def files() -> list[tuple[str, Path]]:
    """Every source file with its room."""
    found = [(p.relative_to(ROOT / "ssl_bench"), p) for p in (ROOT / "ssl_bench").rglob("*.py")]
    rooms = [(p.parts[0].removesuffix(".py"), path) for p, path in found if p.name not in ("__main__.py",)]
    rooms = [(room, path) for room, path in rooms if path != ROOT / "ssl_bench" / "__init__.py"]
    for folder in ("methods", "evaluations"):
        rooms += [(folder, path) for path in (ROOT / folder).glob("*.py")]
    return rooms


def imported_rooms(path: Path) -> set[str]:
    """Rooms of ssl_bench that a file imports, wherever in it."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            parts = node.module.split(".")
            if parts[0] == "ssl_bench":
                rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            rooms |= {n[1] for n in names if n[0] == "ssl_bench" and len(n) > 1}
    return rooms


def test_every_room_is_in_the_table_and_every_row_is_a_room() -> None:
    assert {room for room, _ in files()} == set(table())


@pytest.mark.parametrize(
    ("room", "path"), files(), ids=lambda v: str(v.relative_to(ROOT)) if isinstance(v, Path) else v
)
def test_imports_only_what_the_table_allows(room: str, path: Path) -> None:
    allowed = table()[room][1]
    if allowed is not None:
        extra = imported_rooms(path) - allowed - {room, "__version__"}
        assert not extra, f"{path.name} imports {sorted(extra)}: not in its row of docs/architecture.md"
    if room not in ("cli", "completion"):
        assert "cli" not in imported_rooms(path) - {room}


def test_torch_free_rooms_load_no_torch() -> None:
    rooms = [room for room, (torch, _) in table().items() if not torch]
    code = f"import sys\nfor room in {rooms}: __import__('ssl_bench.' + room)\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_importing_the_package_loads_the_standard_library_only() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nimport ssl_bench\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before} - {'ssl_bench'}\n"
        "assert new <= set(sys.stdlib_module_names), new"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_no_drawer_without_a_name() -> None:
    drawers = {"utils", "util", "misc", "common", "helpers", "helper"}
    assert not [path for _, path in files() if path.stem in drawers or path.parent.name in drawers]
