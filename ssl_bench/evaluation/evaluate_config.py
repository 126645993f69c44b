"""A parsed `evaluate` command: what to measure, by which protocols, on which images. Torch-free."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.config import class_paths, registry, signatures
from ssl_bench.config.constraints import Device, Seed
from ssl_bench.config.layers import environment_layer, flag_value, flatten, read_yaml, split_argv, stack
from ssl_bench.config.options import BackboneOptions, DataOptions, WandbOptions
from ssl_bench.config.parser import Parser, common_arguments, wandb_options
from ssl_bench.data.files.location import located
from ssl_bench.errors import UserError
from ssl_bench.evaluation.targets import Target, parse_target

DEFAULT_PROTOCOLS = "knn,linear"

USUAL = (
    *("protocols", "suite", "data.name", "data.root", "device", "branch", "force", "seed"),
    *("runs", "config", "wandb", "help", "help_all"),
)
EXAMPLES = """
examples:
  ssl-bench evaluate runs/mae-...                                    k-NN and linear probe on the run's own data
  ssl-bench evaluate runs/mae-... random:runs/mae-... pixels         beside what it started from, and beside raw pixels
  ssl-bench evaluate runs/mae-... kmeans-patches                     beside the floor that a network has to pass
  ssl-bench evaluate timm:vit_small_patch14_dinov2.lvd142m --data cifar10     published weights
  ssl-bench evaluate runs/mae-... --data cifar100 --protocols knn    transfer to other images
  ssl-bench evaluate runs/mae-... --suite small                      several data sets, one after another
  ssl-bench evaluate --protocols finetune --help                     with the options of a protocol
"""


@dataclass(frozen=True)
class Evaluate:
    """A parsed `evaluate` command.

    Args:
        targets: What to evaluate.
        protocols: Name -> options.
        classes: Name -> where the protocol's class is.
        data: Options of the images; those a flag or file gave, over a run's own.
        runs: Where baselines' folders go.
        device: auto, cpu, cuda, ...
        force: Evaluate again what is recorded.
        branch: The one network of methods that have a student and a teacher; both when None, as far as a protocol does
            not train copies of them.
        wandb: Whether and where results are logged to W&B.
    """

    targets: list[Target]
    protocols: dict[str, dict[str, Any]]
    classes: dict[str, registry.Found]
    data: dict[str, Any]
    runs: Path
    device: str
    force: bool
    branch: str | None = None
    wandb: WandbOptions = WandbOptions()


def parse_evaluate(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Evaluate:
    """An `evaluate` command line.

    Raises:
        UserError: A run, baseline or protocol that there is not.
    """
    files, named, flags = split_argv(argv)
    given = [
        ("the environment", environment_layer(environ)),
        *((str(f), flatten(read_yaml(f), str(f))) for f in files),
        ("flags", named),
    ]
    given = [(origin, located(layer)) for origin, layer in given]
    chosen, below = flag_value(flags, "--protocols"), stack(given)
    asked = chosen or below.values.get("protocols", DEFAULT_PROTOCOLS)
    names = asked if isinstance(asked, list) else str(asked).split(",")
    if not chosen:
        class_paths.check_evaluations([str(name).strip() for name in names], below.origins.get("protocols", "flags"))
    class_paths.check({class_paths.DATA: below.values.get(class_paths.DATA)}, below.origins)
    classes = _classes(names)
    groups = {name: name.rpartition(".")[2].replace("-", "_") for name in classes}
    presets = [
        (str(found.preset), {f"{groups[name]}.{k}": v for k, v in registry.preset_options(found).items()})
        for name, found in classes.items()
        if found.preset
    ]
    layers = stack([*presets, *given])
    layers.values.pop("protocols", None)
    parser = Parser(
        prog="ssl-bench evaluate",
        description="Measure what backbones have learned. Writes results/ and predictions/ into each run's folder.",
        usage="ssl-bench evaluate RUN... [--protocols knn,linear] [--data NAME] [--PROTOCOL.OPTION VALUE ...]",
    )
    parser.add_argument(
        "targets",
        nargs="*",
        metavar="RUN",
        help="a run folder, random:BACKBONE[@SEED], random:RUN, timm:NAME, pixels or kmeans-patches[@SEED]",
    )
    parser.add_argument(
        "--protocols",
        default=DEFAULT_PROTOCOLS,
        help="with commas (ssl-bench list evaluations), presets' files among them, or all",
    )
    parser.add_argument(
        "--suite", metavar="NAME", help="protocols on several data sets (ssl-bench list suites), or a file"
    )
    parser.usual, parser.examples = USUAL, EXAMPLES
    parser.shown_groups = list(groups.values()) if chosen else []
    for name, found in classes.items():
        parser.add_class_arguments(signatures.read(found), groups[name])
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(BackboneOptions, "backbone")
    parser.add_argument("--seed", type=Seed, default=0, help="of a random backbone's weights")
    parser.add_argument("--device", type=Device, default="auto", metavar="NAME", help="where networks run")
    parser.add_argument(
        "--branch", choices=("student", "teacher", "ema"), help="the only network of a run that has several"
    )
    theirs = "classes of yours that networks of runs are of (my_package.net.Net), with commas: their code will run"
    parser.add_argument("--classes", default="", metavar="CLASS,...", help=theirs)
    parser.add_argument("--force", action="store_true", help="evaluate again what is recorded")
    common_arguments(parser)
    parser.origins = {k: v for k, v in layers.origins.items() if v != "flags"}
    if {"-h", "--help"} & set(flags):  # only then: a value that is the default would not be checked
        parser.set_defaults({option: value for _, values in presets for option, value in values.items()})
    tokens = [*layers.tokens(), *flags]
    namespace = parser.parse_args(tokens)
    class_paths.name_classes(*class_paths.names_in(namespace.classes))
    if not namespace.targets:
        parser.error("what? name run folders, random:BACKBONE, pixels or kmeans-patches")
    tree = namespace.as_dict()
    set_by_user = {t.partition("=")[0].removeprefix("--") for t in tokens}
    data = {k: v for k, v in tree["data"].items() if f"data.{k}" in set_by_user}
    backbone = {k: v for k, v in tree["backbone"].items() if f"backbone.{k}" in set_by_user and k != "name"}
    return Evaluate(
        targets=[parse_target(name, backbone, namespace.seed) for name in namespace.targets],
        protocols={name: tree.get(group, {}) for name, group in groups.items()},  # {}: one without options
        classes=classes,
        data=data,
        runs=Path(namespace.runs),
        device=namespace.device,
        force=namespace.force,
        branch=namespace.branch,
        wandb=wandb_options(namespace),
    )


def _classes(names: Sequence[Any]) -> dict[str, registry.Found]:
    """Name of each protocol -> where its class is.

    Raises:
        UserError: There is no such protocol, or two of them have one name.
    """
    asked = [name for name in (str(name).strip() for name in names) if name]
    classes: dict[str, registry.Found] = {}
    for name in registry.all_evaluations() if asked == ["all"] else asked:
        found = registry.find("evaluations", name)
        if classes.setdefault(found.name, found) != found:
            raise UserError(f"--protocols: {name} and {classes[found.name].preset} are both called {found.name}")
    return classes
