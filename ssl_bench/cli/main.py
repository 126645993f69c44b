"""The command line. Torch-free until a command needs it: help, lists, plans and the leaderboard answer at once."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import ssl_bench
from ssl_bench.errors import UserError, near

COMMANDS = {
    "fit": "pretrain a backbone",
    "evaluate": "measure what pretrained backbones, or baselines, have learned",
    "benchmark": "methods x data x backbones x seeds x any option: fit, evaluate, leaderboard; skips what is done",
    "leaderboard": "one table of all results: terminal, CSV, Markdown, JSON, LaTeX, a web page",
    "compare": "which differences between methods are significant, image by image; ranks over protocols",
    "figures": "pictures of runs: reconstructions, attention, neighbours, a map of features, masks, views",
    "import": "a checkpoint of an official repository becomes a run folder",
    "export": "a run's backbone as a folder that timm loads, with a model card",
    "list": "methods, evaluations, data, backbones, recipes",
    "completion": "a script that completes commands and options in your shell",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; give its exit code: 0, 1 (it failed), 2 (bad input), 130 (Ctrl-C)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(argv)
    except UserError as error:
        print(f"ssl-bench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ssl-bench: interrupted; the same command continues where this one stopped", file=sys.stderr)
        return 130
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        print(f"ssl-bench: error: {error.filename}: {error.strerror}; choose another place", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `ssl-bench list backbones | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2


def _dispatch(argv: list[str]) -> int:
    top = argparse.ArgumentParser("ssl-bench", description=ssl_bench.__doc__, allow_abbrev=False)
    top.add_argument("--version", action="version", version=f"ssl-bench {ssl_bench.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, help_text in COMMANDS.items():
        commands.add_parser(name, help=help_text, add_help=False)
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise UserError(f"no command {argv[0]!r}{near(argv[0], COMMANDS)} ({', '.join(COMMANDS)})")
    if not argv or argv[0] not in COMMANDS:
        top.parse_args(argv)
        top.print_help()
        return 0
    run: dict[str, Callable[[list[str]], int]] = {
        "fit": _fit,
        "evaluate": _evaluate,
        "benchmark": _benchmark,
        "leaderboard": _leaderboard,
        "compare": _compare,
        "figures": _figures,
        "import": _import,
        "export": _export,
        "list": _list,
        "completion": _completion,
    }
    return run[argv[0]](argv[1:])


def _fit(argv: list[str]) -> int:
    from ssl_bench.config.configuration import dump, parse_fit
    from ssl_bench.console import say

    parsed = parse_fit(argv)
    if parsed.print_config:
        print(dump(parsed.config), end="")
        return 0
    if parsed.recipe:
        say(f"recipe {parsed.recipe}; --print_config shows every number")
    _import_torch()
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


def _evaluate(argv: list[str]) -> int:
    from ssl_bench.evaluation.evaluate_command import parse_evaluate

    parsed = parse_evaluate(argv)
    _import_torch()
    from ssl_bench.evaluation.evaluate_command import run_evaluate

    for line in run_evaluate(parsed):
        print(line, flush=True)
    return 0


def _benchmark(argv: list[str]) -> int:
    from ssl_bench.benchmark.runner import parse_benchmark, run_benchmark

    return run_benchmark(parse_benchmark(argv))


def _leaderboard(argv: list[str]) -> int:
    from ssl_bench.leaderboard.render import FORMATS, checked_format, leaderboard, write_page

    parser = argparse.ArgumentParser("ssl-bench leaderboard", description=COMMANDS["leaderboard"], allow_abbrev=False)
    parser.add_argument("runs_given", nargs="*", metavar="RUNS", type=Path, help="run folders, or folders of them")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="used when no RUNS are named (default: runs)")
    parser.add_argument("--format", help=" | ".join(FORMATS) + " (default: table)")
    parser.add_argument("--by", default="views", help="budget that a block shares: views (default) | epochs | nothing")
    help_output = "write to this file, or for html to index.html in this folder; by default to standard output"
    parser.add_argument("--output", type=Path, help=help_output)
    help_images = "figures of the runs on a page: beside it (default) | embed | none; on standard output none"
    parser.add_argument("--images", help=help_images)
    help_published = "CSV or YAML of published numbers to show: method, data, backbone, protocol, value, source"
    parser.add_argument("--published", type=Path, metavar="FILE", help=help_published)
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="log it there, with a report; a report.json: that")
    parser.error = _refuse(parser)  # type: ignore[method-assign]
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


def _compare(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("ssl-bench compare", description=COMMANDS["compare"], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUNS", type=Path, help="run folders, or folders of them")
    parser.add_argument("--protocol", default="", metavar="NAME", help="one protocol, e.g. knn (default: all)")
    parser.add_argument("--format", default="table", help="table | json (default: table)")
    parser.add_argument("--by", default="views", help="budget to share: views (default) | epochs | nothing")
    parser.error = _refuse(parser)  # type: ignore[method-assign]
    given = parser.parse_args(argv)
    from ssl_bench.leaderboard.compare import comparison

    print(comparison(given.runs, given.protocol, given.format, given.by), end="")
    return 0


def _figures(argv: list[str]) -> int:
    from ssl_bench.config.configuration import environment_layer, wandb_options

    parser = argparse.ArgumentParser("ssl-bench figures", description=COMMANDS["figures"], allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="run folders, or folders of them")
    parser.add_argument("--only", metavar="NAME,...", help="some of the pictures (default: all that make sense)")
    parser.add_argument("--images", type=int, default=8, metavar="N", help="images in each picture (default: 8)")
    parser.add_argument("--data", metavar="NAME", help="other images than the run's own; an imported run has none")
    parser.add_argument("--data.root", dest="root", metavar="DIR", help="where the images are on this machine")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--force", action="store_true", help="draw again what is current")
    modes = ["off", "auto", "online", "offline"]
    parser.add_argument("--wandb", default="off", choices=modes, help="send them to the run's own W&B run")
    parser.add_argument("--wandb_project", default="ssl-bench", help="W&B project, or entity/project")
    parser.add_argument("--wandb_entity", help="W&B user or team; by default the key's own")
    parser.add_argument("--wandb_group", help="under which W&B shows runs together")
    help_weights = "weights and checkpoint as an artifact"
    parser.add_argument(
        "--wandb_checkpoints", type=str.lower, choices=["true", "false"], default="false", help=help_weights
    )
    parser.error = _refuse(parser)  # type: ignore[method-assign]
    known = environment_layer(os.environ)
    given = parser.parse_args([*(f"--{name}={known[name]}" for name in known if name.startswith("wandb")), *argv])
    given.wandb_checkpoints = given.wandb_checkpoints == "true"
    wandb = wandb_options(cast(Any, given))
    _import_torch()
    from ssl_bench.figures.write import Figures, write_figures
    from ssl_bench.tracking.wandb_results import logged

    only = [name.strip() for name in given.only.split(",") if name.strip()] if given.only is not None else None
    data = {key: value for key, value in (("name", given.data), ("root", given.root)) if value is not None}
    for folder in write_figures(Figures(given.runs, only, given.images, data, given.device, given.force)):
        with logged(folder.parent, wandb):  # all that the run folder holds by now
            pass
        print(folder, flush=True)
    return 0


def _import(argv: list[str]) -> int:
    from ssl_bench.checkpoints.official.layout import FORMATS

    parser = argparse.ArgumentParser(
        "ssl-bench import",
        usage="ssl-bench import FILE --format FORMAT -o RUN [--OPTION VALUE ...] [--method.OPTION VALUE ...]",
        description="Make a run folder of an official checkpoint, whole or encoder only. Files are read as data:"
        " nothing in them is run. The last line of standard output is the folder.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help=".pth, .safetensors, or a folder that timm can load")
    parser.add_argument("--format", required=True, help=" | ".join(FORMATS))
    parser.add_argument("-o", "--output", required=True, metavar="RUN", type=Path, help="the run folder to make")
    parser.add_argument("--backbone", metavar="NAME", help="for --format timm: timm's name of the network")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads, where the file does not say")
    parser.add_argument("--img-size", type=int, metavar="N", help="pixels of the input, where the file does not say")
    parser.add_argument("--encoder-only", action="store_true", help="leave what only pretraining needs")
    parser.add_argument("--data", default="unknown", metavar="TITLE", help="what it was pretrained on, for the record")
    parser.add_argument("--verbose", action="store_true", help="list every name, not one of each reason")
    parser.error = _refuse(parser)  # type: ignore[method-assign]
    method: dict[str, str] = {}
    queue, rest = list(argv), list[str]()
    while queue:
        token = queue.pop(0)
        option, equals, value = token.partition("=")
        if not option.startswith("--method."):
            rest.append(token)
        elif not (equals or queue):
            raise UserError(f"{option} needs a value")
        else:
            method[option.removeprefix("--method.")] = value if equals else queue.pop(0)
    given = parser.parse_args(rest)
    for option in ("heads", "img_size"):
        if getattr(given, option) is not None and getattr(given, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} {getattr(given, option)} must be at least 1")
    _import_torch()
    from ssl_bench.checkpoints.import_checkpoint import Import, import_checkpoint

    own = {name: value for name, value in vars(given).items() if name not in ("output", "verbose")}
    imported = import_checkpoint(Import(out=given.output, method=method, command=tuple(argv), **own))
    print(f"{given.file}: {imported.kind}; {imported.network}")
    for line in imported.report.lines(given.verbose):
        print(line)
    if imported.whole:
        print(f"to continue it: ssl-bench fit -c {given.output}/config.yaml --init {given.output}")
    print(given.output)
    return 0


def _export(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("ssl-bench export", description=COMMANDS["export"], allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="a finished or imported run's folder")
    parser.add_argument("-o", "--output", required=True, metavar="DIR", type=Path, help="the folder to make")
    parser.error = _refuse(parser)  # type: ignore[method-assign]
    given = parser.parse_args(argv)
    _import_torch()
    from ssl_bench.checkpoints.export import export

    export(given.run, given.output)
    print(given.output)
    return 0


def _list(argv: list[str]) -> int:
    from ssl_bench.cli.list import KINDS, listing

    parser = argparse.ArgumentParser("ssl-bench list", description="What there is.", allow_abbrev=False)
    parser.add_argument("kind", metavar="KIND", help=" | ".join(KINDS))
    parser.error = _refuse(parser)  # type: ignore[method-assign]
    kind = parser.parse_args(argv).kind
    if kind not in KINDS:
        raise UserError(f"nothing called {kind!r}{near(kind, KINDS)} ({', '.join(KINDS)})")
    for line in listing(kind):
        print(line)
    return 0


def _completion(argv: list[str]) -> int:
    from ssl_bench.cli.completion import SHELLS, script

    parser = argparse.ArgumentParser("ssl-bench completion", description=COMMANDS["completion"], allow_abbrev=False)
    parser.add_argument("shell", metavar="SHELL", help=" | ".join(SHELLS))
    parser.error = _refuse(parser)  # type: ignore[method-assign]
    shell = parser.parse_args(argv).shell
    if shell not in SHELLS:
        raise UserError(f"no completion for {shell!r}{near(shell, SHELLS)} ({', '.join(SHELLS)})")
    print(script(shell))
    return 0


def _refuse(parser: argparse.ArgumentParser) -> Any:
    """argparse's message in one line, with the nearest option."""

    def error(message: str) -> None:
        options = [o for action in parser._actions for o in action.option_strings]
        unknown = message.partition("unrecognized arguments: ")[2].split()
        raise UserError(message + (near(unknown[0], options) if unknown else ""))

    return error


def _import_torch() -> None:
    """Say what the seconds are for."""
    if sys.stderr.isatty():
        print("loading torch ...", end="\r", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
