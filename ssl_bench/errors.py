"""What ends a command, in one line: a user's mistake with its remedy, a failure that is nobody's mistake, a signal."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: the command line prints the message alone and exits with code 2."""


class RunFailed(Exception):
    """A command could not end, through no mistake in it: the command line prints the message and exits with code 1."""


class LostProcess(RunFailed):
    """Another process that shares the work is gone; whoever started them knows which, and may say so first."""


class Taken(RunFailed):
    """Another process works on this run: the command line prints who, and exits with a code that says `try again`."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class Terminated(BaseException):
    """SIGTERM came: the command line exits with code 143."""


def near(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'mae'?"`` for the closest known name, or nothing."""
    match = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
