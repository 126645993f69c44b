"""The one model of a leaderboard, from which every format is rendered.

Rows are methods, columns protocols. Runs stand in one block only when their numbers may be compared: same images, same
architecture, same budget of pretraining. Baselines have no budget and stand in every block of their images.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

from ssl_bench.errors import UserError, near
from ssl_bench.records.results import Result, Run, Unread, predictions_path
from ssl_bench.statistics.intervals import mean_over_seeds

By: TypeAlias = Literal["views", "epochs", "nothing"]


def checked_by(by: str) -> By:
    """What makes a budget, by name.

    Raises:
        UserError: There is no such budget.
    """
    if by not in get_args(By):
        raise UserError(f"no budget {by!r}{near(by, get_args(By))}; there are {', '.join(get_args(By))}")
    return cast(By, by)


Images: TypeAlias = tuple[str, str]  # title and short hash
Key: TypeAlias = tuple[str, str]  # what every number of a column shares; what raw pixels have of their own

# Options that block and column say already, or that say where a run happened rather than what it was. A batch is of one
# device, so their number is part of what a run was: `_devices` counts them.
SAID_ELSEWHERE = (
    *("seed", "method.name", "backbone", "data.name", "data.root", "data.download", "data.num_workers", "data.strict"),
    *("trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.log_every_n_steps"),
    *("probe", "runs", "wandb"),
)


@dataclass(frozen=True)
class Cell:
    """A method under a protocol.

    Args:
        mean: Accuracy in [0, 1], over seeds.
        low: Lower end of its 95 % interval.
        high: Upper end.
        seeds: Of the runs, in the order of `values`.
        values: Accuracy of each.
        n_test: Test images.
        best: Whether no mean of the column is higher; never where there are baselines alone.
        unbeaten: Whether it is best, or not significantly worse than the best.
        at_grid_boundary: Whether some run chose a value at the end of its grid, so that a wider one may give more.
        repeats: What was repeated in each: `draws` at random, `conditions` that are all there are, or nothing.
        files: Predictions of each; only for who compares them, no part of what is rendered.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    n_test: int
    best: bool = False
    unbeaten: bool = False
    at_grid_boundary: bool = False
    repeats: str = ""
    files: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def half(self) -> float:
        """The wider side of the interval."""
        return max(self.high - self.mean, self.mean - self.low)


@dataclass(frozen=True)
class Column:
    """A protocol with its options on some test images.

    Args:
        title: The protocol's name, and what tells it from the block's other columns of that name.
        variant: The one that gives the number.
        oracle: Something was chosen on the test images: not to be compared with honest columns, and nothing is best.
        test: What says which cells are unbeaten: `paired`, image by image; `intervals` alone, where predictions are
            missing; or nothing, where nothing is ranked.
    """

    title: str
    variant: str
    oracle: bool = False
    test: Literal["", "paired", "intervals"] = ""


@dataclass(frozen=True)
class Row:
    """A method with its options.

    Args:
        name: The method's name, and the options in which it differs from the block's other rows of that name.
        kind: pretrained, baseline or imported.
        seeds: Of all its runs.
        epochs: Passes over the images; None for baselines and where unknown.
        views_per_image: Per pass.
        seconds: Of pretraining, mean over runs.
        flops: Of pretraining, mean over runs.
        device: What it was pretrained on.
        cells: One per column; None where there is no result.
        runs: Names of the run folders.
        members: The runs, with the results of this row's network; only for pictures, no part of what is rendered.
    """

    name: str
    kind: str
    seeds: tuple[int, ...]
    epochs: float | None
    views_per_image: float
    seconds: float
    flops: float
    device: str
    cells: tuple[Cell | None, ...]
    runs: tuple[str, ...]
    members: tuple[Run, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class PublishedRow:
    """What others published about a method: shown beside ours, with its source, and never ranked.

    Args:
        name: Of the method.
        source: Where it was published.
        values: Accuracy in [0, 1] for each column of the block; None where there is none.
    """

    name: str
    source: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Block:
    """Numbers that may be compared with each other.

    Args:
        data: Title of the images.
        fingerprint: Eight characters of their hash.
        backbone: Name, with what overrides it; empty for raw pixels alone.
        params: Of the backbone.
        gflops_per_image: Of its forward pass.
        tokens: Of its blocks; 0 for a ResNet.
        budget: Effective epochs (or epochs); None for baselines alone and where unknown.
        budget_text: The same in words; why nothing is ranked, where nothing is.
        columns: Protocols.
        rows: Methods, best linear probe first, then baselines.
        published: Numbers of others.
        ranked: Whether its rows may be ranked; not where budgets are unknown, for they may differ.
    """

    data: str
    fingerprint: str
    backbone: str
    params: int
    gflops_per_image: float
    tokens: int
    budget: float | None
    budget_text: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    published: tuple[PublishedRow, ...] = ()
    ranked: bool = True


@dataclass(frozen=True)
class Absent:
    """A run that has no place in a block, or one of its files that has none, and why; seed None where it is unknown."""

    run: str
    method: str
    seed: int | None
    status: str
    reason: str


@dataclass(frozen=True)
class Table:
    """All blocks, what is missing from them, and what a reader should know."""

    blocks: tuple[Block, ...]
    absent: tuple[Absent, ...]
    notes: tuple[str, ...]


def build(runs: Sequence[Run], by: By = "views", unread: Sequence[Unread] = ()) -> Table:
    """The leaderboard of some runs.

    Args:
        runs: Run folders, read.
        by: What makes a budget: `views`, the epochs times the views of an image in each (effective epochs), so that a
            method that looks at ten crops is not ranked against one that looks once; or `epochs`; or `nothing`, for
            one block of all.
        unread: Files that cannot be read: they are listed.
    """
    absent = [_absent(run) for run in runs if run.info.status != "finished" or not _values(run)]
    absent += [_unread(file) for file in unread]
    runs = [part for run in runs for part in _by_branch(run)]
    runs, notes = _one_per_seed([run for run in runs if run.info.status == "finished" and run.results])
    notes += [_origin(run) for run in runs if run.info.kind == "imported"]
    baselines = [run for run in runs if run.info.kind == "baseline"]
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.info.kind != "baseline":
            groups[_key(run.info.data.identity, _architecture(run), _budget(run, by))].append(run)
    blocks: list[Block] = []
    taken: set[int] = set()
    for group in groups.values():
        beside = _beside(group, baselines)
        taken.update(id(run) for run in beside)
        blocks.append(_block(group, beside, by))
    blocks += _of_baselines([run for run in baselines if id(run) not in taken], by)
    blocks.sort(key=lambda block: (block.data, block.fingerprint, block.backbone, block.budget or 0.0))
    return Table(tuple(blocks), tuple(sorted(absent, key=lambda run: run.run)), tuple(notes))


def _by_branch(run: Run) -> list[Run]:
    """A run for each of its networks that was evaluated (student and teacher are rows of their own), less diagnostics."""
    branches: dict[str, list[Result]] = {}
    for result in _values(run):
        branches.setdefault(result.branch, []).append(result)
    return [replace(run, results=tuple(results)) for results in branches.values()]


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
    file = f"{origin.get('file', 'a checkpoint')} ({origin.get('format', '')}, {origin.get('kind', '')})"
    return f"{run.folder.name} was imported from {file}: others pretrained it, on {run.info.data.title} images"


def _one_per_seed(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """A seed counts once: of two runs that differ in nothing, the later."""
    latest: dict[str, Run] = {}
    notes = []
    for run in sorted(runs, key=lambda run: (run.info.created, run.folder.name)):
        info = run.info
        key = _key(info.data.identity, _architecture(run), _row_key(run), info.epochs, info.seed)
        if key in latest:
            notes.append(f"{latest[key].folder.name} counts once, as {run.folder.name}: same configuration and seed")
        latest[key] = run
    return list(latest.values()), notes


def _beside(runs: Sequence[Run], baselines: Iterable[Run]) -> list[Run]:
    """Baselines of the same architecture, or of none, with a result on images of these runs."""
    images = {run.info.data.identity for run in runs} | {result.data.identity for run in runs for result in run.results}
    architecture = _architecture(runs[0])
    return [
        run
        for run in baselines
        if _architecture(run) in (None, architecture) and any(result.data.identity in images for result in run.results)
    ]


def _of_baselines(runs: list[Run], by: By) -> list[Block]:
    """Blocks for baselines beside which nothing was pretrained."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run.info.backbone is not None:
            groups[_key(run.info.data.identity, _architecture(run))].append(run)
    pixels = [run for run in runs if run.info.backbone is None]
    alone = [run for run in pixels if not any(_beside(group, [run]) for group in groups.values())]
    blocks = [_block([], group + _beside(group, pixels), by) for group in groups.values()]
    return blocks + [_block([], [run], by) for run in alone]


def _block(runs: list[Run], baselines: list[Run], by: By) -> Block:
    first = (runs or baselines)[0]
    images, backbone = first.info.data.identity, first.info.backbone
    columns = _columns(runs, baselines, images)
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in [*runs, *baselines]:
        groups[_row_key(run)].append(run)
    firsts = [group[0] for group in groups.values()]
    names = _tell_apart([run.info.method for run in firsts], [row_options(run) for run in firsts])
    rows = [_row(name, group, list(columns)) for name, group in zip(names, groups.values(), strict=True)]
    shown = tuple(columns.values())
    budget = _budget(first, by) if runs else None
    ranked = not runs or by == "nothing" or budget is not None
    rows.sort(key=lambda row: _rank(row, shown, ranked))
    return Block(
        data=images[0],
        fingerprint=images[1],
        backbone=backbone.name + _bracketed(_set(backbone.args)) if backbone else "",
        params=backbone.params if backbone else 0,
        gflops_per_image=backbone.gflops_per_image if backbone else 0.0,
        tokens=backbone.tokens if backbone else 0,
        budget=budget,
        budget_text=_budget_text(runs, by),
        columns=shown,
        rows=_best_marked(rows, shown) if ranked else tuple(rows),
        ranked=ranked,
    )


def _columns(runs: list[Run], baselines: list[Run], images: Images) -> dict[Key, Column]:
    """All that the runs were evaluated by, and what the baselines were on the block's own images."""
    results = [result for run in runs for result in run.results]
    own = [run for run in baselines if run.info.backbone is not None] or ([] if runs else baselines)
    results += [result for run in own for result in run.results if not runs or result.data.identity == images]
    found = {_column_key(result): result for result in results}
    titles = [_column_title(result, images) for result in found.values()]
    names = _tell_apart(titles, [{**_column_options(r), "variant": r.primary} for r in found.values()])
    columns = [Column(name, r.primary, _oracle(r)) for name, r in zip(names, found.values(), strict=True)]
    return dict(sorted(zip(found, columns, strict=True), key=lambda item: (item[1].oracle, item[1].title)))


def _column_title(result: Result, images: Images) -> str:
    title, short = result.data.identity
    oracle = " oracle" if _oracle(result) else ""
    if (title, short) == images:
        return result.protocol + oracle
    return f"{result.protocol}@{title if title != images[0] else f'{title}:{short}'}{oracle}"


def _row(name: str, runs: list[Run], columns: list[Key]) -> Row:
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
        cells=_cells(runs, columns),
        runs=tuple(run.folder.name for run in runs),
        members=tuple(runs),
    )


def _cells(runs: list[Run], columns: list[Key]) -> tuple[Cell | None, ...]:
    found: dict[Key, dict[int, tuple[Path, Result]]] = {column: {} for column in columns}
    for run in runs:
        for result in run.results:
            common, own = _column_key(result)
            for column in columns:
                # Raw pixels have features and a geometry of their own, which no column shares.
                if column[0] == common and (column[1] == own or run.info.backbone is None):
                    file = predictions_path(run.folder, run.info, result)
                    found[column].setdefault(run.info.seed, (file, result))
    return tuple(_cell(results) if results else None for results in found.values())


def _cell(found: Mapping[int, tuple[Path, Result]]) -> Cell:
    results = {seed: result for seed, (_, result) in found.items()}
    files = tuple(file for file, _ in found.values())
    repeats = {score.repeats for result in results.values() if (score := result.variants.get(result.primary))}
    values = tuple(result.value for result in results.values() if result.value is not None)
    n_test = min(result.n_test for result in results.values())
    at_grid_boundary = any(result.selected.at_grid_boundary for result in results.values())
    alone = next(iter(results.values())).interval if len(results) == 1 else None  # that of its draws, where it has some
    return Cell(
        *((values[0], *alone) if alone else mean_over_seeds(values, n_test)),
        seeds=tuple(results),
        values=values,
        n_test=n_test,
        at_grid_boundary=at_grid_boundary,
        repeats="draws" if "draws" in repeats else "conditions" if "conditions" in repeats else "",
        files=files,
    )


def _best_marked(rows: list[Row], columns: tuple[Column, ...]) -> tuple[Row, ...]:
    tops: list[float | None] = []
    for index, column in enumerate(columns):
        found = [(cell.mean, row.kind) for row in rows if (cell := row.cells[index])]
        ranked = len(found) > 1 and not column.oracle and any(kind != "baseline" for _, kind in found)
        tops.append(max(mean for mean, _ in found) if ranked else None)
    marked = []
    for row in rows:
        cells = [cell and replace(cell, best=cell.mean == top) for cell, top in zip(row.cells, tops, strict=True)]
        marked.append(replace(row, cells=tuple(cells)))
    return tuple(marked)


def _rank(row: Row, columns: Sequence[Column], ranked: bool) -> tuple[bool, bool, float, str]:
    """Baselines last, pixels last of all; before that by the linear probe, or by the first column without one.

    By name where nothing is ranked.
    """
    index = next((i for i, column in enumerate(columns) if column.title.startswith("linear")), 0)
    cell = row.cells[index]
    return row.kind == "baseline", row.name.startswith("pixels"), -cell.mean if cell and ranked else 0.0, row.name


def _architecture(run: Run) -> str | None:
    backbone = run.info.backbone
    return None if backbone is None else _key(backbone.name, _set(backbone.args))


def _budget(run: Run, by: By) -> float | None:
    info = run.info
    if info.epochs is None or by == "nothing":
        return None
    return float(f"{info.epochs * (info.views_per_image if by == 'views' else 1):.4g}")


def _budget_text(runs: Sequence[Run], by: By) -> str:
    if not runs:
        return "no pretraining"
    if by == "nothing":
        differ = len({_budget(run, "views") for run in runs}) > 1
        return "whatever the budget: budgets differ" if differ else "whatever the budget"
    budget = _budget(runs[0], by)
    if budget is None:
        return "unknown budget: budgets may differ, so nothing is ranked"
    return f"{budget:g} epochs x views" if by == "views" else f"{budget:g} epochs"


def _row_key(run: Run) -> str:
    return _key(run.info.kind, run.info.method, row_options(run))


def row_options(run: Run, backbone: bool = False) -> dict[str, Any]:
    """Options that tell a run from others of its method, flat: none that say where it ran, nor its seed.

    Args:
        run: The run, with the results of one of its networks.
        backbone: Whether those of the backbone count: within a block they are all the same.
    """
    if run.info.kind == "baseline":
        return {}
    branch = run.results[0].branch
    elsewhere = [said for said in SAID_ELSEWHERE if not (backbone and said == "backbone")]
    options = {
        name: value
        for name, value in flat(run.info.options).items()
        if not any(name == said or name.startswith(f"{said}.") for said in elsewhere)
    }
    devices = _devices(run)
    return options | ({"branch": branch} if branch else {}) | ({"devices": devices} if devices else {})


def _devices(run: Run) -> int | None:
    """On how many the run was pretrained: as it was asked for, or as many as its images make; None when unknown."""
    known = flat(run.info.options)
    asked = known.get("trainer.devices")
    nodes = known.get("trainer.num_nodes", 1)
    if isinstance(asked, str) and "," in asked:  # "0,2" are two
        asked = len([name for name in asked.split(",") if name.strip()])
    asked = int(asked) if isinstance(asked, int | str) and str(asked).isdigit() else 0
    if asked > 0 and isinstance(nodes, int):
        return asked * nodes
    batch, accumulated = known.get("data.batch_size"), known.get("trainer.accumulate_grad_batches", 1)
    if not (isinstance(batch, int) and isinstance(accumulated, int) and run.info.steps and run.info.images_seen):
        return None
    return max(1, round(run.info.images_seen / (run.info.steps * batch * accumulated or 1)))


def _column_key(result: Result) -> Key:
    """What must agree for two numbers to stand in one column."""
    options = {name: value for name, value in _column_options(result).items() if not name.startswith("geometry.")}
    common = _key(result.protocol, result.data.identity, _oracle(result), options)
    return common, _key(result.primary, result.geometry)


def _column_options(result: Result) -> dict[str, Any]:
    counts = {name: split.count for name, split in result.splits.items()}
    return flat({**result.options, "version": result.version, "geometry": result.geometry, "images": counts})


def _oracle(result: Result) -> bool:
    return result.selected.selected_on_test


def _key(*parts: Any) -> str:
    return json.dumps(parts, sort_keys=True, default=str)


def _set(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(options).items() if value is not None}


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{optim: {base_lr: 1}}` -> `{optim.base_lr: 1}`."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _tell_apart(names: Sequence[str], options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names, with in brackets the options in which those of the same name differ."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for name, values in zip(names, options, strict=True):
        groups[name].append(values)
    differing = {name: _differing(group) for name, group in groups.items()}
    return [
        name + _bracketed({short: values[option] for option, short in differing[name].items() if option in values})
        for name, values in zip(names, options, strict=True)
    ]


def _differing(options: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Options that are not the same everywhere -> the last part of their name, where that is enough."""
    known = sorted({option for values in options for option in values})
    differing = [option for option in known if len({_key(values.get(option)) for values in options}) > 1]
    last = [option.rpartition(".")[2] for option in differing]
    return {option: short if last.count(short) == 1 else option for option, short in zip(differing, last, strict=True)}


def _bracketed(options: Mapping[str, Any]) -> str:
    return f" ({', '.join(f'{name}={value}' for name, value in options.items())})" if options else ""
