"""W&B's client, started for a run: online where it can be, else offline, within bounds of time. Torch-free."""

import http.client
import os
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_bench.config.options import WandbOptions
from ssl_bench.console import say

PROBE_SECONDS = 5.0  # for a first answer of the server
INIT_SECONDS = 20.0  # for a run to be begun there, once it has answered
ANSWER_SECONDS = 10.0  # for each of the questions that the client's own process asks the server
RETRIES = 2  # of a question or a file: the client's own twenty would hold up the end of a run for many minutes
FINISH_SECONDS = 20.0  # for what is not sent yet, at the end
CHECKPOINT_SECONDS = 600.0  # the same where there are checkpoints to be sent


@dataclass(frozen=True)
class Identity:
    """What a run is to W&B.

    Args:
        id: The same for the same run, so that it is continued and never doubled.
        name: For people.
        job_type: Kind of run.
        config: Shown, and used to filter and to group.
        tags: Likewise.
    """

    id: str
    name: str
    job_type: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tags: Sequence[str] = ()


def open_run(options: WandbOptions, identity: Identity, folder: Path) -> Any:
    """The client's run, or None after a warning."""
    try:
        import wandb

        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        if options.mode != "offline":
            why = _why_offline(wandb, options.mode)
            try:
                if why is None:
                    return _init(wandb, "online", options, identity, folder)
            except Exception as error:
                wandb.teardown()
                why = one_line(error)
            if why:
                say(f"warning: W&B: {why}; it is written to {folder / 'wandb'}, for wandb sync")
        return _init(wandb, "offline", options, identity, folder)
    except Exception as error:
        say(f"warning: no W&B for this run: {one_line(error)}")
        return None


def _why_offline(wandb: Any, mode: str) -> str | None:
    """What keeps W&B from being online, in text; none where `auto` means offline; None if nothing does."""
    if mode == "auto" and os.environ.get("WANDB_MODE", "online") != "online":
        return ""
    try:
        if not wandb.login(prompt=False, verify=False):
            return "" if mode == "auto" else "no key is configured (wandb login)"
    except Exception as error:
        return one_line(error)
    return _unreachable(str(wandb.setup().settings.base_url))


def _unreachable(url: str) -> str | None:
    """Why a server does not answer, or None. Asked for a moment only: the client itself would ask for minutes."""
    kind = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/graphql", b'{"query": "{__typename}"}', kind)
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        return f"{url} answers {error.code}" if error.code >= 500 else None  # others are the client's to judge
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return None  # the client has certificates of its own
        return f"{url} does not answer ({error.reason})"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{url} does not answer ({one_line(error)})"


def _init(wandb: Any, mode: str, options: WandbOptions, identity: Identity, folder: Path) -> Any:
    finish = CHECKPOINT_SECONDS if options.checkpoints else FINISH_SECONDS
    limits = {"init_timeout": INIT_SECONDS, "finish_timeout": finish}
    limits = {name: value for name, value in limits.items() if f"WANDB_{name.upper()}" not in os.environ}
    for what, variable, seconds in (
        ("graphql", "WANDB_HTTP_TIMEOUT", ANSWER_SECONDS),
        ("file_transfer", "WANDB_FILE_PUSHER_TIMEOUT", finish),
    ):
        if variable not in os.environ:  # finish_timeout does not end what is being asked or sent when it begins
            limits |= {f"x_{what}_timeout_seconds": seconds, f"x_{what}_retry_max": RETRIES}
            limits |= {f"x_{what}_retry_wait_min_seconds": 1.0, f"x_{what}_retry_wait_max_seconds": 5.0}
    return wandb.init(
        id=identity.id,
        name=identity.name,
        job_type=identity.job_type,
        config=dict(identity.config),
        tags=list(identity.tags),
        project=options.project,
        entity=options.entity,
        group=options.group,
        mode=mode,
        resume="allow",
        reinit="finish_previous",
        dir=str(folder),
        settings=wandb.Settings(silent=True, console="off", finish_timeout_raises=True, **limits),
    )


def one_line(error: Exception) -> str:
    """What went wrong, for a warning."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
