"""What goes to standard error: standard output belongs to results."""

import os
import sys
from collections.abc import Sequence

MOST_SAID = 10


def say_some(lines: Sequence[str], start: str) -> None:
    """The first lines, each after the same words, and how many more there are."""
    for line in lines[:MOST_SAID]:
        say(f"{start} {line}")
    if len(lines) > MOST_SAID:
        say(f"{start} ... and {len(lines) - MOST_SAID} more")


def say(text: str) -> None:
    """To standard error, since standard output belongs to results; once, however many processes torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
