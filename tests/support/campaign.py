"""Campaigns of trials: how many, which, and what became of them."""

import os
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import yaml

SIZE = float(os.environ.get("RELIABILITY", "1"))  # part of all trials that are tried
PART, PARTS = map(int, os.environ.get("RELIABILITY_PART", "1/1").split("/"))  # of them, for several machines
SEED = 20_261_201

T = TypeVar("T")


class Outcomes:
    """What became of the trials of a campaign."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def note(self, outcome: str, what: str, fault: str | None) -> None:
        """Count a trial.

        Args:
            outcome: What became of it, where it behaved.
            what: The trial, to repeat it.
            fault: How it misbehaved, if it did.
        """
        self.counts["tried"] += 1
        self.counts["fault" if fault else outcome] += 1
        if fault:
            self.faults.append(f"{what}: {fault}")
            print(self.faults[-1], flush=True)  # a campaign is long

    def said(self) -> str:
        """The counts."""
        return ", ".join(f"{name} {count}" for name, count in self.counts.items())

    def check(self) -> None:
        """All trials behaved."""
        assert self.counts["tried"] and not self.faults, "\n".join(self.faults)


def sample(cases: Sequence[T]) -> list[T]:
    """All cases at full size, else some of them, or one part: the same ones each time and in their order."""
    chosen = random.Random(SEED).sample(range(len(cases)), min(len(cases), max(1, round(SIZE * len(cases)))))
    return [cases[at] for at in sorted(chosen)][PART - 1 :: PARTS]


def grouped(flags: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Flags as a configuration file has them: `--data=digits` is the name of the data."""
    groups: dict[str, dict[str, Any]] = {}
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        group, _, option = name.partition(".")
        groups.setdefault(group, {})[option or "name"] = yaml.safe_load(value)
    return groups
