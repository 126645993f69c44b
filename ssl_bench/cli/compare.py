"""`ssl-bench compare`."""

import argparse

from ssl_bench.cli.commands import COMMANDS, path, refuse


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("ssl-bench compare", description=COMMANDS["compare"], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUNS", type=path, help="run folders, or folders of them")
    parser.add_argument("--protocol", default="", metavar="NAME", help="one protocol, e.g. knn (default: all)")
    parser.add_argument("--format", default="table", help="table | json (default: table)")
    parser.add_argument("--by", default="views", help="budget to share: views (default) | epochs | nothing")
    parser.error = refuse(parser)  # type: ignore[method-assign]
    given = parser.parse_args(argv)
    from ssl_bench.leaderboard.compare import comparison

    print(comparison(given.runs, given.protocol, given.format, given.by), end="")
    return 0
