"""`ssl-bench fit`."""

import os

from ssl_bench.cli.commands import import_torch
from ssl_bench.console import say
from ssl_bench.errors import RunFailed


def main(argv: list[str]) -> int:
    from ssl_bench.config.fit_config import dump, parse_fit
    from ssl_bench.records.run import read_run
    from ssl_bench.records.run_folder import run_folder
    from ssl_bench.runtime.launch import adopt_launcher, requested_processes, run_processes

    parsed = parse_fit(argv)
    if parsed.print_config:
        print(dump(parsed.config), end="")
        return 0
    launch = adopt_launcher()
    folder = run_folder(parsed.runs, parsed.config)
    done = (folder / "run.json").exists() and read_run(folder).status == "finished"
    if done:
        say("already done: the run of this very configuration is finished")
    else:
        trainer = parsed.config["trainer"]
        count = 1 if launch else requested_processes(trainer["devices"], trainer["accelerator"])
        if parsed.recipe and (launch is None or launch.launcher != "--trainer.devices"):
            say(f"recipe {parsed.recipe}; --print_config shows every number")
        if count > 1 or (launch is None and trainer["num_nodes"] > 1):
            return run_processes(["fit", *argv], count, trainer["num_nodes"])
        import_torch()
        from ssl_bench.pretraining.nan_guard import DivergenceError
        from ssl_bench.pretraining.training import fit

        try:
            fit(parsed.config, parsed.runs, ["ssl-bench", "fit", *argv], parsed.wandb)
        except DivergenceError as error:
            raise RunFailed(str(error)) from None
    if os.environ.get("RANK", "0") == "0":
        print(folder)
    return 0
