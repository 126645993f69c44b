"""`ssl-bench leaderboard`."""

import argparse
from pathlib import Path

from ssl_bench.cli.commands import COMMANDS, path, refuse
from ssl_bench.errors import UserError


def main(argv: list[str]) -> int:
    from ssl_bench.leaderboard.render import FORMATS, checked_format, leaderboard, write_page

    parser = argparse.ArgumentParser("ssl-bench leaderboard", description=COMMANDS["leaderboard"], allow_abbrev=False)
    parser.add_argument("runs_given", nargs="*", metavar="RUNS", type=path, help="run folders, or folders of them")
    parser.add_argument("--runs", type=path, default=Path("runs"), help="used when no RUNS are named (default: runs)")
    parser.add_argument("--format", help=" | ".join(FORMATS) + " (default: table)")
    parser.add_argument("--by", default="views", help="budget that a block shares: views (default) | epochs | nothing")
    help_output = "write to this file, or for html to index.html in this folder; by default to standard output"
    parser.add_argument("--output", type=path, help=help_output)
    help_images = "figures of the runs on a page: beside it (default) | embed | none; on standard output none"
    parser.add_argument("--images", help=help_images)
    help_published = "CSV or YAML of published numbers to show: method, data, backbone, protocol, value, source"
    parser.add_argument("--published", type=path, metavar="FILE", help=help_published)
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="log it there, with a report; a report.json: that")
    parser.error = refuse(parser)  # type: ignore[method-assign]
    given = parser.parse_args(argv)
    format = given.format or "table"
    checked_format(format)
    runs = given.runs_given or [given.runs]
    if given.wandb is not None:
        from ssl_bench.tracking.wandb_leaderboard import publish

        for option in ("format", "output"):
            if getattr(given, option) is not None:
                raise UserError(f"--{option} is not for --wandb, which writes every format into RUNS/leaderboard")
        return publish(runs, given.wandb, given.by, given.published, given.images or "none")
    if given.output is None:
        print(leaderboard(runs, format, given.by, given.published), end="")
    elif format == "html":
        print(write_page(runs, given.output, given.by, given.published, given.images or "beside"))
    else:
        from ssl_bench.records.files import write_text

        if given.output.is_dir():
            raise UserError(f"--output {given.output} is a folder: name a file in it")
        write_text(given.output, leaderboard(runs, format, given.by, given.published))
        print(given.output)
    return 0
