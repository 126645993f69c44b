"""`ssl-bench compare`."""

from ssl_bench.cli.commands import command_parser, path, table_options
from ssl_bench.runtime.collection import uncollected

EXAMPLES = """\
  ssl-bench compare runs                  every protocol, and mean ranks over them
  ssl-bench compare runs --protocol knn   one protocol"""


@uncollected()
def main(argv: list[str]) -> int:
    parser = command_parser("compare", EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUNS", type=path, help="run folders, or folders of them")
    parser.add_argument("--protocol", default="", metavar="NAME", help="one protocol, e.g. knn (default: all)")
    parser.add_argument("--format", default="table", metavar="table|json", help="default: table")
    table_options(parser)
    given = parser.parse_args(argv)
    from ssl_bench.leaderboard.compare import comparison

    print(comparison(given.runs, given.protocol, given.format, given.by, given.branches), end="")
    return 0
