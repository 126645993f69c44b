"""`ssl-bench figures`: draws what is missing or out of date, says what is left out, keeps captions beside the pictures.

A run's figures/ holds NAME.png, figures.json (name -> caption and alt) and state.json (name -> what it was made from,
and why it was left out).
"""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import ssl_bench
from ssl_bench.config.options import DataOptions
from ssl_bench.console import say
from ssl_bench.data.dataset import Dataset, load_dataset
from ssl_bench.data.files.left_out import read_left_out
from ssl_bench.errors import UserError
from ssl_bench.evaluation.targets import data_options
from ssl_bench.figures.drawing import encoded
from ssl_bench.figures.figures_config import NAMES, Figures
from ssl_bench.figures.opened_run import LeftOut, OpenedRun
from ssl_bench.figures.picture import Picture
from ssl_bench.models.weights_files import read_json
from ssl_bench.records.files import DAY, clear_temporary, replacing, write_json
from ssl_bench.records.run import RunInfo, read_run
from ssl_bench.records.store import find_runs

MADE_FROM = ("run.json", "config.yaml", "backbone.json", "backbone.safetensors", "checkpoints/last.ckpt")


def write_figures(given: Figures) -> Iterator[Path]:
    """Draw the pictures of all runs; yields the figures folder of each. A run that cannot be drawn stops no other.

    Raises:
        UserError: A run cannot be drawn: its images are not there, or one of its files is damaged.
    """
    from ssl_bench.runtime.distributed import distributed_context

    folders = find_runs(given.runs)
    failed: list[str] = []
    opened: dict[str, Dataset] = {}
    with distributed_context(given.device) as device:
        for number, folder in enumerate(folders, 1):
            say(f"[{number}/{len(folders)}] {folder}")
            try:
                _draw_run(folder, given, device, opened)
            except UserError as error:
                failed.append(f"{folder}: {error}")
                if len(folders) > 1:
                    say(f"no pictures: {error}")
            else:
                yield folder / "figures"
    if failed:
        more = f" (and {len(failed) - 1} more of {len(folders)} runs)" if len(failed) > 1 else ""
        raise UserError(failed[0] + more)


def _draw_run(folder: Path, given: Figures, device: str, opened: dict[str, Dataset]) -> None:
    info = read_run(folder)
    own = dict(info.options.get("data", {}))
    if not own and "name" not in (given.data or {}):
        raise UserError("it was imported and has no images of its own: --data NAME")
    options = data_options(own, given.data or {})
    place = folder / "figures"
    if place.is_symlink():
        raise UserError(f"{place} is a link: nothing is written through it")
    captions, state = _read(place / "figures.json"), _read(place / "state.json")
    weights = _weights(folder)
    asked = {name: _key(name, weights, options, given.images) for name in given.only or NAMES}
    due = [name for name in asked if given.force or not _is_current(place, name, captions, state, asked[name])]
    for name in asked:
        if name not in due:
            say(f"{name}: {_reason(state[name]) or 'current'}")
    if not due:
        return
    clear_temporary(place, DAY)
    run = _open(folder, info, options, own, device, opened, given.named_classes)
    for name in due:
        why = ""
        try:
            drawn = cast(Callable[[OpenedRun, int], Picture], _module(name).draw)(run, given.images)
        except LeftOut as reason:
            why = str(reason)
            (place / f"{name}.png").unlink(missing_ok=True)
            captions.pop(name, None)
        else:
            with replacing(place / f"{name}.png") as temporary:
                temporary.write_bytes(encoded(drawn.image))
            captions[name] = {"caption": drawn.caption, "alt": drawn.alt}
        state[name] = {"key": asked[name], "left_out": why}
        write_json(place / "figures.json", {name: captions[name] for name in NAMES if name in captions})
        write_json(place / "state.json", {name: state[name] for name in NAMES if name in state})
        say(f"{name}: {_reason(state[name]) or place / f'{name}.png'}")


def _module(name: str) -> Any:
    return importlib.import_module(f"ssl_bench.figures.{name}")


def _reason(state: dict[str, str]) -> str:
    return f"left out: {state['left_out']}" if state["left_out"] else ""


def _open(
    folder: Path,
    info: RunInfo,
    options: DataOptions,
    own: dict[str, Any],
    device: str,
    opened: dict[str, Dataset],
    named_classes: Sequence[str],
) -> OpenedRun:
    """The run on its images, which several runs may share."""
    key = repr(options)
    if key not in opened:
        try:
            opened[key] = load_dataset(options)
        except UserError as error:
            remedy = "" if "--data.root" in str(error) else "; --data.root says where they are on this machine"
            raise UserError(f"its images cannot be opened: {error}{remedy}") from None
    data = opened[key].without(read_left_out(folder))
    saw = info.data.fingerprint.get("sha256")
    is_own = own.get("name") == options.name
    if is_own and saw and saw != data.fingerprint["sha256"]:
        say("these are not the images that the run saw: their content differs from that in its record")
        is_own = False
    return OpenedRun(folder, info, data, options, is_own, device, tuple(named_classes))


def _key(name: str, weights: dict[str, str], options: DataOptions, images: int) -> str:
    """A hash of all that a picture depends on."""
    what = {"name": name, "made_from": weights, "data": asdict(options), "images": images}
    what["version"] = ssl_bench.__version__
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def _weights(folder: Path) -> dict[str, str]:
    """sha256 of each file that pictures are made from."""
    hashes = {}
    for name in MADE_FROM:
        if (folder / name).is_file():
            with open(folder / name, "rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def _is_current(place: Path, name: str, captions: dict[str, Any], state: dict[str, Any], key: str) -> bool:
    known = state.get(name, {})
    if known.get("key") != key:
        return False
    return bool(known["left_out"]) or (name in captions and (place / f"{name}.png").is_file())


def _read(path: Path) -> dict[str, Any]:
    """A JSON file of ours; empty if it is not there, or damaged, since all of it can be made again."""
    try:
        found = read_json(path, path.parent.parent)
    except (OSError, ValueError, UserError):
        return {}
    if not isinstance(found, dict):
        return {}
    known = {name: value for name, value in found.items() if name in NAMES and isinstance(value, dict)}
    wanted = ("key", "left_out") if path.name == "state.json" else ("caption", "alt")
    return {name: value for name, value in known.items() if all(isinstance(value.get(key), str) for key in wanted)}
