"""What a user did wrong, in one line, with the remedy."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the command line prints the message alone and exits with code 2."""


def near(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'mae'?"`` for the closest known name, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
