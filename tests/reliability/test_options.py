"""Options with values that a person gives by mistake, or that a script makes: one line, or a run that is sound."""

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from campaign import SEED, Outcomes, sample
from every_option import METHODS, all_options, parser_of
from small import SIZES
from tiny import TINY
from trials import Trials

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

TRIED = 600
SECONDS = 20.0
OUTCOMES = {0: "taken", 1: "failed in one line", 2: "refused in one line"}
NUMBERS = ["0", "-0", "1", "2", "3", "7", "-1", "0.5", "1e-12", "1e-300", "1e12", "1e30", "5e9", "2147483647", "nan"]
NUMBERS += ["inf", "-inf", "1_000", "0x10", "1e", "1,5", "\u0664", "1" * 400]
WORDS = ["", " ", "~", "~root", "none", "null", "true", "auto", "{}", "[]", "[1,2]", "[0.1,0.9]", "{a: 1}", "../x", "/"]
WORDS += ["a b", "\u00e9", "x" * 3000, "%s", "'", '"', "\n", "\t0", "$HOME", "s3://a/b", "a::b", "file:///x", "@x"]
WORDS += ["!!python/object/apply:os.system [true]", "&a [*a]", "[" * 200, "o.yaml", "./x.py", "os.system", "--help"]
GPUS = ["cuda", "cuda:7", "gpu", "mps", "0,1", "[0,1]", "fp16", "fp8", "bf16", "16-true", "64-true", "fsdp", "ddp"]


def value(draw: random.Random, default: Any) -> str:
    """Of an option: near its default, or anything."""
    own = [] if default is None else [str(default), json.dumps(default, default=str)]
    if isinstance(default, int | float) and not isinstance(default, bool):
        own += [str(default * factor) for factor in (-1, 0, 0.5, 2, 1000)]
    pools = [NUMBERS, WORDS, GPUS, own or NUMBERS]
    return draw.choice(draw.choices(pools, [5, 3, 1, 3])[0])


def base(name: str) -> list[str]:
    """The rest of a command that reads options of a method, of a protocol, or of `benchmark`."""
    if name == "benchmark":
        return ["benchmark", "-c", "grid.yaml", "--dry-run", "--no-estimate"]
    if name not in METHODS:
        return [
            "evaluate",
            "random:vit_pico_patch4_32",
            "--backbone.img_size=16",
            "--data=digits",
            f"--protocols={name}",
        ]
    own = {option for command, option, _ in all_options() if command == name}
    sizes = [f"--{option}={size}" for at, size in SIZES.items() if (option := f"method.{at}") in own]
    sizes += ["--method.tokenizer=pixels"] if name == "cae" else []
    shared = [flag for flag in TINY if not flag.startswith("--method.")]
    few = ["--backbone.img_size=16", "--data.batch_size=16", "--trainer.max_epochs=1", "--optim.warmup_epochs=0"]
    return ["fit", f"--method={name}", *shared, *few, *sizes, "--trainer.limit_train_batches=2", "--runs=runs"]


def test_values_of_options(trials: Trials, outcomes: Outcomes, tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text("methods: [mae]\ndata: [digits]\nevaluate: {protocols: [knn]}\n")
    draw = random.Random(SEED)
    cases = []
    for _ in range(TRIED):
        name, option, _ = draw.choice(all_options())
        cases.append([*base(name), f"--{option}={value(draw, parser_of(name).get_defaults()[option])}"])
    for argv in sample(cases):
        trial = trials(argv, tmp_path, seconds=SECONDS)
        outcome = "ran on until it was asked to end" if trial.stopped else OUTCOMES.get(trial.code, "")
        fault = trial.fault()
        if trial.code == 2 and len(trial.said.splitlines()) != 1:
            fault = fault or f"refused in {len(trial.said.splitlines())} lines"
        if trial.code == 0 and argv[0] == "fit" and trial.out:
            fault = fault or unsound(tmp_path / trial.out.split()[-1])
        outcomes.note(outcome, " ".join(argv)[-300:], fault)
    outcomes.check()


def unsound(folder: Path) -> str | None:
    """What is wrong with a run that says it is finished."""
    try:
        with open(folder / "metrics.csv", newline="") as file:
            losses = [float(row["loss_epoch"]) for row in csv.DictReader(file) if row.get("loss_epoch")]
    except OSError:
        return None  # options printed, or help
    return None if losses and all(map(math.isfinite, losses)) else f"finished with losses {losses}"
