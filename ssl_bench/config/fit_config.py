"""From signature, recipe, environment, files and flags to one configuration of a run. Torch-free.

Later wins: signature < recipe < environment (`SSL_BENCH_OPTIM__BASE_LR`) < `-c` files in order < flags, wherever they
stand. Every layer is turned into flags in that order, so all of them are checked by the same parser, with the same
messages.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from ssl_bench.config import class_paths, registry, signatures
from ssl_bench.config.layers import environment_layer, flag_value, flatten, read_yaml, split_argv, stack
from ssl_bench.config.options import BackboneOptions, DataOptions, Optim, ProbeOptions, TrainerOptions, WandbOptions
from ssl_bench.config.parser import Parser, common_arguments, wandb_options
from ssl_bench.errors import UserError, near
from ssl_bench.records.run_folder import data_title


def recipe_for(method: str, data: Mapping[str, Any], asked: str | None) -> tuple[str, Path] | None:
    """The recipe asked for, else the method's for these images, else the method's own."""
    known = dict(registry.recipes())
    if asked:
        if asked.endswith((".yaml", ".yml")):
            return Path(asked).stem, Path(asked)
        if asked not in known:
            raise UserError(f"no recipe {asked!r}{near(asked, known)} (ssl-bench list recipes)")
        return asked, known[asked]
    own = f"{method}-{data_title(dict(data))}"  # a folder called `finetune` must not make simclrv2 another method
    for name in (own if own not in registry.names("methods") else method, method):
        if name in known:
            return name, known[name]
    return None


def fit_parser(method: str | None, prog: str = "ssl-bench fit") -> Parser:
    """Options of pretraining; with a method, that method's too."""
    description = "Pretrain a backbone. The last line of standard output is the run's folder."
    usage = f"{prog} --method NAME [--data NAME] [--backbone NAME] [-c FILE] [--GROUP.OPTION VALUE ...]"
    parser = Parser(prog=prog, description=description, usage=usage)
    parser.add_argument("--method.name", help="what to pretrain with; --method NAME for short (ssl-bench list methods)")
    optim, pretrains = Optim(), True
    if method is not None:
        found = registry.find("methods", method)
        pretrains = signatures.takes(found, "backbone")
        cls = signatures.read(found)
        made: Any = next((f.default_factory for f in fields(cls) if f.name == "optim"), Optim)
        optim = made()
        parser.add_class_arguments(cls, "method", skip={"optim"})
    if pretrains:
        parser.add_class_arguments(BackboneOptions, "backbone")
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(Optim, "optim")
    parser.set_defaults({f"optim.{k}": v for k, v in asdict(optim).items()})
    parser.add_class_arguments(TrainerOptions, "trainer")
    parser.add_class_arguments(ProbeOptions, "probe")
    help_init = "start from the weights of this run, not from random ones"
    parser.add_argument("--init", type=str | None, metavar="RUN", help=help_init)
    parser.add_argument("--seed", type=int, default=0, help="seeds weights, order, views and masks")
    common_arguments(parser)
    parser.add_argument("--recipe", help="numbers to start from; by default the method's for the data, or as published")
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration and stop")
    return parser


NOT_CONFIG = (
    *("config", "runs", "recipe", "print_config"),
    *("wandb", "wandb_project", "wandb_entity", "wandb_group", "wandb_checkpoints"),
)


@dataclass(frozen=True)
class FitConfig:
    """A parsed `fit` command.

    Args:
        config: The whole configuration, plain types: what config.yaml holds and the identity is made of.
        runs: Where run folders live.
        recipe: Name of the recipe it started from, for people.
        wandb: Whether and where it is logged to W&B.
        print_config: Only print it.
    """

    config: dict[str, Any]
    runs: Path
    recipe: str | None
    wandb: WandbOptions
    print_config: bool


def parse_fit(
    argv: Sequence[str], environ: Mapping[str, str] = os.environ, named_classes: Sequence[str] = ()
) -> FitConfig:
    """Configuration of a `fit` command line.

    Args:
        argv: The command line.
        environ: Variables of the environment.
        named_classes: Class paths that files may have, since the user named them elsewhere.

    Raises:
        UserError: An unknown name, a file that cannot be read, or one that names a class which the user does not.
        SystemExit: An unknown option or a bad value (2), or help was asked for (0).
    """
    files, named, flags = split_argv(argv)
    given = [("the environment", environment_layer(environ)), *((str(f), flatten(read_yaml(f), str(f))) for f in files)]
    given.append(("flags", named))
    peek = stack(given).values
    method = peek.get("method.name")
    root = flag_value(flags, "--data.root") or peek.get("data.root")
    data = {"name": peek.get("data.name", DataOptions.name), "root": root}
    recipe = recipe_for(method, data, peek.pop("recipe", None)) if method else None
    start = [(f"recipe {recipe[0]}", flatten(read_yaml(recipe[1]), str(recipe[1])))] if recipe else []
    layers = stack([*start, *given])
    own = [value for value in (flag_value(flags, f"--{class_paths.TOKENIZER}"),) if value is not None]
    unsaid = {name: value for name, value in layers.values.items() if not (own and name == class_paths.TOKENIZER)}
    class_paths.check(unsaid, layers.origins, named_classes)
    for key in ("recipe", *([] if method else ["method.name"])):
        layers.values.pop(key, None)
    parser = fit_parser(method)
    parser.origins = {k: v for k, v in layers.origins.items() if v != "flags"}
    # The parser knows --print_config for its help alone: jsonargparse would take the flag for one of its own.
    namespace = parser.parse_args([*layers.tokens(), *(flag for flag in flags if flag != "--print_config")])
    if method is None:
        parser.error(f"which method? --method {' | '.join(registry.names('methods'))}")
    return FitConfig(
        config=plain(namespace),
        runs=Path(namespace.runs),
        recipe=recipe[0] if recipe else None,
        wandb=wandb_options(namespace),
        print_config="--print_config" in flags,
    )


def plain(namespace: Namespace) -> dict[str, Any]:
    """The configuration as lists, dicts, text and numbers."""
    tree = {k: v for k, v in namespace.as_dict().items() if k not in NOT_CONFIG}
    result: dict[str, Any] = json.loads(json.dumps(tree))
    return result


def dump(config: Mapping[str, Any]) -> str:
    """YAML that `-c` reads back."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
