"""`ssl-bench fit`."""

import os
from pathlib import Path

from ssl_bench.cli.commands import import_torch
from ssl_bench.console import say


def main(argv: list[str]) -> int:
    from ssl_bench.config.fit_config import dump, parse_fit
    from ssl_bench.data.files.content import folder_of_run
    from ssl_bench.records.run import read_run

    parsed = parse_fit(argv)
    if parsed.print_config:
        print(dump(parsed.config), end="")
        return 0
    if parsed.recipe:
        say(f"recipe {parsed.recipe}; --print_config shows every number")
    folder = folder_of_run(parsed.runs, parsed.config)
    if (folder / "run.json").exists() and read_run(folder).status == "finished":
        return _already_done(folder)
    import_torch()
    from ssl_bench.pretraining.nan_guard import DivergenceError
    from ssl_bench.pretraining.training import fit

    command = ["ssl-bench", "fit", *argv]
    try:
        fitted = fit(parsed.config, parsed.runs, command, parsed.wandb)
    except DivergenceError as error:
        say(f"ssl-bench: {error}")
        return 1
    if fitted.already_done:  # by another process, meanwhile
        return _already_done(fitted.folder)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(fitted.folder)
    return 0


def _already_done(folder: Path) -> int:
    say("already done: the run of this very configuration is finished")
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(folder)
    return 0
