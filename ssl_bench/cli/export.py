"""`ssl-bench export`."""

from ssl_bench.cli.commands import command_parser, import_torch, path


def main(argv: list[str]) -> int:
    parser = command_parser("export", "  ssl-bench export runs/mae-... -o exported")
    parser.add_argument("run", metavar="RUN", type=path, help="a finished or imported run's folder")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", type=path, help="the folder to make")
    given = parser.parse_args(argv)
    import_torch()
    from ssl_bench.checkpoints.export import export

    export(given.run, given.output)
    print(given.output)
    return 0
