"""A parsed `evaluate` command: what to measure, by which protocols, on which images. Torch-free."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.config import class_paths, registry, signatures
from ssl_bench.config.constraints import Device, Seed
from ssl_bench.config.layers import environment_layer, flatten, read_yaml, split_argv, stack
from ssl_bench.config.options import BackboneOptions, DataOptions, WandbOptions
from ssl_bench.config.parser import Parser, common_arguments, wandb_options
from ssl_bench.evaluation.targets import Target, parse_target

DEFAULT_PROTOCOLS = "knn,linear"

USUAL = (
    *("protocols", "data.name", "data.root", "device", "branch", "force", "seed"),
    *("runs", "config", "wandb", "help", "help_all"),
)
EXAMPLES = """
examples:
  ssl-bench evaluate runs/mae-...                                    k-NN and linear probe on the run's own data
  ssl-bench evaluate runs/mae-... random:runs/mae-... pixels         beside what it started from, and beside raw pixels
  ssl-bench evaluate runs/mae-... --data cifar100 --protocols knn    transfer to other images
  ssl-bench evaluate --protocols finetune --help                     with the options of a protocol
"""


@dataclass(frozen=True)
class Evaluate:
    """A parsed `evaluate` command.

    Args:
        targets: What to evaluate.
        protocols: Name -> options.
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
    given = [(str(f), flatten(read_yaml(f), str(f))) for f in files]
    layers = stack([("the environment", environment_layer(environ)), *given, ("flags", named)])
    chosen = [t.partition("=")[2] or flags[i + 1] for i, t in enumerate(flags[:-1]) if t.startswith("--protocols")]
    chosen += [t.partition("=")[2] for t in flags[-1:] if t.startswith("--protocols=")]
    names = (chosen[-1] if chosen else layers.values.get("protocols", DEFAULT_PROTOCOLS)).split(",")
    names = sorted(registry.names("evaluations")) if [n.strip() for n in names] == ["all"] else names
    if not chosen:
        class_paths.check_evaluations([name.strip() for name in names], layers.origins.get("protocols", "flags"))
    found = {name.strip(): registry.find("evaluations", name.strip()) for name in names if name.strip()}
    parser = Parser(
        prog="ssl-bench evaluate",
        description="Measure what backbones have learned. Writes results/ and predictions/ into each run's folder.",
        usage="ssl-bench evaluate RUN... [--protocols knn,linear] [--data NAME] [--PROTOCOL.OPTION VALUE ...]",
    )
    parser.add_argument(
        "targets", nargs="*", metavar="RUN", help="a run folder, random:BACKBONE[@SEED], random:RUN or pixels"
    )
    parser.add_argument(
        "--protocols", default=DEFAULT_PROTOCOLS, help="with commas, or all (ssl-bench list evaluations)"
    )
    parser.usual, parser.examples = USUAL, EXAMPLES
    parser.shown_groups = [name.replace("-", "_") for name in found] if chosen else []
    groups = {}
    for name, page in found.items():
        groups[name] = name.rpartition(".")[2].replace("-", "_")
        parser.add_class_arguments(signatures.read(page), groups[name])
    parser.add_class_arguments(DataOptions, "data")
    parser.add_class_arguments(BackboneOptions, "backbone")
    parser.add_argument("--seed", type=Seed, default=0, help="of a random backbone's weights")
    parser.add_argument("--device", type=Device, default="auto", metavar="NAME", help="where networks run")
    parser.add_argument("--branch", choices=("student", "teacher"), help="the only one of a method that has both")
    parser.add_argument("--force", action="store_true", help="evaluate again what is recorded")
    common_arguments(parser)
    parser.origins = {k: v for k, v in layers.origins.items() if v != "flags"}
    tokens = [*layers.tokens(), *flags]
    namespace = parser.parse_args(tokens)
    if not namespace.targets:
        parser.error("what? name run folders, random:BACKBONE or pixels")
    tree = namespace.as_dict()
    set_by_user = {t.partition("=")[0].removeprefix("--") for t in tokens}
    data = {k: v for k, v in tree["data"].items() if f"data.{k}" in set_by_user}
    backbone = {k: v for k, v in tree["backbone"].items() if f"backbone.{k}" in set_by_user and k != "name"}
    return Evaluate(
        targets=[parse_target(name, backbone, namespace.seed) for name in namespace.targets],
        protocols={name: tree.get(group, {}) for name, group in groups.items()},  # none of a page without options
        data=data,
        runs=Path(namespace.runs),
        device=namespace.device,
        force=namespace.force,
        branch=namespace.branch,
        wandb=wandb_options(namespace),
    )
