"""What an evaluation measures: run folders and baselines, named as on the command line. Torch-free."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_bench.config.layers import checked_path
from ssl_bench.config.options import DataOptions
from ssl_bench.errors import UserError
from ssl_bench.records.run import read_run

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Target:
    """What is evaluated.

    Args:
        name: As the user wrote it.
        folder: Of its run; None for a baseline, which gets one.
        baseline: `random` or `pixels`, None for a run.
        backbone: Options of a random backbone.
        seed: Of a random backbone's weights.
    """

    name: str
    folder: Path | None = None
    baseline: str | None = None
    backbone: dict[str, Any] | None = None
    seed: int = 0


def parse_target(name: str, backbone: dict[str, Any], seed: int) -> Target:
    kind, colon, rest = name.partition(":")
    named = kind in ("random", "pixels")  # `random:RUN`, whose path may begin with ~
    name = f"{kind}{colon}{checked_path(rest, f'{kind}:')}" if named else checked_path(name, "RUN")
    baseline, at, number = name.partition("@")
    kind, _, network = baseline.partition(":")
    if kind in ("random", "pixels") and not Path(name).exists():
        if at and not (number.isdecimal() and len(number) <= 10 and int(number) < 2**32):
            raise UserError(f"{name}: the seed after @ is a whole number from 0 to {2**32 - 1}")
        if kind == "random" and not network:
            raise UserError("random: of which backbone? random:vit_nano_patch4_32, say (ssl-bench list backbones)")
        if kind == "random" and (Path(network) / "run.json").exists():  # the network that a run started from
            info = read_run(Path(network))
            if info.kind == "tokenizer":
                raise UserError(f"{name}: {network} is a tokenizer's run, which has no backbone")
            return Target(name, None, kind, info.options["backbone"], int(number) if at else info.seed)
        options = {**backbone, "name": network} if network else None
        return Target(name, None, kind, options, int(number) if at else seed)
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"no run folder {name} (baselines: random:BACKBONE, pixels)")
    if not (folder / "run.json").exists():
        raise UserError(f"{name} is no run folder: it has no run.json (`ssl-bench fit` prints the folder it made)")
    status = read_run(folder).status
    if read_run(folder).kind == "tokenizer":
        raise UserError(f"{name} is a tokenizer, which has no features: train with it, --method.tokenizer {name}")
    if not (folder / "backbone.safetensors").exists() and not (folder / "backbone.json").exists():
        if read_run(folder).kind == "baseline":
            return recorded_baseline(folder)
        raise UserError(f"{name}: its run is {status}; ssl-bench fit -c {folder}/config.yaml finishes it")
    return Target(name, folder)


def recorded_baseline(folder: Path) -> Target:
    info = read_run(folder)
    backbone = info.options.get("backbone")
    return Target(str(folder), None, info.method, backbone, info.seed)


def data_options(own: dict[str, Any], given: dict[str, Any]) -> DataOptions:
    """The run's own data, unless others were named: then nothing of its own but what does not depend on the set."""
    if "name" in given and (given["name"] != own.get("name") or "root" in given):
        own = {k: v for k, v in own.items() if k in ("num_workers", "split_seed", "val_fraction", "strict")}
    if "label_fraction" in given:
        raise UserError("--data.label_fraction is of what a method learns from: evaluations use all labels")
    return DataOptions(**{**own, "label_fraction": None, **given})
