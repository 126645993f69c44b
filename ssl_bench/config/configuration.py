"""From signature, recipe, environment, files and flags to one configuration. Torch-free.

Later wins: signature < recipe < environment (`SSL_BENCH_OPTIM__BASE_LR`) < `-c` files in order < flags, wherever they
stand. Every layer is turned into flags in that order, so all of them are checked by the same parser, with the same
messages.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace

from ssl_bench.config import registry, signatures
from ssl_bench.config.options import BackboneOptions, DataOptions, Optim, ProbeOptions, TrainerOptions, WandbOptions
from ssl_bench.errors import UserError, near
from ssl_bench.records.run_folder import data_title

ENVIRONMENT = "SSL_BENCH_"
NAMED = ("method", "backbone", "data")  # `--data cifar10` is short for `--data.name cifar10`


class Parser(ArgumentParser):  # type: ignore[misc]
    """jsonargparse's parser with messages of one line.

    Args:
        origins: Option -> file or variable it was read from, for messages.
    """

    origins: Mapping[str, str] = {}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)  # an abbreviation is a typo waiting for a second option

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One line with the nearest known option, exit code 2."""
        options = [o.removeprefix("--") for a in self._actions for o in a.option_strings if o.startswith("--")]
        message = re.sub(r"\s+", " ", message).strip()
        unknown = re.search(r"(?:[Uu]nrecognized arguments: --|[Oo]ption '|does not accept option ')([\w.-]+)", message)
        bad = re.search(r"(?:Parser key|argument) \"?-{0,2}([\w.]+)\"?: (.*)", message)
        if unknown:
            name = unknown[1]
            message = f"no option --{name}{near(name, options)}"
        elif bad:
            name = bad[1]
            message = f"--{name}: {_short(bad[2])}"
        else:
            name = ""
        origin = f" (from {self.origins[name]})" if name in self.origins else ""
        self.exit(2, f"{self.prog}: error: {message}{origin}\n")
        raise AssertionError


def _short(message: str) -> str:
    """A type error of jsonargparse without its inner path."""
    message = re.sub(r"(?:Problem with given (?:class_path|value).*?:\s*)|(?:Does not validate.*?:\s*)", "", message)
    return message.partition(" Given value type")[0][:200]


@dataclass(frozen=True)
class Layers:
    """Options from everything but flags, flat, later over earlier.

    Args:
        values: `optim.base_lr` -> value.
        origins: The same keys -> the file or variable that set them.
    """

    values: dict[str, Any]
    origins: dict[str, str]

    def tokens(self) -> list[str]:
        """As flags."""
        texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.values.items()}
        return [f"--{key}={text}" for key, text in texts.items()]


def flatten(tree: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """`{data: cifar10, optim: {base_lr: 1}}` -> `{data.name: cifar10, optim.base_lr: 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if not isinstance(key, str):
            raise UserError(f"{origin}: option names are text, not {key!r}")
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": v for inner, v in flatten(value, origin).items()}
        else:
            flat[f"{key}.name" if key in NAMED else key] = value
    return flat


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of options.

    Raises:
        UserError: It is missing, is not YAML, or is no mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        raise UserError(f"{path} is not YAML{f', line {where.line + 1}' if where else ''}") from None
    if not isinstance(tree, dict) and tree is not None:
        raise UserError(f"{path} holds no options: it must be a mapping such as `optim: {{base_lr: 0.1}}`")
    return tree or {}


def environment_layer(environ: Mapping[str, str]) -> dict[str, Any]:
    """`SSL_BENCH_OPTIM__BASE_LR=1` -> `{optim.base_lr: "1"}`."""
    chosen = {k: v for k, v in environ.items() if k.startswith(ENVIRONMENT)}
    return {k.removeprefix(ENVIRONMENT).lower().replace("__", "."): v for k, v in chosen.items()}


def stack(layers: Iterable[tuple[str, dict[str, Any]]]) -> Layers:
    """Layers over one another; one that names another backbone drops what earlier ones said of theirs."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        layer = {f"{k}.name" if k in NAMED else k: v for k, v in layer.items()}
        named = layer.get("backbone.name")
        if named is not None and values.get("backbone.name", named) != named:
            for key in [k for k in values if k.startswith("backbone.")]:
                del values[key], origins[key]
        values |= layer
        origins |= dict.fromkeys(layer, origin)
    return Layers(values, origins)


def split_argv(argv: Sequence[str]) -> tuple[list[Path], dict[str, Any], list[str]]:
    """(config files, names given by flags, other flags with short names written out)."""
    files: list[Path] = []
    named: dict[str, Any] = {}
    rest: list[str] = []
    queue = list(argv)
    peeked = (*NAMED, *(f"{name}.name" for name in NAMED), "recipe")
    while queue:
        token = queue.pop(0)
        flag, equals, value = token.partition("=")
        key = flag.removeprefix("--")
        if flag in ("-c", "--config") or (flag.startswith("--") and key in peeked):
            if not equals:
                if not queue:
                    raise UserError(f"{flag} needs a value")
                value = queue.pop(0)
            if flag in ("-c", "--config"):
                files.append(Path(value))
            else:
                named[f"{key}.name" if key in NAMED else key] = value
        else:
            rest.append(token)
    return files, named, rest


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


def common_arguments(parser: Parser) -> None:
    """What fit, evaluate and benchmark share."""
    parser.add_argument("-c", "--config", action="append", metavar="FILE", help="YAML of options; repeat to layer")
    parser.add_argument("--runs", default="runs", help="where run folders live")
    modes = ["off", "auto", "online", "offline"]
    parser.add_argument("--wandb", default="off", choices=modes, help="log to W&B as well")
    parser.add_argument("--wandb_project", default="ssl-bench", help="W&B project, or entity/project")
    parser.add_argument("--wandb_entity", type=str | None, help="W&B user or team; by default the key's own")
    parser.add_argument("--wandb_group", type=str | None, help="under which W&B shows runs together")
    parser.add_argument("--wandb_checkpoints", type=bool, default=False, help="weights and checkpoint as an artifact")


def wandb_options(namespace: Namespace) -> WandbOptions:
    """The W&B options among the parsed ones.

    Raises:
        UserError: The project is named in a way that W&B does not know.
    """
    entity, slash, project = namespace.wandb_project.rpartition("/")
    if not project or "/" in entity or (slash and not entity):
        raise UserError(f"--wandb_project {namespace.wandb_project}: PROJECT, or ENTITY/PROJECT")
    if entity and namespace.wandb_entity not in (None, entity):
        raise UserError(
            f"--wandb_project {namespace.wandb_project} and --wandb_entity {namespace.wandb_entity} name two owners: "
            "give one of them"
        )
    owner = namespace.wandb_entity or entity or None
    return WandbOptions(namespace.wandb, project, owner, namespace.wandb_group, namespace.wandb_checkpoints)


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


def parse_fit(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> FitConfig:
    """Configuration of a `fit` command line.

    Raises:
        UserError: An unknown name or a file that cannot be read.
        SystemExit: An unknown option or a bad value (2), or help was asked for (0).
    """
    files, named, flags = split_argv(argv)
    given = [("the environment", environment_layer(environ)), *((str(f), flatten(read_yaml(f), str(f))) for f in files)]
    given.append(("flags", named))
    peek = stack(given).values
    method = peek.get("method.name")
    root = _flag(flags, "--data.root") or peek.get("data.root")
    data = {"name": peek.get("data.name", DataOptions.name), "root": root}
    recipe = recipe_for(method, data, peek.pop("recipe", None)) if method else None
    start = [(f"recipe {recipe[0]}", flatten(read_yaml(recipe[1]), str(recipe[1])))] if recipe else []
    layers = stack([*start, *given])
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


def _flag(flags: Sequence[str], name: str) -> str | None:
    """Value of one flag among unparsed ones."""
    for i, token in enumerate(flags):
        if token == name and i + 1 < len(flags):
            return flags[i + 1]
        if token.startswith(f"{name}="):
            return token.partition("=")[2]
    return None
