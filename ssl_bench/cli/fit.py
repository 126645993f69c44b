"""`ssl-bench fit`."""

import json
import os
from typing import TYPE_CHECKING

from ssl_bench.cli.commands import import_torch
from ssl_bench.config.fit_config import FitConfig
from ssl_bench.console import say
from ssl_bench.leaderboard.units import duration

if TYPE_CHECKING:
    from ssl_bench.pretraining.dry_run.estimate import DryRun


def main(argv: list[str]) -> int:
    from ssl_bench.api.fit_command import run_fit
    from ssl_bench.config.fit_config import dump, parse_fit
    from ssl_bench.data.files.location import located
    from ssl_bench.data.image_summary import image_summary

    parsed = parse_fit(argv, look=image_summary, locate=located)
    if parsed.print_config:
        print(dump(parsed.config), end="")
        return 0
    if parsed.dry_run is not None:
        print(_planned(parsed))
        return 0
    done = run_fit(parsed, argv, before_torch=import_torch)
    if done.already_done:
        say("already done: the run of this very configuration is finished")
    if done.code == 0 and not done.said and os.environ.get("RANK", "0") == "0":
        print(done.folder)
    return done.code


def _planned(parsed: FitConfig) -> str:
    """What a run will take, as it was asked for."""
    from ssl_bench.api.fit_command import check_runs_named, weights_named
    from ssl_bench.data.image_summary import check_place

    assert parsed.dry_run is not None
    check_place(parsed.config["data"])
    check_runs_named(parsed.config)
    import_torch()
    from ssl_bench.pretraining.dry_run.estimate import dry_run

    run = dry_run(parsed.config, parsed.dry_run, weights_named(parsed.config))
    return json.dumps(run.as_dict(), indent=2) if parsed.dry_run.format == "json" else "\n".join(_lines(run))


def _lines(run: "DryRun") -> list[str]:
    """The same for people: a name and what there is to say of it."""
    number, memory, length = run.parameters, run.memory, run.length
    kept, several = memory.activations, length.devices > 1
    said = {
        "run": f"{run.method} of {run.backbone or 'a tokenizer'} at {run.image_size} px, {length.images:,} images",
        "parameters": f"{number.backbone:,} of the backbone, {number.trained - number.backbone:,} of what else learns"
        + (f", {number.following:,} that do not learn (teachers, fixed positions)" if number.following else ""),
        "weights": _bytes(memory.weights),
        "gradients": _bytes(memory.gradients) + (", and as much to exchange them" if several else ""),
        "optimiser": f"{_bytes(memory.optimizer)} ({run.optimizer})",
        "activations": f"{_bytes(kept.per_image)} for each image of a batch"
        + (f", {_bytes(kept.per_pair)} for each pair of images" if kept.per_pair else ""),
        "memory": f"{_bytes(memory.batch)} for batches of {length.batch_size:,}{' on each device' * several}",
        "largest batch": (f"{memory.largest_batch:,} images" if memory.largest_batch else "not even one image")
        + f" in {_bytes(memory.available)}, of which a tenth is left free",
        "steps": f"{length.steps:,} of {length.step_images:,} images, {length.steps_per_epoch:,} in an epoch",
        "images": f"{length.images_seen:,} in all",
        "FLOPs": f"{_flops(run.flops_per_image)} for each image, {_flops(run.flops)} in all",
        "rate": f"{run.images_per_second:,.4g} images/s, "
        + (f"measured with batches of {run.measured_batch:,}" if run.measured_batch else "as given")
        + (f" on one device, times {length.devices}" if several and run.measured_batch else ""),
        "time": f"{duration(run.hours * 3600)}, without reading the images and the online probe",
        "counted on": f"{run.device}, {run.precision}",
    }
    return [f"{name:<15}{text}" for name, text in said.items()]


def _bytes(number: float) -> str:
    """Three digits and a unit."""
    unit, size = next(((u, s) for u, s in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)) if number >= s), ("B", 1))
    return f"{number / size:.{0 if number >= 100 * size else 1}f} {unit}"


def _flops(number: float) -> str:
    unit, size = next(((u, s) for u, s in (("E", 1e18), ("P", 1e15), ("T", 1e12)) if number >= s), ("G", 1e9))
    return f"{number / size:.3g} {unit}FLOPs"
