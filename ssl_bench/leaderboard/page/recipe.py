"""What a run's configuration changed of the recipe it started from."""

import contextlib
import functools
import io
import json
from typing import Any

from ssl_bench.errors import UserError
from ssl_bench.leaderboard.grouping import flat
from ssl_bench.records.store import Run

NOT_CHANGED = ("seed", "method.name", "data.name", "data.root", "data.num_workers", "data.download", "runs", "wandb")


def changes(run: Run) -> tuple[str, list[tuple[str, Any, Any]]] | None:
    """Name of the recipe, and option, value there and value of the run; None where the method is none of ours."""
    info = run.info
    if info.kind != "pretrained":
        return None
    options = flat(info.options)
    asked = next((part.partition("=")[2] for part in info.command if part.startswith("--recipe=")), "")
    start = _start(info.method, str(options.get("data.name") or info.data.title), asked)
    if start is None:
        return None
    name, recipe, texts = start
    found = [
        (option, recipe.get(option), here)
        for option in sorted(options.keys() | recipe.keys())
        if option not in NOT_CHANGED and _text(here := options.get(option)) != texts.get(option, "null")
    ]
    return name, found


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


@functools.cache
def _start(method: str, data: str, asked: str) -> tuple[str, dict[str, Any], dict[str, str]] | None:
    """Name, flat configuration and its values as text, of what `fit` starts from.

    Nothing of a run's folder is imported or opened for it.
    """
    from ssl_bench.config import registry
    from ssl_bench.config.fit_config import parse_fit

    known = registry.names("methods")
    if method not in known or not known[method].module.startswith("ssl_bench.") or asked.endswith((".yaml", ".yml")):
        return None
    argv = [f"--method.name={method}", f"--data.name={data}", *([f"--recipe={asked}"] if asked else [])]
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            parsed = parse_fit(argv, {})
    except (UserError, SystemExit):
        return None
    recipe = flat(parsed.config)
    return parsed.recipe or "the defaults", recipe, {option: _text(value) for option, value in recipe.items()}
