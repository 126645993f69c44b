"""`ssl-bench list`. Torch-free."""

from collections.abc import Iterator

from ssl_bench.cli.commands import command_parser
from ssl_bench.config import registry
from ssl_bench.config.method_facts import FAMILIES, method_facts
from ssl_bench.config.method_facts import KINDS as METHOD_KINDS
from ssl_bench.config.suites import suites
from ssl_bench.errors import UserError, near
from ssl_bench.models.architectures import TINY, timm_names

KINDS = ("methods", "evaluations", "data", "backbones", "recipes", "benchmarks", "suites")
MOST_NAMES = 12  # of a kind on one line
FAMILIES_WIDTH = len(", ".join(FAMILIES))
MEANT = {  # what people call the kinds -> what they are called here
    **dict.fromkeys(("models", "model", "networks", "architectures"), "backbones"),
    **dict.fromkeys(("protocols", "protocol", "probes"), "evaluations"),
    **dict.fromkeys(("datasets", "dataset", "images"), "data"),
    **dict.fromkeys(("configs", "presets"), "recipes"),
    **dict.fromkeys(("studies",), "benchmarks"),
}


def listing(kind: str) -> Iterator[str]:
    """A line per thing of a kind, aligned."""
    rows = list(_rows(kind))
    width = max((len(name) for name, _ in rows), default=0)
    for name, what in rows:
        yield f"{name:<{width}}  {what}".rstrip()


def methods_by_kind() -> Iterator[str]:
    """The same of methods, a block per kind, with the year of the paper and the families of networks."""
    found = registry.names("methods")
    facts = {name: method_facts(where) for name, where in found.items()}
    width = max(map(len, found), default=0)
    for kind in METHOD_KINDS:
        named = sorted(
            (name for name in found if facts[name].kind == kind), key=lambda name: (facts[name].year or 0, name)
        )
        if named:
            yield f"{kind}:"
        for name in named:
            families = f"{', '.join(facts[name].families):<{FAMILIES_WIDTH}}"
            yield f"  {name:<{width}}  {facts[name].year or '':<4}  {families}  {registry.summary(found[name])}"


def _rows(kind: str) -> Iterator[tuple[str, str]]:
    if kind in ("methods", "evaluations"):
        for name, found in registry.names(kind).items():  # type: ignore[arg-type]
            yield name, registry.summary(found)
    elif kind == "data":
        from ssl_bench.data import catalogue

        for name in catalogue.names():
            entry = catalogue.entry_of(name)
            yield name, entry.description if entry else ""
    elif kind == "backbones":
        for name, (_, _, what) in TINY.items():
            yield name, what
        for family, names in timm_names().items():
            for name in names:
                yield name, f"timm {family}"
    elif kind == "suites":
        for name, file in suites().items():
            yield name, registry.first_line(file)
    else:
        for name, file in registry.recipes() if kind == "recipes" else registry.benchmarks():
            yield name, registry.first_line(file)


def main(argv: list[str]) -> int:
    parser = command_parser("list", "  ssl-bench list methods\n  ssl-bench list backbones | grep swin")
    parser.add_argument("kind", nargs="?", metavar="KIND", help=f"{', '.join(KINDS)}; all of them when not given")
    kind = parser.parse_args(argv).kind
    if kind is None:
        for each in KINDS:
            names = [line.split()[0] for line in listing(each)]
            shown = ", ".join(names) if len(names) <= MOST_NAMES else f"{', '.join(names[:MOST_NAMES])}, ..."
            print(f"{each} ({len(names)}, `ssl-bench list {each}` explains them): {shown}")
        return 0
    if kind not in KINDS:
        hint = f"; did you mean {MEANT[kind]!r}?" if kind in MEANT else near(kind, KINDS)
        raise UserError(f"nothing called {kind!r}{hint} ({', '.join(KINDS)})")
    for line in methods_by_kind() if kind == "methods" else listing(kind):
        print(line)
    return 0
