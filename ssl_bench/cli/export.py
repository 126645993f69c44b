"""`ssl-bench export`."""

import argparse

from ssl_bench.cli.commands import COMMANDS, import_torch, path, refuse


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("ssl-bench export", description=COMMANDS["export"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=path, help="a finished or imported run's folder")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", type=path, help="the folder to make")
    parser.error = refuse(parser)  # type: ignore[method-assign]
    given = parser.parse_args(argv)
    import_torch()
    from ssl_bench.checkpoints.export import export

    export(given.run, given.output)
    print(given.output)
    return 0
