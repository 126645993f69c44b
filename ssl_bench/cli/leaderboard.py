"""`ssl-bench leaderboard`."""

from pathlib import Path

from ssl_bench.cli.commands import command_parser, path, table_options
from ssl_bench.errors import UserError
from ssl_bench.runtime.collection import uncollected

EXAMPLES = """\
  ssl-bench leaderboard                                    the runs in ./runs, as a table of 100 columns
  ssl-bench leaderboard study --format html --output page  page/index.html, which opens from disk
  ssl-bench leaderboard --format latex --by views          a table for each budget"""


@uncollected()
def main(argv: list[str]) -> int:
    from ssl_bench.leaderboard.render import FORMATS, checked_format, leaderboard, write_page

    parser = command_parser("leaderboard", EXAMPLES)
    parser.add_argument("runs_given", nargs="*", metavar="RUNS", type=path, help="run folders, or folders of them")
    runs_help = "where run folders live, when no RUNS are given (default: runs)"
    parser.add_argument("--runs", type=path, default=Path("runs"), metavar="PATH", help=runs_help)
    parser.add_argument("--format", metavar="|".join(FORMATS), help="default: table")
    table_options(parser)
    output_help = "write to this file, or for html to index.html in this folder (default: standard output)"
    parser.add_argument("--output", type=path, metavar="PATH", help=output_help)
    images_help = "pictures of the runs: in a folder beside the page, inside it, or none (default: beside)"
    parser.add_argument("--images", metavar="beside|embed|none", help=images_help)
    published_help = "CSV or YAML of published numbers to show: method, data, backbone, protocol, value, source"
    parser.add_argument("--published", type=path, metavar="FILE", help=published_help)
    wandb_help = "log all formats and a report to W&B; for RUNS/leaderboard/report.json, that report alone"
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help=wandb_help)
    given = parser.parse_args(argv)
    format = given.format or "table"
    checked_format(format)
    runs = given.runs_given or [given.runs]
    if given.wandb is not None:
        from ssl_bench.tracking.wandb_leaderboard import publish

        for option in ("format", "output"):
            if getattr(given, option) is not None:
                raise UserError(f"--{option} is not for --wandb, which writes every format into RUNS/leaderboard")
        return publish(runs, given.wandb, given.by, given.published, given.images or "none", given.branches)
    if given.output is None:
        print(leaderboard(runs, format, given.by, given.published, given.branches), end="")
    elif format == "html":
        print(write_page(runs, given.output, given.by, given.published, given.images or "beside", given.branches))
    else:
        from ssl_bench.records.files import write_text

        if given.output.is_dir():
            raise UserError(f"--output {given.output} is a folder: name a file in it")
        write_text(given.output, leaderboard(runs, format, given.by, given.published, given.branches))
        print(given.output)
    return 0
