"""The leaderboard as one HTML page that opens from disk: style and script are inside, no network is asked."""

import base64
import zlib
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_bench.console import say_some
from ssl_bench.leaderboard.page import curve_pictures, page_table, rank_pictures, run_section, score_pictures, study
from ssl_bench.leaderboard.page.figures import Images, figures
from ssl_bench.leaderboard.page.header import header
from ssl_bench.leaderboard.page.plot import bdi
from ssl_bench.leaderboard.page.view import Picture, View, styles_of
from ssl_bench.leaderboard.table import Table
from ssl_bench.leaderboard.text import absent_cells, legend, visible
from ssl_bench.records.store import Run

if TYPE_CHECKING:
    from ssl_bench.leaderboard.significance import BlockComparison

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: file: 'self'"
MOST_PLAIN = 64 * 1024  # characters of run sections: fifty runs shall stay below 300 KiB
PICTURES = (  # the first ones stand beside the table where there is room
    score_pictures.linear_against_finetuning,
    rank_pictures.ranks,
    curve_pictures.partial_finetuning,
    score_pictures.results,
    rank_pictures.pairs,
    curve_pictures.label_efficiency,
    curve_pictures.online_probes,
    rank_pictures.protocols_agree,
)


def html(
    table: Table,
    compared: "Sequence[BlockComparison | None]",
    runs: Sequence[Run],
    images: Images = "none",
    folder: Path | None = None,
) -> str:
    """The whole page.

    Args:
        table: Its marks set.
        compared: What is known of each block's predictions.
        runs: All that were read: each has a section.
        images: Where the figures of the runs go.
        folder: For images beside the page.
    """
    here = Path(__file__).parent
    anchors = run_section.anchors(runs)
    styles = styles_of(table)
    views = [View(block, known, styles) for block, known in zip(table.blocks, compared, strict=True)]
    titles = page_table.short_titles(table.blocks)
    scores = [page_table.section(v.block, titles[number], number, anchors) for number, v in enumerate(views)]
    blocks = "".join(
        f'<section class="block">\n{scores[number]}{_pictures(view)}</section>\n' for number, view in enumerate(views)
    )
    lacks: list[str] = []
    sections = "".join(
        run_section.section(run, anchors[run.folder], figures(run.folder, images, folder, anchors[run.folder]), lacks)
        for run in sorted(runs, key=lambda run: run.folder.name)
    )
    say_some(lacks, "warning: the page is without the")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<link rel="icon" href="data:,">
<title>ssl-bench leaderboard</title>
<style>
{_compact(here / "page.css")}</style>
</head>
<body>
<main>
{header(table, views, runs)}<p class="quiet">{_legend(table)}</p>
<div class="tools" id="filter"></div>
{_contents(table)}{blocks}{_over_blocks(table, views)}{_absent(table)}{_notes(table)}<section>
<h2 id="runs" tabindex="-1">Runs</h2>
{_packed(sections)}</section>
</main>
<script>
{_compact(here / "page.js")}</script>
</body>
</html>
"""


def _compact(file: Path) -> str:
    """Its lines without indentation, and without those that are comments: no text in them goes over lines."""
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith(("//", "/*")))


def _packed(sections: str) -> str:
    """Sections as they are; many of them compressed, for they are much alike: the page's script unpacks them."""
    if len(sections) < MOST_PLAIN:
        return sections
    data = base64.b64encode(zlib.compress(sections.encode(), 9)).decode()
    return (
        f'<div id="sections"><script type="text/plain">{data}</script>'
        "<noscript>The sections of the runs need JavaScript.</noscript></div>\n"
    )


def _legend(table: Table) -> str:
    text = legend(table, with_caveats=False) + (f" {page_table.BARS}" if table.blocks else "")
    return escape(visible(text)).replace("* ", "*&nbsp;").replace("† ", "†&nbsp;")


def _contents(table: Table) -> str:
    if len(table.blocks) < 2:
        return ""
    titles = page_table.short_titles(table.blocks)
    items = "".join(f'<li><a href="#block-{n}">{bdi(title)}</a>' for n, title in enumerate(titles))
    return f'<nav aria-label="Contents"><ul>{items}<li><a href="#runs">Runs</a></ul></nav>\n'


def _pictures(view: View) -> str:
    return "".join(_figure(picture) for draw in PICTURES if (picture := draw(view)))


def _figure(picture: Picture) -> str:
    note = f"<figcaption>{escape(visible(picture.note))}</figcaption>" if picture.note else ""
    detail = f' title="{escape(visible(picture.detail), quote=True)}"' if picture.detail else ""
    return f'<figure class="picture"><h3{detail}>{bdi(picture.title)}</h3>\n{picture.body}{note}</figure>\n'


def _over_blocks(table: Table, views: Sequence[View]) -> str:
    """Pictures of several blocks: accuracy against compute, and curves over an option."""
    groups: dict[tuple[str, str, str], list[View]] = {}
    for view in views:
        groups.setdefault((view.block.data, view.block.fingerprint, view.block.backbone), []).append(view)
    pictures = [picture for group in groups.values() if (picture := score_pictures.compute(group))]
    curves = [picture for found in study.studies(table) if (picture := study.picture(table, found))]
    parts = [("compute", "Compute", pictures), ("studies", "Studies", curves)]
    return "".join(
        f'<section class="block">\n<h2 id="{name}" tabindex="-1">{title}</h2>\n'
        f"{''.join(map(_figure, found))}</section>\n"
        for name, title, found in parts
        if found
    )


def _absent(table: Table) -> str:
    if not table.absent:
        return ""
    heads = "".join(f'<th scope="col">{name}</th>' for name in ("run", "method", "seed", "status", "reason"))
    rows = "".join(
        f'<tr><th scope="row">{bdi(run.run)}</th>'
        + "".join(f"<td>{bdi(part)}</td>" for part in absent_cells(run)[1:])
        + "</tr>\n"
        for run in table.absent
    )
    return f"""<section>
<h2>Not in the tables</h2>
<p class="facts">Runs that are not finished or not evaluated, and files that are damaged.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Runs that are not in the tables"><table class="words">
<caption>Runs that are not in the tables</caption>
<thead><tr>{heads}</tr></thead>
<tbody>
{rows}</tbody>
</table></div>
</section>
"""


def _notes(table: Table) -> str:
    if not table.notes:
        return ""
    notes = "".join(f"<li>{bdi(note)}.</li>" for note in table.notes)
    return f"<section>\n<h2>Notes</h2>\n<ul>{notes}</ul>\n</section>\n"
