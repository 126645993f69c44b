"""The import graph of a checkout in figures: `python tests/support/import_graph.py [CHECKOUT]`.

Imports inside functions and imports for the type checker count. The length of a chain is its number of imports:
A -> B -> C has two.
"""

import ast
import sys
from collections import defaultdict
from functools import cache
from pathlib import Path

Graph = dict[str, set[str]]


def module_paths(root: Path) -> dict[str, Path]:
    """Every module of a checkout by its dotted name, except `__main__` and any `__init__` of one statement."""
    found = {}
    for folder in ("ssl_bench", "methods", "evaluations"):
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            parts = parts if folder == "ssl_bench" else ("ssl_bench", *parts)
            if parts[-1] == "__init__":
                parts = parts[:-1]
                if len(ast.parse(path.read_text(encoding="utf-8")).body) < 2:
                    continue
            if len(parts) > 1 and parts[-1] != "__main__":
                found[".".join(parts)] = path
    return found


def module_graph(root: Path) -> Graph:
    """Which modules each module imports."""
    paths = module_paths(root)
    graph: Graph = {}
    for name, path in paths.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= (inner & paths.keys()) or ({node.module} & paths.keys())
            elif isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names} & paths.keys()
        graph[name] = imported - {name}
    return graph


def package_graph(modules: Graph) -> Graph:
    """Which packages (or modules at the top) each of them imports."""
    graph: defaultdict[str, set[str]] = defaultdict(set)
    for name, imported in modules.items():
        package = name.split(".")[1]
        graph[package] |= {other.split(".")[1] for other in imported} - {package}
    return dict(graph)


def cycles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that reach one another."""
    reached = {node: _reached(graph, node) for node in graph}
    groups = {frozenset({node, *(m for m in reached[node] if node in reached[m])}) for node in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def _reached(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    rest = [start]
    while rest:
        for other in graph[rest.pop()] - seen:
            seen.add(other)
            rest.append(other)
    return seen


def longest_chain(graph: Graph) -> list[str]:
    """Nodes of a longest path; what imports itself in a circle counts as one node."""
    one = {node: group[0] for group in cycles(graph) for node in group}
    joined: defaultdict[str, set[str]] = defaultdict(set)
    for name, imported in graph.items():
        joined[one.get(name, name)] |= {one.get(other, other) for other in imported} - {one.get(name, name)}

    @cache
    def chain(node: str) -> tuple[str, ...]:
        return (node, *max((chain(other) for other in sorted(joined[node])), key=len, default=()))

    return list(max(map(chain, sorted(joined)), key=len))


def main(root: Path) -> None:
    modules = module_graph(root)
    packages = package_graph(modules)
    held: defaultdict[str, int] = defaultdict(int)
    for name in modules:
        held[name.split(".")[1]] += len(name.split(".")) > 2
    print(f"{len(modules)} modules, {sum(map(len, modules.values()))} imports between them")
    print(f"{sum(not n for n in held.values())} at the top, {sum(n > 0 for n in held.values())} packages:")
    print("  " + ", ".join(f"{package} {count}" for package, count in sorted(held.items()) if count))
    for kind, graph in (("modules", modules), ("packages", packages)):
        found, chain = cycles(graph), longest_chain(graph)
        print(f"{len(found)} cycles between {kind}", *found)
        print(f"longest chain between {kind}: {len(chain) - 1}: {' -> '.join(chain)}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]))
