"""What goes to standard error: standard output belongs to results."""

import os
import sys


def say(text: str) -> None:
    """To standard error, since standard output belongs to results; once, however many processes torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)
