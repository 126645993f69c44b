"""`ssl-bench fit`."""

import os

from ssl_bench.cli.commands import import_torch
from ssl_bench.console import say


def main(argv: list[str]) -> int:
    from ssl_bench.api.fit_command import run_fit
    from ssl_bench.config.fit_config import dump, parse_fit
    from ssl_bench.data.files.location import located
    from ssl_bench.data.image_summary import image_summary

    parsed = parse_fit(argv, look=image_summary, locate=located)
    if parsed.print_config:
        print(dump(parsed.config), end="")
        return 0
    done = run_fit(parsed, argv, before_torch=import_torch)
    if done.already_done:
        say("already done: the run of this very configuration is finished")
    if done.code == 0 and not done.said and os.environ.get("RANK", "0") == "0":
        print(done.folder)
    return done.code
