"""Folders of runs: every run with its results, and what cannot be read. Torch-free."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssl_bench.console import say, say_some
from ssl_bench.errors import UserError
from ssl_bench.records.result import Result, read_result
from ssl_bench.records.run import RunInfo, read_run


@dataclass(frozen=True)
class Run:
    """A run folder, read.

    Args:
        folder: Its path.
        info: Its record.
        results: Those that can be read.
        stems: Names of their files without the ending, by the results' ids.
    """

    folder: Path
    info: RunInfo
    results: tuple[Result, ...]
    stems: Mapping[int, str] = field(default_factory=dict, repr=False)

    def predictions_of(self, result: Result) -> Path:
        """Where the predictions of one of its results are."""
        return self.folder / "predictions" / f"{self.stems[id(result)]}.parquet"


@dataclass(frozen=True)
class Unread:
    """A record that cannot be read.

    Args:
        folder: Of its run.
        info: Of its run; None where that is what cannot be read.
        reason: Why; files are named as they are within the folder.
    """

    folder: Path
    info: RunInfo | None
    reason: str


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Run folders at or below the paths, each once, in order of name.

    Raises:
        UserError: A path is not there, or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path} is no folder: name a run folder, or a folder of runs such as the one of --runs")
        below = sorted(_runs_below(path, set()))
        if not below:
            raise UserError(f"no run in {path} (a run folder has a run.json): `ssl-bench fit` makes one")
        found.update((run.resolve(), run) for run in below)
    return list(found.values())


def load_runs(paths: Iterable[Path]) -> list[Run]:
    """The runs at or below the paths with their results."""
    return [_load(folder) for folder in find_runs(paths)]


def load_readable(paths: Iterable[Path]) -> tuple[list[Run], list[Unread]]:
    """The runs at or below the paths with those of their results that can be read, and what cannot.

    A run whose only results cannot be read is no run.

    Raises:
        UserError: As `find_runs`; or records are damaged, and without them no result is left.
    """
    runs, unread, gone = [], [], []
    for folder in find_runs(paths):
        info, found, damaged = None, {}, []
        try:
            info = read_run(folder)
        except UserError as error:
            damaged.append(str(error))
        files = _result_files(folder) if info else []
        gone += [Unread(folder, info, line) for line in _without_record(folder, files) if info]
        for path in files:
            try:
                found[path] = read_result(path)
            except UserError as error:
                damaged.append(str(error))
        if info and (found or not damaged):
            runs.append(_run(folder, info, found))
        unread += [Unread(folder, info, line.replace(f"{folder}{os.sep}", "")) for line in damaged]
    if unread and not any(run.results for run in runs):
        more = f" (and {len(unread) - 1} more)" if len(unread) > 1 else ""
        raise UserError(f"no result can be read: {unread[0].folder}: {unread[0].reason}{more}")
    return runs, [*unread, *gone]


def _without_record(folder: Path, files: Sequence[Path]) -> list[str]:
    """Predictions are written before their record: one that is not there was removed, or its evaluation killed."""
    try:
        with os.scandir(folder / "predictions") as entries:
            stems = sorted(name[: -len(".parquet")] for entry in entries if (name := entry.name).endswith(".parquet"))
    except OSError:
        return []
    known = {path.name.removesuffix(".json") for path in files}
    return [
        f"results/{stem}.json is not there, though its predictions are: evaluate the run again"
        for stem in stems
        if stem not in known and not stem.startswith(".")
    ]


def say_unread(unread: Sequence[Unread]) -> None:
    """Name damaged records on standard error: CSV and LaTeX have no place for them, and the others may be piped."""
    say_some([f"{file.folder}: {file.reason}" for file in unread], "warning: left out, of")


def _load(folder: Path) -> Run:
    return _run(folder, read_run(folder), {path: read_result(path) for path in _result_files(folder)})


def _run(folder: Path, info: RunInfo, results: Mapping[Path, Result]) -> Run:
    stems = {id(result): path.name.removesuffix(".json") for path, result in results.items()}
    return Run(folder, info, tuple(results.values()), stems)


def _result_files(folder: Path) -> list[Path]:
    """Paths of the records of results, whatever kind of file they are."""
    try:
        with os.scandir(folder / "results") as entries:
            names = sorted(entry.name for entry in entries)
    except OSError:
        return []
    return [folder / "results" / name for name in names if name.endswith(".json") and not name.startswith(".")]


def _runs_below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """Run folders in a folder; one that links lead to again is not looked into twice."""
    # Whatever run.json is: one that cannot be read, or is gone while results are there, is refused by its name.
    gone = (folder / "predictions").is_dir() and _result_files(folder)
    if os.path.lexists(folder / "run.json") or gone:
        yield folder
        return
    try:
        there = os.stat(folder)
        with os.scandir(folder) as entries:
            below = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    except OSError as error:
        say(f"warning: {folder} cannot be read ({error.strerror}), nor runs in it")
        return
    if (there.st_dev, there.st_ino) not in seen:
        seen.add((there.st_dev, there.st_ino))
        for name in below:
            yield from _runs_below(folder / name, seen)
