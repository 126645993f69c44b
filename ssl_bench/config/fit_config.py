"""From signature, recipe, environment, files and flags to one configuration of a run. Torch-free.

Later wins: signature < recipe < environment (`SSL_BENCH_OPTIM__BASE_LR`) < `-c` files in order < flags, wherever they
stand. Every layer is turned into flags in that order, so all of them are checked by the same parser, with the same
messages.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from ssl_bench.config import class_paths, registry, signatures
from ssl_bench.config.constraints import PathText, Seed
from ssl_bench.config.layers import Layers, environment_layer, flag_value, flatten, read_yaml, split_argv, stack
from ssl_bench.config.options import (
    BackboneOptions,
    DataOptions,
    DryRunOptions,
    Optim,
    ProbeOptions,
    TrainerOptions,
    WandbOptions,
)
from ssl_bench.config.parser import Parser, common_arguments, wandb_options
from ssl_bench.config.recipes import CONTINUE, Images, Recipe, fit_to, recipe_for, recipe_named

USUAL = (
    *("method.name", "data.name", "data.root", "backbone.name", "recipe", "init"),
    *("trainer.max_epochs", "data.batch_size", "optim.base_lr", "optim.warmup_epochs", "data.image_size"),
    *("backbone.patch_size", "trainer.accelerator", "trainer.devices", "trainer.precision", "data.num_workers"),
    *("seed", "runs", "config", "wandb", "print_config", "dry-run", "dry_run.memory", "help", "help_all"),
)
EXAMPLES = """
examples:
  ssl-bench fit --method simclr                                    embedded images, minutes on a laptop
  ssl-bench fit --method mae --data cifar10 --data.download true
  ssl-bench fit --method dino --data photos/ --backbone vit_small_patch16_224
  ssl-bench fit --method mae --data cifar10 --trainer.max_epochs 20 --print_config
  ssl-bench fit --method mae --backbone vit_small_patch16_224 --dry-run   memory, largest batch, steps, hours
  ssl-bench fit --method mae --help-all                            every option, the method's own too
"""


def fit_parser(method: str | None, prog: str = "ssl-bench fit", network: registry.Found | None = None) -> Parser:
    """Options of pretraining; with a method, that method's too, and with a class of the user's, that network's."""
    description = "Pretrain a backbone. The last line of standard output is the run's folder."
    usage = f"{prog} --method NAME [--data NAME] [--backbone NAME] [-c FILE] [--GROUP.OPTION VALUE ...]"
    parser = Parser(prog=prog, description=description, usage=usage)
    parser.usual, parser.examples, parser.shown_groups = USUAL, EXAMPLES, ("method",)
    parser.add_argument("--method.name", help="what to pretrain with (ssl-bench list methods)")
    optim, pretrains = Optim(), True
    if method is not None:
        found = registry.find("methods", method)
        pretrains = signatures.takes(found, "backbone")
        cls = signatures.read(found)
        made: Any = next((f.default_factory for f in fields(cls) if f.name == "optim"), Optim)
        optim = made()
        parser.add_class_arguments(cls, "method", skip={"optim"})
    if pretrains:
        parser.add_class_arguments(signatures.read_network(network) if network else BackboneOptions, "backbone")
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(Optim, "optim")
    parser.set_defaults({f"optim.{k}": v for k, v in asdict(optim).items()})
    parser.add_class_arguments(TrainerOptions, "trainer")
    parser.add_class_arguments(ProbeOptions, "probe")
    help_init = "start from the weights of this run, not from random ones"
    parser.add_argument("--init", type=PathText | None, metavar="RUN", help=help_init)
    what = "operations of yours on each view, besides the method's: class paths or plug-ins, with commas"
    parser.add_argument("--operations", type=str | None, metavar="NAME,...", help=what)
    parser.add_argument("--seed", type=Seed, default=0, help="seeds weights, order, views and masks")
    common_arguments(parser)
    parser.add_argument(
        "--recipe", help="numbers to start from; by default the method's for such images (list recipes)"
    )
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration and stop")
    parser.add_class_arguments(DryRunOptions, "dry_run")
    plan = "say what the run will take (memory, largest batch, steps, FLOPs, hours), and stop"
    parser.add_argument("--dry-run", action="store_true", dest="dry-run", help=plan)
    return parser


@cache
def _kept_parser(found: registry.Found) -> Parser:
    """A named method's, made once: most of the time that a plan of many runs takes would go into making it again."""
    return fit_parser(found.name)


NOT_CONFIG = (
    *("config", "runs", "recipe", "print_config", "dry_run", "dry-run", "help_all"),
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
        images: What is known of its images before they are opened.
        chosen: What that recipe was chosen for, for people; empty if it is the set's own or was asked for.
        notes: Lines for people: what of the recipe was left out.
        dry_run: How to say what it will take, where that alone is asked for.
    """

    config: dict[str, Any]
    runs: Path
    recipe: str | None
    wandb: WandbOptions
    print_config: bool
    images: Images = Images()
    chosen: str = ""
    notes: tuple[str, ...] = ()
    dry_run: DryRunOptions | None = None


def parse_fit(
    argv: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    look: Callable[[Mapping[str, Any]], Images] | None = None,
    named_classes: Sequence[str] = (),
    locate: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> FitConfig:
    """Configuration of a `fit` command line.

    Args:
        argv: The command line, less `ssl-bench fit`.
        environ: Environment variables.
        look: Tells what images are from their `name` and `root`, for the choice of a recipe that was not asked for; by
            their name alone when not given.
        named_classes: Class paths that files may have, since the user named them elsewhere.
        locate: Puts the set and its root in place of a path that stands for a set's name, in flat options.

    Raises:
        UserError: An unknown name, a file that cannot be read, one that names a class which the user does not, or
            options that do not go together.
        SystemExit: An unknown option or a bad value (2), or help was asked for (0).
    """
    files, named, flags = split_argv([_dry_run_flag(token) for token in argv])
    given = [("the environment", environment_layer(environ)), *((str(f), flatten(read_yaml(f), str(f))) for f in files)]
    given = [(origin, locate(layer)) for origin, layer in [*given, ("flags", named)]]
    below = stack(given)
    users = below.values
    by_flag = {o: flag_value(flags, f"--{o}") for o in (class_paths.OPERATIONS, class_paths.CALLBACKS)}
    for text in by_flag.values():
        class_paths.name_classes(*class_paths.names_in(text))
    own = [o for o, text in by_flag.items() if text is not None]
    own += [class_paths.TOKENIZER] if flag_value(flags, f"--{class_paths.TOKENIZER}") is not None else []
    _refuse_unnamed_classes(below, own, named_classes)  # before anything is looked up by its name
    method, asked = users.get("method.name"), users.pop("recipe", None)
    set_by_user = users | {name: value for name in WATCHED if (value := flag_value(flags, f"--{name}")) is not None}
    data = {"name": users.get("data.name", DataOptions.name), "root": set_by_user.get("data.root")}
    explains = "--help" in flags or "-h" in flags or "--help-all" in flags
    images = look(data) if look is not None and not explains else Images(str(data["name"]))
    own_recipe = asked in (None, CONTINUE)
    recipe = (recipe_for(method, images) if method else None) if own_recipe else recipe_named(str(asked))
    notes: list[str] = []
    start = _start(method, recipe, images, set_by_user, notes) if method else []
    begins = _begins_with_weights(set_by_user)
    if begins:  # whose network is as it is
        start = [(origin, {k: v for k, v in each.items() if not k.startswith("backbone.")}) for origin, each in start]
    continues = asked == CONTINUE or (begins and asked is None)
    if continues:
        overlay = recipe_named(CONTINUE)
        start.append((f"recipe {CONTINUE}", flatten(read_yaml(overlay.file), str(overlay.file))))
    layers = stack([*start, *given])
    _refuse_unnamed_classes(layers, own, named_classes)
    for key in ("recipe", *([] if method else ["method.name"])):
        layers.values.pop(key, None)
    network = _own_network(layers)
    found = registry.names("methods").get(method or "")
    parser = _kept_parser(found) if found and network is None else fit_parser(method, network=network)
    parser.origins = {k: v for k, v in layers.origins.items() if v != "flags"}
    # The parser knows --print_config for its help alone: jsonargparse would take the flag for one of its own.
    namespace = parser.parse_args([*layers.tokens(), *(flag for flag in flags if flag != "--print_config")])
    if method is None:
        parser.error(f"which method? --method {' | '.join(registry.names('methods'))}")
    config = plain(namespace)
    if network is not None:
        config["backbone"] = _as_arguments(config["backbone"])
    planned = namespace["dry_run"].as_dict()
    Optim(**config["optim"])  # what is wrong between its options is found now
    return FitConfig(
        config=config,
        runs=Path(namespace.runs),
        recipe=" + ".join([*([recipe.name] if recipe else []), *([CONTINUE] if continues else [])]) or None,
        wandb=_wandb(namespace),
        print_config="--print_config" in flags,
        images=images,
        chosen=recipe.why if recipe else "",
        notes=tuple(notes),
        dry_run=DryRunOptions(**planned) if namespace["dry-run"] or planned != asdict(DryRunOptions()) else None,
    )


def _dry_run_flag(token: str) -> str:
    """`--dry-run` and the options of its group, which may be typed with either sign."""
    flag, dot, rest = token.partition(".")
    if flag not in ("--dry-run", "--dry_run"):
        return token
    return f"--dry_run.{rest}" if dot else "--dry-run"


def _wandb(namespace: Namespace) -> WandbOptions:
    """The options of W&B, which `--trainer.loggers wandb` turns on."""
    options = wandb_options(namespace)
    asked = options.mode == "off" and "wandb" in class_paths.names_in(namespace.trainer.loggers)
    return replace(options, mode="auto") if asked else options


def _refuse_unnamed_classes(layers: Layers, own: Sequence[str], named_classes: Sequence[str]) -> None:
    """Class paths of files alone are refused; options that a flag sets (``own``) stand above those of files."""
    values = {name: value for name, value in layers.values.items() if name not in own}
    class_paths.check(values, layers.origins, named_classes)


def _own_network(layers: Layers) -> registry.Found | None:
    """The class that the backbone is of, if it is the user's own; what a file says of its arguments becomes options."""
    name = str(layers.values.get("backbone.name", ""))
    if not class_paths.is_class_path(class_paths.BACKBONE, name):
        return None
    inner = "backbone.timm_args."
    for key in [key for key in layers.values if key.startswith(inner)]:
        option = f"backbone.{key.removeprefix(inner)}"
        layers.values[option], layers.origins[option] = layers.values.pop(key), layers.origins.pop(key)
    layers.values.pop("backbone.timm_args", None)  # none of them
    common = {field.name for field in fields(BackboneOptions)} - set(signatures.NETWORK)
    own = {field.name for field in fields(signatures.read_network(registry.class_at(name, "backbone")))}
    for option in common - own:  # left alone in a configuration that was written out
        layers.values.pop(f"backbone.{option}", None)
    return registry.class_at(name, "backbone")


def _as_arguments(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the user's network as `BackboneOptions` has them: its constructor's in `timm_args`."""
    ours = {name: value for name, value in chosen.items() if name in signatures.NETWORK}
    args = {name: value for name, value in chosen.items() if name not in ours}
    return asdict(BackboneOptions(**ours, timm_args=args or None))


# Options of the user's that say what of a recipe still fits.
WATCHED = (
    *("data.root", "data.image_size", "data.batch_size", "backbone.img_size", "optim.base_lr"),
    *("trainer.accumulate_grad_batches", "trainer.max_epochs", "backbone.pretrained", "backbone.weights"),
)


def _begins_with_weights(given: Mapping[str, Any]) -> bool:
    """Whether a run begins with weights of others rather than random ones."""
    asked = str(given.get("backbone.pretrained") or "").lower()
    hub = str(given.get("backbone.name") or "").startswith(("hf-hub:", "local-dir:"))
    return bool(given.get("backbone.weights")) or asked == "true" or (hub and asked != "false")


def _start(
    method: str, recipe: Recipe | None, images: Images, given: Mapping[str, Any], notes: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """The lowest layer: a recipe, fitted to the images where it was chosen for their size."""
    if recipe is None:
        pretrains = signatures.takes(registry.find("methods", method), "backbone")
        network = given.get("backbone.name", BackboneOptions.name)
        fitted = fit_to({"backbone.name": network} if pretrains else {}, "", images, given)
        return [("the size of the images", fitted)] if fitted else []
    options = flatten(read_yaml(recipe.file), str(recipe.file))
    fitted = {name: value for name, value in recipe.fitted.items() if name in options}
    if recipe.why:
        fitted |= fit_to(options, recipe.name, images, given)
    batches = "trainer.accumulate_grad_batches"
    if options.get(batches, 1) != 1 and batches not in given:
        many = f"--{batches} {options[batches]}"
        if "data.batch_size" in given:
            fitted[batches] = 1
            notes.append(
                f"recipe {recipe.name}: its {many} is left out, as you give the batch: add it if you want both"
            )
        elif "optim.base_lr" in given and batches not in fitted:
            notes.append(
                f"recipe {recipe.name}: its {many} stays, and your rate is multiplied for all images of a step"
            )
    return [(f"recipe {recipe.name}", options | fitted)]


def plain(namespace: Namespace) -> dict[str, Any]:
    """The configuration as lists, dicts, text and numbers."""
    tree = {k: v for k, v in namespace.as_dict().items() if k not in NOT_CONFIG}
    result: dict[str, Any] = json.loads(json.dumps(tree))
    return result


def dump(config: Mapping[str, Any]) -> str:
    """YAML that `-c` reads back."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True, width=120)
