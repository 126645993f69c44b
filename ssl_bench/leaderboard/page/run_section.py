"""A run on the page: how to do it again, what it was, what it cost, what came out."""

import hashlib
import json
import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError
from ssl_bench.leaderboard.page.confusion import classes
from ssl_bench.leaderboard.page.figures import Figure
from ssl_bench.leaderboard.page.history import Series, history, thinned
from ssl_bench.leaderboard.page.plot import bdi, number, shortened
from ssl_bench.leaderboard.page.recipe import changes
from ssl_bench.leaderboard.text import percent, visible
from ssl_bench.leaderboard.units import duration
from ssl_bench.records.files import in_words, read_regular
from ssl_bench.records.result import Result
from ssl_bench.records.store import Run

MOST_CLASSES = 12
MOST_BYTES = 2**22  # of environment.json
CURVES = ("loss_epoch", "loss", "linear", "knn", "feature_rank", "feature_std")
SPARK = (150, 40)


def anchors(runs: Sequence[Run]) -> dict[Path, str]:
    """Folder -> a short name of its section, the same at each build."""
    found: dict[Path, str] = {}
    for run in runs:
        digest = hashlib.sha256(run.folder.name.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        name = f"run-{digest}"
        found[run.folder] = name if name not in found.values() else f"{name}-{len(found)}"
    return found


def section(run: Run, anchor: str, pictures: Iterable[Figure], lacks: list[str]) -> str:
    """One run, folded; its heading says what it is.

    Args:
        run: A run.
        anchor: Of the section.
        pictures: Of the run.
        lacks: Gets a line for each file that is gone or damaged, and what the section is without for it.
    """
    info = run.info
    # Records that were copied without the files of their runs are no damage.
    files = lacks if any(os.path.lexists(run.folder / name) for name in ("environment.json", "metrics.csv")) else []
    facts = [info.method, f"seed {info.seed}", info.status, *([info.kind] if info.kind != "pretrained" else [])]
    parts = [
        f'<pre tabindex="0">{escape(visible(command(run)))}</pre>',
        f"<p class=error>{bdi(info.error)}</p>" if info.error else "",
        _facts(_what(run, files)),
        _changes(run),
        _curves(run, files),
        _results(run.results),
        _classes(run, lacks),
        _diagnostics(run.results),
        "".join(_figure(figure) for figure in pictures),
    ]
    return (
        f'<details class="run" id="{anchor}"><summary><h3>{bdi(run.folder.name)}</h3> '
        f"<span>{bdi(', '.join(facts))}</span></summary>\n{''.join(parts)}</details>\n"
    )


def command(run: Run) -> str:
    """What does it again."""
    if run.info.command:
        return shlex.join(run.info.command)
    return f"ssl-bench fit -c {shlex.quote(str(run.folder / 'config.yaml'))}"


def _what(run: Run, lacks: list[str]) -> list[tuple[str, str]]:
    """Images, environment and cost in words."""
    info, cost = run.info, run.info.cost
    found = [("data", _data(info.data.title, info.data.fingerprint))]
    environment = _environment(run, lacks)
    found += [("environment", environment)] if environment else []
    if info.kind == "pretrained":
        passes = f"{info.epochs:.4g} passes, " if info.epochs is not None else ""
        spent = f"{duration(cost.seconds)}, {cost.flops:.3g} FLOPs, {number(float(cost.peak_memory_bytes))}B at most, "
        found.append(("pretraining", f"{passes}{info.steps} steps, {spent}{info.images_seen} images seen"))
    seconds, flops = (sum(getattr(result.cost, name) for result in run.results) for name in ("seconds", "flops"))
    if run.results:
        found.append(("evaluation", f"{duration(seconds)}, {flops:.3g} FLOPs, {len(run.results)} protocols"))
    return found


def _data(title: str, fingerprint: Mapping[str, Any]) -> str:
    counts = fingerprint.get("images")
    known = fingerprint.get("classes")
    parts = [title, str(fingerprint.get("sha256", ""))[:16]]
    parts += [f"{name} {count}" for name, count in counts.items()] if isinstance(counts, dict) else []
    parts += [f"{len(known)} classes"] if isinstance(known, list) else []
    return ", ".join(part for part in parts if part)


def _environment(run: Run, lacks: list[str]) -> str:
    path = run.folder / "environment.json"
    try:
        found = json.loads(read_regular(path, MOST_BYTES))
        packages, git = found.get("packages") or {}, found.get("git") or {}
        parts = [f"ssl-bench {found.get('ssl_bench', '?')}", f"Python {found.get('python', '?')}"]
        parts += [f"{name} {packages[name]}" for name in ("torch", "timm") if name in packages]
        parts += [", ".join(map(str, found.get("gpus") or [])) or f"{found.get('device')} ({found.get('cpus')} CPUs)"]
        parts += [str(found["precision"])] if found.get("precision") else []
        if git.get("commit"):
            parts.append(f"commit {str(git['commit'])[:8]}{', changed' if git.get('changed') else ''}")
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        if run.info.kind == "pretrained":
            lacks.append(f"environment of {path}: {in_words(error)}")
        return ""
    return ", ".join(parts)


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return f"<dl>{''.join(f'<dt>{escape(visible(name))}<dd>{bdi(text)}' for name, text in facts)}</dl>"


def _changes(run: Run) -> str:
    found = changes(run)
    if found is None:
        return ""
    name, differing = found
    if not differing:
        return f"<p>As recipe {bdi(name)} says.</p>"
    items = "".join(f"<li>{bdi(f'{option}: {_value(a)} → {_value(b)}')}" for option, a, b in differing)
    return f"<h4>Differs from recipe {bdi(name)}</h4><ul>{items}</ul>"


def _value(value: Any) -> str:
    return shortened(value if isinstance(value, str) else json.dumps(value, default=str), 60)


def _curves(run: Run, lacks: list[str]) -> str:
    found = history(run, lacks)
    shown = [name for name in CURVES if len(found.get(name, [])) > 1]
    if "loss_epoch" in shown and "loss" in shown:
        shown.remove("loss" if len(found["loss_epoch"]) > 4 else "loss_epoch")
    return f'<div class="sparks">{"".join(_spark(name, found[name]) for name in shown)}</div>' if shown else ""


def _spark(name: str, points: Series) -> str:
    """A small line: first, last, least and most in words."""
    ys = [y for _, y in points]
    shown = thinned(points, 20)
    (width, height), (start, _), (end, _) = SPARK, points[0], points[-1]
    across, up = (end - start) or 1.0, (max(ys) - min(ys)) or 1.0
    places = [
        (round((width - 4) * (x - start) / across) + 2, round((height - 6) * (max(ys) - y) / up) + 3) for x, y in shown
    ]
    steps = " ".join(f"{b[0] - a[0]} {b[1] - a[1]}" for a, b in zip(places, places[1:], strict=False))
    path = f"M{places[0][0]} {places[0][1]}l{steps.replace(' -', '-')}"
    title = name.removesuffix("_epoch").replace("_", " ")
    line = f'<svg viewBox="0 0 {width} {height}" aria-hidden=true><path class="l s0" d="{path}"/></svg>'
    caption = f"{title} {ys[0]:.3g} → {ys[-1]:.3g} <small>({min(ys):.3g} to {max(ys):.3g})</small>"
    return f"<figure>{line}<figcaption>{caption}</figcaption></figure>"


def _results(results: Sequence[Result]) -> str:
    rows = ""
    for result in results:
        if result.value is not None and result.interval is not None:
            others = [f"{name} {percent(s.value)}" for name, s in result.variants.items() if name != result.primary]
            name = result.protocol + (f" ({result.branch})" if result.branch else "")
            rows += f"<tr><th scope=row>{bdi(name)}<td>{percent(result.value)}<td>{_ends(result.interval)}"
            rows += f"<td>{bdi(f'{result.primary}; ' + ', '.join(others[:8]) if others else result.primary)}\n"
    if not rows:
        return ""
    heads = "".join(f"<th scope=col>{name}" for name in ("protocol", "%", "95 %", "variant; others"))
    frame = '<div class="scroll" tabindex="0" role="region" aria-label="Results of the run">'
    caption = "<caption>Results of the run</caption>"
    return f'{frame}<table class="words">{caption}<thead><tr>{heads}<tbody>{rows}</table></div>'


def _ends(interval: tuple[float, float]) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}"


def _classes(run: Run, lacks: list[str]) -> str:
    try:
        found = classes(run)
    except UserError as error:
        lacks.append(f"accuracy per class of {run.folder}: {error}")
        return ""
    if found is None or len(found.accuracy) < 2:
        return ""
    shown = found.accuracy[:MOST_CLASSES]
    what = f"Accuracy per class in %, {found.protocol}" + (", worst first" if len(shown) == len(found.accuracy) else "")
    what += f", the worst {len(shown)} of {len(found.accuracy)}" if len(shown) < len(found.accuracy) else ""
    bars = "".join(f'<li style="--p:{p:.2f}">{bdi(name)} <b>{100 * p:.0f}</b>' for name, p in shown)
    pairs = ", ".join(f"{bdi(a)} as {bdi(b)} {100 * p:.0f} %" for a, b, p in found.confused)
    confused = f"<p>Most confused: {pairs}.</p>" if pairs else ""
    return f'<h4>{bdi(what)}</h4><ul class="classes">{bars}</ul>{confused}'


def _diagnostics(results: Sequence[Result]) -> str:
    found = {name: value for result in results for name, value in result.diagnostics.items()}
    facts = _facts((name.replace("_", " "), f"{value:.4g}") for name, value in found.items())
    return f"<h4>Diagnostics</h4>{facts}" if found else ""


def _figure(figure: Figure) -> str:
    address, alt = (escape(visible(text), quote=True) for text in (figure.address, figure.alt))
    return (
        f'<figure class="image"><img loading="lazy" src="{address}" alt="{alt}">'
        f"<figcaption>{bdi(figure.caption)}</figcaption></figure>"
    )
