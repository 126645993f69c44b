"""`ssl-bench fit`."""

import os
from pathlib import Path
from typing import Any

from ssl_bench.cli.commands import import_torch
from ssl_bench.console import say
from ssl_bench.errors import UserError


def main(argv: list[str]) -> int:
    from ssl_bench.cli.fit_cost import described
    from ssl_bench.config.fit_config import dump, parse_fit
    from ssl_bench.data.image_summary import check_place, image_summary

    parsed = parse_fit(argv, look=image_summary)
    if parsed.print_config:
        print(dump(parsed.config), end="")
        return 0
    check_place(parsed.config["data"])
    check_runs_named(parsed.config)
    for note in parsed.notes:
        say(note)
    say(described(parsed))
    import_torch()
    from ssl_bench.pretraining.nan_guard import DivergenceError
    from ssl_bench.pretraining.training import fit

    command = ["ssl-bench", "fit", *argv]
    try:
        fitted = fit(parsed.config, parsed.runs, command, parsed.wandb)
    except DivergenceError as error:
        say(f"ssl-bench: {error}")
        return 1
    if fitted.already_done:
        say("already done: the run of this very configuration is finished")
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(fitted.folder)
    return 0


def check_runs_named(config: dict[str, Any]) -> None:
    """Refuse earlier runs and files that are not there, before anything heavy is loaded.

    Raises:
        UserError: Which option names one.
    """
    init = config["init"]
    if init is not None and not Path(init).is_dir():
        raise UserError(f"--init {init}: no such folder; is it the folder of a run that has begun?")
    for option in ("teacher", "tokenizer"):
        named = config["method"].get(option)
        if isinstance(named, str) and named not in ("", "pixels") and not Path(named).exists():
            raise UserError(f"--method.{option} {named}: no such file or folder")
