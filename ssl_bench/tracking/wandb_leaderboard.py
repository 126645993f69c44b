"""`ssl-bench leaderboard --wandb`: table, page, artifact and report at W&B, or on disk for later. Torch-free."""

import hashlib
import json
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ssl_bench.config.options import WandbOptions
from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.leaderboard.findings import findings
from ssl_bench.leaderboard.page.figures import checked_images, published_pictures
from ssl_bench.leaderboard.page.page import html
from ssl_bench.leaderboard.render import rendered, tabled
from ssl_bench.leaderboard.table import Block, Table
from ssl_bench.leaderboard.text import block_title
from ssl_bench.records.files import read_regular, write_json, write_text
from ssl_bench.records.result import result_stem
from ssl_bench.records.run_folder import folder_identity
from ssl_bench.records.store import Run
from ssl_bench.tracking.wandb_client import Identity, one_line
from ssl_bench.tracking.wandb_report import Specification, create, read_specification, specify, write_specification
from ssl_bench.tracking.wandb_run import WandbRun, wandb_run

FILES = {"csv": "leaderboard.csv", "json": "leaderboard.json", "markdown": "leaderboard.md", "html": "leaderboard.html"}
LONG = (
    "data",
    "backbone",
    "budget",
    "method",
    "kind",
    "protocol",
    "accuracy",
    "low",
    "high",
    "covers",
    "seeds",
    "best",
    "unbeaten",
)


def publish(
    paths: Sequence[Path],
    target: str,
    by: str | None = None,
    published: Path | None = None,
    images: str = "none",
    branches: str = "default",
) -> int:
    """Log the leaderboard of the runs at or below the paths, or make the report of a specification; an exit code.

    Args:
        paths: Run folders or folders of them; or one `report.json` that was written before.
        target: ENTITY/PROJECT.
        by: Budget that a block shares; by default as `leaderboard`.
        published: CSV or YAML file of numbers that others published.
        images: Figures of the runs on the page: embed or none; W&B gets them as pictures in either case.
        branches: Networks of a run that have a row: default or all.

    Raises:
        UserError: The target is none, there are no runs, or the report's package is missing.
    """
    entity, _, project = target.partition("/")
    if not entity or not project or "/" in project:
        raise UserError(f"--wandb {target}: where? ENTITY/PROJECT")
    if len(paths) == 1 and paths[0].suffix == ".json" and paths[0].is_file():
        if published or images != "none" or by or branches != "default":
            raise UserError(f"{paths[0]} is a whole report: --published, --images, --by and --branches are for runs")
        return 0 if _report(read_specification(paths[0]), paths[0], entity, project) else 1
    if images not in ("embed", "none"):
        raise UserError(f"--images {images}: W&B's page is one file: embed or none")
    table, compared, runs = tabled(paths, by, published, branches)
    folder = _folder(paths)
    contents = {name: rendered(table, compared, runs, name) for name in FILES if name != "html"}
    contents["html"] = html(table, compared, runs, checked_images(images))
    for name, text in contents.items():
        write_text(folder / FILES[name], text)
    board = _identity(paths, by)
    specification = specify(
        title=f"ssl-bench leaderboard: {board.name}",
        tables=contents["markdown"],
        findings=findings(table, compared),
        protocols=_protocols(runs),
        pictures=list(_pictures(runs)),
        runs=[folder_identity(run.folder) for run in runs if run.results],
        board=board.id,
    )
    write_specification(folder / "report.json", specification)

    def send(run: WandbRun) -> None:
        run.media(lambda wandb: _tables(wandb, table, contents["html"]))
        for name, found in _pictures(runs).items():
            run.media(partial(_gallery, name, found))
        run.summarise(_summary(table, specification))
        files = {name: folder / name for name in (*FILES.values(), "report.json")}
        run.artifact(board.id, "leaderboard", files)

    with wandb_run(WandbOptions("auto", project, entity), board, folder, send) as run:
        online = run.online
    done = not run.error and run.on
    if online and done:
        done = _report(specification, folder / "report.json", entity, project)
    else:
        again = shlex.join(["ssl-bench", "leaderboard", str(folder / "report.json"), "--wandb", target])
        say(f"W&B: to make the report when there is a server: {again}")
    print(folder)
    return 0 if done else 1


def _report(specification: Specification, path: Path, entity: str, project: str) -> bool:
    """Make the report, and remember which it is, so that the next one takes its place."""
    kept = path.with_name("report-id.json")
    try:
        known = json.loads(read_regular(kept))[f"{entity}/{project}"]
    except (OSError, ValueError, KeyError, TypeError):
        known = ""
    try:
        number, url = create(specification, entity, project, known)
    except UserError as error:
        say(f"warning: no report: {error}")
        return False
    except Exception as error:  # of the client: network, server, permission
        say(f"warning: no report: {one_line(error)}")
        return False
    with suppress(OSError):  # then it is found by its title
        write_json(kept, {f"{entity}/{project}": number})
    say(f"W&B report: {url}")
    return True


def _folder(paths: Sequence[Path]) -> Path:
    """Beside the runs: what is written of them belongs to them."""
    first = paths[0].resolve()
    return (first.parent if (first / "run.json").exists() else first) / "leaderboard"


def _identity(paths: Sequence[Path], by: str | None) -> Identity:
    """The same for folders of the same names: so a leaderboard is updated, and another one is another."""
    name = "+".join(path.resolve().name for path in paths) + (f" by {by}" if by else "")
    slug = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name).strip("-")[:100] or "runs"
    if slug != name:  # which another name may have become too
        slug += "-" + hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    shown = name if len(name) <= 100 else f"{name[:97]}..."
    return Identity(
        f"leaderboard-{slug}", shown, "leaderboard", {"runs": [str(path) for path in paths], "by": by or "default"}
    )


def _protocols(runs: Sequence[Run]) -> list[str]:
    """Stems of results that have a number."""
    return sorted({result_stem(run.info, result) for run in runs for result in run.results if result.value is not None})


def _pictures(runs: Sequence[Run]) -> dict[str, list[tuple[str, Path]]]:
    """Name of a picture -> (method, file) of the first run of each method that has one."""
    found: dict[str, dict[str, Path]] = {}
    for run in sorted(runs, key=lambda run: run.info.seed):
        for path in published_pictures(run.folder):
            found.setdefault(path.stem, {}).setdefault(run.info.method, path)
    return {name: sorted(files.items()) for name, files in sorted(found.items())}


def _gallery(name: str, found: Sequence[tuple[str, Path]], wandb: Any) -> dict[str, Any]:
    return {f"leaderboard/figures/{name}": [wandb.Image(str(path), caption=method) for method, path in found]}


def _tables(wandb: Any, table: Table, page: str) -> dict[str, Any]:
    """One long table, a table as printed of each block, a chart of each protocol, and the page."""
    rows = [row for block in table.blocks for row in _rows(block)]
    made = {"leaderboard/table": wandb.Table(columns=list(LONG), data=rows), "leaderboard/page": wandb.Html(page)}
    for number, block in enumerate(table.blocks, 1):
        columns = ["method", *(column.title for column in block.columns)]
        wide = [[row.name, *(cell.mean if cell else None for cell in row.cells)] for row in block.rows]
        made[f"leaderboard/block {number}"] = wandb.Table(columns=columns, data=wide)
        for index, column in enumerate(block.columns):
            bars = [[row.name, cell.mean] for row in block.rows if (cell := row.cells[index])]
            chart = wandb.Table(columns=["method", "accuracy"], data=bars)
            title = f"{column.title}: {block_title(block)}"
            made[f"leaderboard/{column.title} {number}"] = wandb.plot.bar(chart, "method", "accuracy", title=title)
    return made


def _rows(block: Block) -> list[list[Any]]:
    return [
        [
            *(block.data, block.backbone, block.budget_text, row.name, row.kind, column.title),
            *(cell.mean, cell.low, cell.high, cell.covers, len(cell.seeds), cell.best, cell.unbeaten),
        ]
        for row in block.rows
        for column, cell in zip(block.columns, row.cells, strict=True)
        if cell
    ]


def _summary(table: Table, specification: Specification) -> dict[str, Any]:
    found = [item for block in specification.blocks for item in block.items]
    methods = {row.name for block in table.blocks for row in block.rows}
    return {"blocks": len(table.blocks), "methods": len(methods), "absent": len(table.absent), "findings": found}
