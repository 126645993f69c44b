"""From run folders to a table.

Runs stand in one block only when their numbers may be compared: same images and same architecture; if asked for, the
same budget of pretraining. Baselines have no budget and stand in every block of their images.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

from ssl_bench.leaderboard.grouping import (
    architecture_of,
    bracketed,
    budget_of,
    budget_text,
    column_key,
    column_options,
    is_oracle,
    key_of,
    row_key,
    row_names,
    set_options,
    tell_apart,
)
from ssl_bench.leaderboard.table import DEFAULT_BY, Absent, Block, Branches, By, Cell, Column, Images, Key, Row, Table
from ssl_bench.records.result import Result
from ssl_bench.records.store import Run, Unread
from ssl_bench.statistics.intervals import LEVEL, mean_over_seeds


def build(
    runs: Sequence[Run], by: By = DEFAULT_BY, unread: Sequence[Unread] = (), branches: Branches = "default"
) -> Table:
    """The leaderboard of some runs.

    Args:
        runs: Run folders, read.
        by: Budget that the rows of a block share: `nothing`, one block for each data set and backbone, with the budget
            as a column; `views`, the epochs times the views of an image in each (effective epochs), so that a method
            that looks at ten crops is not ranked against one that looks once; or `epochs`.
        unread: Files that cannot be read: they are listed.
        branches: Networks of a run that have a row: the `default` one, or `all`, such as student and teacher.
    """
    absent = [_absent(run) for run in runs if run.info.status != "finished" or not _values(run)]
    absent += [_unread(file) for file in unread]
    runs = [part for run in runs for part in _by_branch(run, branches)]
    runs, notes = _one_per_seed([run for run in runs if run.info.status == "finished" and run.results])
    notes += [_origin(run) for run in runs if run.info.kind == "imported"]
    baselines = [run for run in runs if run.info.kind == "baseline"]
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.info.kind != "baseline":
            groups[key_of(run.info.data.identity, architecture_of(run), budget_of(run, by))].append(run)
    blocks: list[Block] = []
    taken: set[int] = set()
    for group in groups.values():
        beside = _beside(group, baselines)
        taken.update(id(run) for run in beside)
        blocks.append(_block(group, beside, by))
    blocks += _of_baselines([run for run in baselines if id(run) not in taken], by)
    blocks.sort(key=lambda block: (block.data, block.fingerprint, block.backbone, block.budget or 0.0))
    return Table(tuple(blocks), tuple(sorted(absent, key=lambda run: run.run)), tuple(notes))


def _by_branch(run: Run, branches: Branches) -> list[Run]:
    """A run with the results of its default branch; or one for each of its networks that was evaluated."""
    found: dict[str, list[Result]] = {}
    for result in _values(run):
        found.setdefault(result.branch, []).append(result)
    if branches == "default" and len(found) > 1:
        default = run.info.branch if run.info.branch in found else max(found, key=lambda name: len(found[name]))
        found = {default: found[default]}
    return [replace(run, results=tuple(results)) for results in found.values()]


def _values(run: Run) -> list[Result]:
    return [result for result in run.results if result.value is not None]


def _absent(run: Run) -> Absent:
    done = "not evaluated" if not run.results else "no accuracy: evaluated by diagnostics alone"
    done = "a tokenizer" if run.info.kind == "tokenizer" else done
    reason = run.info.error or (done if run.info.status == "finished" else "")
    return Absent(run.folder.name, run.info.method, run.info.seed, run.info.status, reason)


def _unread(file: Unread) -> Absent:
    info = file.info
    return Absent(file.folder.name, info.method if info else "-", info.seed if info else None, "damaged", file.reason)


def _origin(run: Run) -> str:
    origin = run.info.options.get("imported", {})
    if origin.get("format") == "module":
        return f"{run.folder.name} is a {origin.get('file')}, a module that was evaluated in memory"
    file = f"{origin.get('file', 'a checkpoint')} ({origin.get('format', '')}, {origin.get('kind', '')})"
    return f"{run.folder.name} was imported from {file}: others pretrained it, on {run.info.data.title} images"


def _one_per_seed(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """A seed counts once: of two runs that differ in nothing, the later."""
    latest: dict[str, Run] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (run.info.created, run.folder.name)):
        info = run.info
        key = key_of(info.data.identity, architecture_of(run), row_key(run), info.epochs, info.seed)
        if key in latest:
            notes.append(f"{latest[key].folder.name} counts once, as {run.folder.name}: same configuration and seed")
        latest[key] = run
    return list(latest.values()), notes


def _beside(runs: Sequence[Run], baselines: Iterable[Run]) -> list[Run]:
    """Baselines of the same architecture, or of none, with a result on images of these runs."""
    images = {run.info.data.identity for run in runs} | {result.data.identity for run in runs for result in run.results}
    architecture = architecture_of(runs[0])
    return [
        run
        for run in baselines
        if architecture_of(run) in (None, architecture)
        and any(result.data.identity in images for result in run.results)
    ]


def _of_baselines(runs: list[Run], by: By) -> list[Block]:
    """Blocks for baselines beside which nothing was pretrained."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.info.backbone is not None:
            groups[key_of(run.info.data.identity, architecture_of(run))].append(run)
    others = [run for run in runs if run.info.backbone is None]  # raw pixels, k-means
    alone: dict[str, list[Run]] = defaultdict(list)
    for run in others:
        if not any(_beside(group, [run]) for group in groups.values()):
            alone[key_of(run.info.data.identity)].append(run)
    blocks = [_block([], group + _beside(group, others), by) for group in groups.values()]
    return blocks + [_block([], group, by) for group in alone.values()]


def _block(runs: list[Run], baselines: list[Run], by: By) -> Block:
    first = (runs or baselines)[0]
    images, backbone = first.info.data.identity, first.info.backbone
    keys = _column_keys([*runs, *baselines])
    columns = _columns(runs, baselines, images, keys)
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in [*runs, *baselines]:
        groups[key_of(row_key(run), budget_of(run, "views"))].append(run)
    names = row_names([group[0] for group in groups.values()])
    rows = [_row(name, group, list(columns), keys) for name, group in zip(names, groups.values(), strict=True)]
    shown = tuple(columns.values())
    budgets = {budget_of(run, "epochs" if by == "epochs" else "views") for run in runs}
    ranked = not runs or by == "nothing" or None not in budgets
    rows.sort(key=lambda row: _rank(row, shown, ranked))
    return Block(
        data=images[0],
        fingerprint=images[1],
        backbone=backbone.name + bracketed(set_options(backbone.args)) if backbone else "",
        params=backbone.params if backbone else 0,
        gflops_per_image=backbone.gflops_per_image if backbone else 0.0,
        tokens=backbone.tokens if backbone else 0,
        budget=next(iter(budgets)) if len(budgets) == 1 else None,
        budget_text=budget_text(budgets, by),
        columns=shown,
        rows=_best_marked(rows, shown) if ranked else tuple(rows),
        ranked=ranked,
        matched=len(budgets) < 2 and None not in budgets,
    )


def _column_keys(runs: Iterable[Run]) -> dict[int, Key]:
    """By its id, what each result shares with others of its column; made once where their records are the same."""
    known: dict[tuple[object, ...], Key] = {}
    found = {}
    for result in (result for run in runs for result in run.results):
        parts = (result.options, result.geometry, result.splits, result.data, result.selected)
        same = (result.protocol, result.version, result.primary, *map(id, parts))
        if same not in known:
            known[same] = column_key(result)
        found[id(result)] = known[same]
    return found


def _columns(runs: list[Run], baselines: list[Run], images: Images, keys: Mapping[int, Key]) -> dict[Key, Column]:
    """All that the runs were evaluated by, and what the baselines were on the block's own images."""
    results = [result for run in runs for result in run.results]
    own = [run for run in baselines if run.info.backbone is not None] or ([] if runs else baselines)
    results += [result for run in own for result in run.results if not runs or result.data.identity == images]
    found = {keys[id(result)]: result for result in results}
    titles = [_column_title(result, images) for result in found.values()]
    names = tell_apart(titles, [{**column_options(r), "variant": r.primary} for r in found.values()])
    columns = [Column(name, r.primary, is_oracle(r)) for name, r in zip(names, found.values(), strict=True)]
    return dict(sorted(zip(found, columns, strict=True), key=lambda item: (item[1].oracle, item[1].title)))


def _column_title(result: Result, images: Images) -> str:
    title, short = result.data.identity
    oracle = " oracle" if is_oracle(result) else ""
    if (title, short) == images:
        return result.protocol + oracle
    return f"{result.protocol}@{title if title != images[0] else f'{title}:{short}'}{oracle}"


def _row(name: str, runs: list[Run], columns: list[Key], keys: Mapping[int, Key]) -> Row:
    runs = sorted(runs, key=lambda run: run.info.seed)
    info = runs[0].info
    return Row(
        name=name,
        kind=info.kind,
        seeds=tuple(sorted({run.info.seed for run in runs})),
        epochs=info.epochs if info.kind != "baseline" else None,
        views_per_image=info.views_per_image,
        seconds=sum(run.info.cost.seconds for run in runs) / len(runs),
        flops=sum(run.info.cost.flops for run in runs) / len(runs),
        device=info.cost.device,
        cells=_cells(runs, columns, keys),
        runs=tuple(run.folder.name for run in runs),
        members=tuple(runs),
    )


def _cells(runs: list[Run], columns: list[Key], keys: Mapping[int, Key]) -> tuple[Cell | None, ...]:
    found: dict[Key, dict[int, tuple[Path, Result]]] = {column: {} for column in columns}
    for run in runs:
        for result in run.results:
            own = keys[id(result)]
            # Raw pixels have features and a geometry of their own, which no column shares.
            those = [column for column in columns if column[0] == own[0]] if run.info.backbone is None else [own]
            file = run.predictions_of(result)
            for column in those:
                if column in found:
                    found[column].setdefault(run.info.seed, (file, result))
    seeded = any(run.info.method != "pixels" for run in runs)
    return tuple(_cell(results, seeded) if results else None for results in found.values())


def _cell(found: Mapping[int, tuple[Path, Result]], seeded: bool) -> Cell:
    """The mean over seeds; `seeded` says whether a seed changes anything, which it does not for raw pixels."""
    results = {seed: result for seed, (_, result) in found.items()}
    files = tuple(file for file, _ in found.values())
    repeats = {score.repeats for result in results.values() if (score := result.variants.get(result.primary))}
    values = tuple(result.value for result in results.values() if result.value is not None)
    n_test = min(result.n_test for result in results.values())
    at_grid_boundary = any(result.selected.at_grid_boundary for result in results.values())
    alone = next(iter(results.values())).interval if len(results) == 1 else None  # that of its draws, where it has some
    known = {result.metric for result in results.values()} == {"accuracy"}
    images = None if known else _variance(results.values())
    covers = "test images and draws" if alone and "draws" in repeats else "test images"
    return Cell(
        *((values[0], *alone) if alone else mean_over_seeds(values, n_test, images=images)),
        seeds=tuple(results),
        values=values,
        n_test=n_test,
        covers=covers if alone else "seeds and test images",
        one_seed=alone is not None and seeded,
        at_grid_boundary=at_grid_boundary,
        repeats="draws" if "draws" in repeats else "conditions" if "conditions" in repeats else "",
        files=files,
    )


def _variance(results: Iterable[Result]) -> float:
    """Of a number that is no accuracy, by its test images: of the interval that each run's bootstrap gave."""
    halves = [(high - low) / 2 for low, high in (result.interval for result in results if result.interval)]
    return math.fsum((half / NormalDist().inv_cdf((1 + LEVEL) / 2)) ** 2 for half in halves) / len(halves)


def _best_marked(rows: list[Row], columns: tuple[Column, ...]) -> tuple[Row, ...]:
    tops: list[float | None] = []
    for index, column in enumerate(columns):
        found = [(cell.mean, row.kind) for row in rows if (cell := row.cells[index]) and not cell.one_seed]
        ranked = len(found) > 1 and not column.oracle and any(kind != "baseline" for _, kind in found)
        tops.append(max(mean for mean, _ in found) if ranked else None)
    marked = []
    for row in rows:
        cells = [
            cell and replace(cell, best=cell.mean == top and not cell.one_seed)
            for cell, top in zip(row.cells, tops, strict=True)
        ]
        marked.append(replace(row, cells=tuple(cells)))
    return tuple(marked)


def _rank(row: Row, columns: Sequence[Column], ranked: bool) -> tuple[bool, bool, float, str]:
    """Baselines last, pixels last of all; before that by the linear probe, or by the first column without one.

    By name where nothing is ranked.
    """
    index = next((i for i, column in enumerate(columns) if column.title.startswith("linear")), 0)
    cell = row.cells[index]
    return row.kind == "baseline", row.name.startswith("pixels"), -cell.mean if cell and ranked else 0.0, row.name
