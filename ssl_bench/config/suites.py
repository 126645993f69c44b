"""Suites: protocols on several data sets by one name, from `configs/suites/*.yaml` or a file of the user's. Torch-free.

A file holds `data: [cifar100, dtd]` and `protocols: [knn, logistic]`, nothing else. `evaluate RUN... --suite NAME` is
one `evaluate` after another, each with `--data.name` and, unless they are given, `--protocols`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_bench.config import registry
from ssl_bench.config.layers import checked_path, flag_value, read_yaml, split_argv
from ssl_bench.errors import UserError, near


@dataclass(frozen=True)
class Suite:
    """What is measured.

    Args:
        name: Of the suite.
        data: Names of data sets.
        protocols: Names of evaluations.
    """

    name: str
    data: tuple[str, ...]
    protocols: tuple[str, ...]


def suites() -> dict[str, Path]:
    """Name -> file of the suites that come with the package."""
    return {file.stem: file for file in sorted((registry.folder("configs") / "suites").glob("*.yaml"))}


def find_suite(name: str) -> Suite:
    """The suite of a name, or in a file.

    Raises:
        UserError: There is none, or it holds something else than data and protocols.
    """
    ours = suites()
    if name not in ours and not name.endswith((".yaml", ".yml")):
        raise UserError(f"no suite {name!r}{near(name, ours)} (ssl-bench list suites)")
    file = ours[name] if name in ours else Path(checked_path(name, "--suite"))
    content = read_yaml(file)
    odd = sorted(set(content) - {"data", "protocols"})
    if odd:
        raise UserError(f"{file}: {odd[0]!r}{near(odd[0], ('data', 'protocols'))} is no part of a suite")
    parts = []
    for part in ("data", "protocols"):
        names = content.get(part)
        if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
            example = "dtd" if part == "data" else "knn"
            raise UserError(f"{file}: {part} is a list of names, such as {part}: [{example}]")
        parts.append(tuple(names))
    return Suite(file.stem, *parts)


def expanded(argv: Sequence[str]) -> list[list[str]]:
    """The command lines that an `evaluate` with `--suite` stands for; itself without one.

    Raises:
        UserError: There is no such suite, or data are named beside it.
    """
    name = flag_value(argv, "--suite")
    if name is None or {"-h", "--help", "--help-all"} & set(argv):
        return [list(argv)]
    if "data.name" in split_argv(argv)[1]:
        raise UserError("--suite names the data sets: leave out --data, or --suite")
    suite = find_suite(name)
    rest, queue = [], list(argv)
    while queue:
        token = queue.pop(0)
        if token == "--suite":
            queue.pop(0)
        elif not token.startswith("--suite="):
            rest.append(token)
    if flag_value(rest, "--protocols") is None:
        rest += ["--protocols", ",".join(suite.protocols)]
    return [[*rest, "--data.name", data] for data in suite.data]
