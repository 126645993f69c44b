"""`ssl-bench completion SHELL`: a script that completes commands, options and names. Torch-free."""

import argparse

import shtab

from ssl_bench.checkpoints.official.layout import FORMATS as LAYOUTS
from ssl_bench.cli.commands import COMMANDS, command_parser
from ssl_bench.cli.list import KINDS
from ssl_bench.config import registry, signatures
from ssl_bench.config.fit_config import fit_parser
from ssl_bench.config.suites import suites
from ssl_bench.data.catalogue import names
from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.render import FORMATS
from ssl_bench.models.architectures import TINY, timm_names

SHELLS = tuple(shtab.SUPPORTED_SHELLS)


def script(shell: str) -> str:
    """Completion script for a shell; `eval "$(ssl-bench completion bash)"`."""
    top = argparse.ArgumentParser("ssl-bench")
    commands = top.add_subparsers(dest="command")
    parsers = {name: commands.add_parser(name, help=text) for name, text in COMMANDS.items()}
    _options(parsers["fit"], fit_parser(None))
    for found in registry.names("methods").values():
        _fields(parsers["fit"], "method", signatures.read(found))
    backbones = [*TINY, *(name for names in timm_names().values() for name in names)]
    for command in ("fit", "evaluate"):
        parsers[command].add_argument("--data", choices=names())
    parsers["fit"].add_argument("--method", choices=list(registry.names("methods")))
    parsers["fit"].add_argument("--backbone", choices=backbones)
    parsers["fit"].add_argument("--recipe", choices=[name for name, _ in registry.recipes()])
    parsers["evaluate"].add_argument("--protocols", choices=list(registry.names("evaluations")))
    for name, found in registry.names("evaluations").items():
        _fields(parsers["evaluate"], name.replace("-", "_"), signatures.read(found))
    parsers["evaluate"].add_argument("--suite", choices=list(suites()))
    parsers["import"].add_argument("file").complete = shtab.FILE  # type: ignore[attr-defined]
    parsers["import"].add_argument("--format", choices=LAYOUTS)
    parsers["import"].add_argument("--backbone", choices=backbones)
    for option in ("--heads", "--img-size", "--data"):
        parsers["import"].add_argument(option)
    for option in ("--encoder-only", "--verbose"):
        parsers["import"].add_argument(option, action="store_true")
    parsers["export"].add_argument("run").complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    for command in ("import", "export"):
        parsers[command].add_argument("-o", "--output").complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    for command in ("evaluate", "leaderboard", "compare"):
        parsers[command].add_argument("runs", nargs="*").complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    parsers["leaderboard"].add_argument("--format", choices=FORMATS)
    parsers["leaderboard"].add_argument("--images", choices=("beside", "embed", "none"))
    for option in ("--output", "--published"):
        parsers["leaderboard"].add_argument(option).complete = shtab.FILE  # type: ignore[attr-defined]
    parsers["compare"].add_argument("--protocol", choices=list(registry.names("evaluations")))
    parsers["compare"].add_argument("--format", choices=("table", "json"))
    parsers["list"].add_argument("kind", choices=KINDS)
    parsers["completion"].add_argument("shell", choices=SHELLS)
    for command in ("fit", "evaluate", "benchmark"):
        parsers[command].add_argument("-c", "--config").complete = shtab.FILE  # type: ignore[attr-defined]
    return str(shtab.complete(top, shell=shell))


def _options(parser: argparse.ArgumentParser, source: argparse.ArgumentParser) -> None:
    """The other parser's options that have a value of their own."""
    taken = {"--help", "--config", "--method", "--data", "--backbone", "--recipe", "--optim", "--trainer", "--probe"}
    for action in source._actions:
        long = [option for option in action.option_strings if option.startswith("--") and option not in taken]
        if long and "-h" not in action.option_strings:
            parser.add_argument(*long, choices=action.choices, help="")


def _fields(parser: argparse.ArgumentParser, group: str, cls: type) -> None:
    for name in getattr(cls, "__dataclass_fields__", {}):
        flag = f"--{group}.{name}"
        if name != "optim" and flag not in parser._option_string_actions:
            parser.add_argument(flag)


def main(argv: list[str]) -> int:
    folder = "~/.local/share/bash-completion/completions"
    parser = command_parser("completion", f"  ssl-bench completion bash > {folder}/ssl-bench")
    parser.add_argument("shell", metavar="|".join(SHELLS), help="the shell")
    shell = parser.parse_args(argv).shell
    if shell not in SHELLS:
        raise UserError(f"no completion for {shell!r}{near(shell, SHELLS)} ({', '.join(SHELLS)})")
    print(script(shell))
    return 0
