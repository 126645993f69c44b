"""A W&B Report: what it says as plain data, and that data turned into one at the server. Torch-free.

The specification needs neither network nor key. W&B's own needs both (a set of runs is named by a number that only the
server knows), so ours is kept as JSON and W&B's is made of it when there is a server.
"""

import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError
from ssl_bench.leaderboard.findings import Finding
from ssl_bench.records.files import read_regular, write_json

FORMAT = 1
KINDS = ("heading", "text", "list", "markdown", "panels")
CONTRASTS = (("linear", "finetune"), ("knn", "linear"), ("linear", "attentive"))  # pairs worth a picture of their own
MISSING = "a W&B Report needs wandb-workspaces: pip install 'ssl-bench[report]'"


@dataclass(frozen=True)
class Panel:
    """A picture over runs.

    Args:
        kind: bar, scatter, lines, media or table.
        title: Above it.
        metrics: Summary keys (bar; scatter: x, then y), metrics (lines), or keys of media or of a table.
    """

    kind: str
    title: str
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class ReportBlock:
    """A part of a report.

    Args:
        kind: heading, text, list, markdown or panels.
        text: Of a heading, a paragraph, or Markdown.
        level: Of a heading.
        items: Of a list.
        runs: W&B ids of the runs that panels are over.
        groupby: Key of the configuration that panels group runs by.
        panels: The pictures.
    """

    kind: str
    text: str = ""
    level: int = 1
    items: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    groupby: str = ""
    panels: tuple[Panel, ...] = ()


@dataclass(frozen=True)
class Specification:
    """A report as plain data.

    Args:
        title: By which it is found again, to be updated.
        description: Below the title.
        blocks: From top to bottom.
        format: Of this data.
    """

    title: str
    description: str
    blocks: tuple[ReportBlock, ...] = field(default_factory=tuple)
    format: int = FORMAT


def write_specification(path: Path, specification: Specification) -> None:
    """As JSON."""
    write_json(path, asdict(specification))


def read_specification(path: Path) -> Specification:
    """From JSON.

    Raises:
        UserError: It is none of ours.
    """
    try:
        value = json.loads(read_regular(path))
        if value["format"] != FORMAT:
            raise ValueError(f"its format is {value['format']}, not {FORMAT}")
        blocks = []
        for block in value["blocks"]:
            panels = tuple(Panel(p["kind"], p["title"], tuple(p["metrics"])) for p in block.pop("panels"))
            items, runs = tuple(block.pop("items")), tuple(block.pop("runs"))
            blocks.append(ReportBlock(**block, items=items, runs=runs, panels=panels))
        return Specification(value["title"], value["description"], tuple(blocks))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no report's specification ({error}): `ssl-bench leaderboard --wandb` writes one"
        ) from None


def specify(
    title: str,
    tables: str,
    findings: Sequence[Finding],
    protocols: Sequence[str],
    pictures: Sequence[str],
    runs: Sequence[str],
    board: str,
) -> Specification:
    """The report of a leaderboard.

    Args:
        title: Its title.
        tables: The leaderboard in Markdown.
        findings: What to say first.
        protocols: Stems of results, as in `STEM/accuracy`.
        pictures: Names of the runs' pictures, as in `figures/NAME`.
        runs: W&B ids of the runs in it.
        board: W&B id of the leaderboard's own run.
    """
    blocks = [ReportBlock("heading", "Findings")]
    for place in dict.fromkeys(finding.block for finding in findings):
        blocks += [ReportBlock("heading", place, 2)] if place else []
        blocks.append(ReportBlock("list", items=tuple(f.text for f in findings if f.block == place)))
    own = [Panel("media", "The page", ("leaderboard/page",)), Panel("media", "All numbers", ("leaderboard/table",))]
    own += [Panel("media", name, (f"leaderboard/figures/{name}",)) for name in pictures]
    over = [Panel("bar", stem, (f"{stem}/accuracy",)) for stem in protocols]
    for a, b in CONTRASTS:
        if a in protocols and b in protocols:
            over.append(Panel("scatter", f"{b} against {a}", (f"{a}/accuracy", f"{b}/accuracy")))
    over += [Panel("lines", "Loss of each epoch", ("loss_epoch",)), Panel("lines", "k-NN while training", ("knn",))]
    over += [Panel("media", f"{name} of each run", (f"figures/{name}",)) for name in pictures]
    blocks += [ReportBlock("heading", "Tables"), ReportBlock("markdown", tables)]
    blocks += [ReportBlock("heading", "Page and pictures"), ReportBlock("panels", runs=(board,), panels=tuple(own))]
    blocks += [ReportBlock("heading", "Runs")]
    blocks += [ReportBlock("panels", runs=tuple(runs), groupby="method_name", panels=tuple(over))]
    return Specification(title, "Written by ssl-bench leaderboard, and written over by it.", tuple(blocks))


def create(specification: Specification, entity: str, project: str, known: str = "") -> tuple[str, str]:
    """Make the report at the server, in the place of an earlier one of the same title; (id, address).

    Args:
        specification: What it says.
        entity: User or team.
        project: Of the runs.
        known: Id of the report that an earlier call made; it is looked for first.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    import wandb

    try:
        reports: Any = importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError:
        raise UserError(MISSING) from None
    there = [(str(one.id), str(one.display_name)) for one in wandb.Api().reports(f"{entity}/{project}")]
    same = [one for one, _ in there if one == known] + [one for one, name in there if name == specification.title]
    report = reports.Report(
        project=project, entity=entity, title=specification.title, description=specification.description, width="fluid"
    )
    if same:
        report.id = same[0]
    report.blocks = [block for ours in specification.blocks for block in _blocks(reports, ours, entity, project)]
    report.save()
    return str(report.id), str(report.url)


def _blocks(reports: Any, block: ReportBlock, entity: str, project: str) -> list[Any]:
    if block.kind == "heading":
        return [(reports.H1, reports.H2, reports.H3)[block.level - 1](text=block.text)]
    if block.kind == "text":
        return [reports.P(text=block.text)]
    if block.kind == "list":
        return [reports.UnorderedList(items=list(block.items))]
    if block.kind == "markdown":
        return [reports.MarkdownBlock(text=block.text)]
    if block.kind != "panels":
        raise UserError(f"a report has no block {block.kind!r} ({', '.join(KINDS)})")
    ids = ", ".join(f"'{run}'" for run in block.runs if re.fullmatch(r"[\w.-]+", run))
    groupby = [f"config.{block.groupby}"] if block.groupby else []
    runset = reports.Runset(entity=entity, project=project, filters=f"Metric('ID') in [{ids}]", groupby=groupby)
    return [
        reports.PanelGrid(runsets=[runset], panels=[_panel(reports, panel, i) for i, panel in enumerate(block.panels)])
    ]


def _panel(reports: Any, panel: Panel, place: int) -> Any:
    layout = reports.Layout(x=8 * (place % 3), y=8 * (place // 3), w=8, h=8)
    names = list(panel.metrics)
    if panel.kind == "bar":
        return reports.BarPlot(title=panel.title, metrics=[reports.SummaryMetric(n) for n in names], layout=layout)
    if panel.kind == "scatter":
        x, y = (reports.SummaryMetric(name) for name in names)
        return reports.ScatterPlot(title=panel.title, x=x, y=y, layout=layout)
    if panel.kind == "lines":
        return reports.LinePlot(title=panel.title, y=names, layout=layout)
    return reports.MediaBrowser(title=panel.title, media_keys=names, layout=layout)
