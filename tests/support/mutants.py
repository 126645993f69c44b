"""Would the tests notice a careless change? `make mutants PACKAGE=data` tries some, and names those that none noticed.

A sample of small changes is drawn from the package's code with a fixed seed: a comparison or an operator exchanged, a
condition negated, a number one higher, an argument of a call or an element of a tuple left out, a statement left out.
Each is made in a copy of the checkout, where the tests of the package (`tests/PACKAGE`) then run until one fails.
What was tried stays in build/mutants/, so that the command continues where it was stopped.

Changes that alter nothing that could be noticed are listed in tests/equivalent_mutants.yaml, with the reason.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
FUNCTIONS = {"any": "all", "all": "any", "min": "max", "max": "min", "sorted": "list", "mean": "sum", "sum": "mean",
             "argmax": "argmin", "argmin": "argmax", "floor": "ceil", "ceil": "floor"}  # fmt: skip
MESSAGES = {"say", "UserError", "ValueError", "RuntimeError", "TypeError", "warn"}  # how a message reads is no logic


class Mutant(NamedTuple):
    """`old`, at this line (from 1) and column (from 0, in bytes) of a file, is replaced by `new`."""

    file: str
    line: int
    column: int
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}  {_short(self.old)}  ->  {_short(self.new)}"


def _short(code: str) -> str:
    return code if len(code) <= 100 else f"{code[:60]} ... {code[-30:]}"


def mutants_of(file: Path, root: Path = ROOT) -> list[Mutant]:
    """Every change that could be made to one source file."""
    source = file.read_bytes()
    starts = [0, *accumulate(map(len, source.splitlines(keepends=True)))]
    found = []
    for node in _logic(ast.parse(source)):
        begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
        for changed in _changes(node):
            new = changed if isinstance(changed, str) else ast.unparse(changed)
            if isinstance(changed, ast.Compare | ast.BinOp | ast.BoolOp | ast.IfExp):
                new = f"({new})"
            found.append(
                Mutant(str(file.relative_to(root)), node.lineno, node.col_offset, source[begin:end].decode(), new)
            )
    return found


def _logic(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """The statements and expressions of a module that decide what it does: no annotations, messages, f-strings."""
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(
                child, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom
            ):
                continue
            if isinstance(child, ast.Call) and _name(child.func) in MESSAGES:
                continue
            if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            if isinstance(child, ast.expr | ast.stmt):
                yield child
            yield from _logic(child)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _changes(node: ast.expr | ast.stmt) -> Iterator[ast.expr | str]:
    match node:
        case ast.Compare(left, [op], [right]):
            yield ast.Compare(left, [COMPARISONS[type(op)]()], [right])
        case ast.BinOp(left, op, right) if type(op) in OPERATORS and not _is_text(node):
            yield ast.BinOp(left, OPERATORS[type(op)](), right)
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values)
        case ast.UnaryOp(ast.Not(), operand):
            yield operand
        case ast.IfExp(test, body, orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
        case ast.Call(function, args, keywords):
            if _name(function) in FUNCTIONS:
                other = FUNCTIONS[_name(function)]
                renamed = (
                    ast.Attribute(function.value, other) if isinstance(function, ast.Attribute) else ast.Name(other)
                )
                yield ast.Call(renamed, args, keywords)
            for i, keyword in enumerate(keywords):
                if keyword.arg:
                    yield ast.Call(function, args, keywords[:i] + keywords[i + 1 :])
            for i, argument in enumerate(args):
                for shorter in _shorter(argument):
                    yield ast.Call(function, [*args[:i], shorter, *args[i + 1 :]], keywords)
        case ast.Expr(ast.Call()) | ast.AugAssign():
            yield "pass"


def _shorter(argument: ast.expr) -> Iterator[ast.expr]:
    """A tuple or list without one of its elements, such as what a seed is made from."""
    if isinstance(argument, ast.Tuple | ast.List) and len(argument.elts) > 1:
        for i in range(len(argument.elts)):
            yield type(argument)(argument.elts[:i] + argument.elts[i + 1 :], ast.Load())


def _is_text(node: ast.BinOp) -> bool:
    """Whether this joins types (`int | None`) or strings."""
    return any(isinstance(n, ast.Constant) and (n.value is None or isinstance(n.value, str)) for n in ast.walk(node))


def applied(mutant: Mutant, source: bytes) -> bytes:
    """The changed file."""
    start = sum(map(len, source.splitlines(keepends=True)[: mutant.line - 1])) + mutant.column
    end = start + len(mutant.old.encode())
    assert source[start:end] == mutant.old.encode(), f"{mutant}: the file is not what was read"
    return source[:start] + mutant.new.encode() + source[end:]


def sources(package: str, root: Path = ROOT) -> list[Path]:
    folder = root / package if package in ("methods", "evaluations") else root / "ssl_bench" / package
    return sorted(p for p in folder.rglob("*.py") if p.name != "__init__.py")


def sample(package: str, size: int, seed: int) -> list[Mutant]:
    """`size` different changes of a package, the same for the same code and seed."""
    possible = sorted({mutant for file in sources(package) for mutant in mutants_of(file)})
    return random.Random(seed).sample(possible, min(size, len(possible)))


def copy_of_checkout() -> Path:
    """The files that git knows or would add, in build/mutants/checkout."""
    copy = ROOT / "build" / "mutants" / f"checkout-{os.getpid()}"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in listed:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, copy / name)
    return copy


def tests_of(file: str) -> list[list[str]]:
    """What to run for a file: first the test file of its name, then the folder of its package."""
    path = Path(file)
    parts = path.parts[1:-1] if path.parts[0] == "ssl_bench" else path.parts[:1]
    folder = Path("tests", *parts)
    own = folder / f"test_{path.stem}.py"
    stages = [[str(own)]] if (ROOT / own).is_file() else []
    return [*stages, [str(Path("tests", parts[0] if parts else ""))]]


def fails(copy: Path, tests: list[str], limit: float) -> bool:
    """Whether a test fails, or one does not end within `limit` seconds."""
    options = ["-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", f"--timeout={limit:.0f}"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=60 * limit)
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def noticed(copy: Path, mutant: Mutant, limit: float) -> bool:
    file = copy / mutant.file
    before = file.read_bytes()
    file.write_bytes(applied(mutant, before))
    try:
        return any(fails(copy, tests, limit) for tests in tests_of(mutant.file))
    finally:
        file.write_bytes(before)


def equivalent() -> dict[str, str]:
    """The listed changes that nothing could notice, as text, with the reason."""
    return yaml.safe_load((ROOT / "tests" / "equivalent_mutants.yaml").read_text(encoding="utf-8")) or {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("package", help="a folder of ssl_bench/, or methods, or evaluations")
    parser.add_argument("--sample", type=int, default=40, help="how many changes (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=120, help="seconds for one test (default: 120)")
    chosen = parser.parse_args()
    if not sources(chosen.package):
        parser.error(f"no package {chosen.package!r}")
    journal = ROOT / "build" / "mutants" / f"{chosen.package}.jsonl"
    journal.parent.mkdir(parents=True, exist_ok=True)
    known = {}
    if journal.is_file():
        known = {tuple(r["mutant"]): r["noticed"] for r in map(json.loads, journal.read_text().splitlines())}
    copy, excused, survivors, tried, begun = copy_of_checkout(), equivalent(), [], 0, time.monotonic()
    try:
        mutants = sample(chosen.package, chosen.sample, chosen.seed)
        if not all(tuple(m) in known for m in mutants):
            assert not fails(copy, [str(Path("tests", chosen.package))], chosen.limit), "tests fail without any change"
        for n, mutant in enumerate(mutants, 1):
            if _key(mutant) in excused:
                continue
            if tuple(mutant) not in known:
                known[tuple(mutant)] = noticed(copy, mutant, chosen.limit)
                with journal.open("a") as file:
                    file.write(json.dumps({"mutant": mutant, "noticed": known[tuple(mutant)]}) + "\n")
            tried += 1
            if not known[tuple(mutant)]:
                survivors.append(mutant)
                print(f"not noticed: {mutant}", flush=True)
            print(f"{n}/{len(mutants)}, {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(copy, ignore_errors=True)
    noticed_share = (tried - len(survivors)) / max(tried, 1)
    print(f"{chosen.package}: {tried - len(survivors)} of {tried} noticed ({noticed_share:.0%}), seed {chosen.seed}")
    return noticed_share < 0.95


def _key(mutant: Mutant) -> str:
    """A change without its place in the file, which other edits move."""
    return f"{mutant.file}: {mutant.old} -> {mutant.new}"


if __name__ == "__main__":
    sys.exit(main())
