"""Which kind of file a checkpoint is, and under which prefix its network is. Torch-free."""

import re
from collections.abc import Collection
from dataclasses import dataclass

from ssl_bench.checkpoints.import_options import WEIGHTS
from ssl_bench.checkpoints.official.layout import FORMATS, Kind, layout
from ssl_bench.errors import UserError

# What people keep a network under: `backbone.`, `model.encoder.`, `teacher_backbone.`, `student.network.`
HOLDER = re.compile(
    r"(?:(?:student|teacher|online|model|ema)_)?"
    r"(?:model|state_dict|network|net|backbone|encoder|trunk|vit|resnet|student|teacher|online|ema)"
)


@dataclass(frozen=True)
class Match:
    """What a file was recognised as.

    Args:
        kind: Of file.
        prefix: In front of that kind's names in the file.
        others: Prefixes of other networks in it, which are left.
    """

    kind: Kind
    prefix: str = ""
    others: tuple[str, ...] = ()


def recognise(format: str, names: Collection[str], file: str, weights: str | None = None) -> Match:
    """Which kind of that layout's files has these names: as they are, or behind a prefix.

    Args:
        format: The layout's name.
        names: Of the tensors.
        file: For messages.
        weights: Of which network, where a file has several: one of WEIGHTS.

    Raises:
        UserError: None has; the message says whose they look like.
    """
    for kind in layout(format).kinds:
        if kind.fits(names):
            return Match(kind)
    looks = [other for other in FORMATS if any(kind.fits(names) for kind in layout(other).kinds)]
    if looks:
        raise UserError(f"{file} is no {format} checkpoint: it looks like --format {' or '.join(looks)}")
    found: dict[str, Kind] = {}
    for prefix in prefixes(names):
        inner = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        fitting = next((kind for kind in layout(format).kinds if kind.fits(inner)), None)
        if fitting is not None and not any(prefix.startswith(outer) for outer in found):
            found[prefix] = fitting
    if not found:
        some = ", ".join(sorted(names)[:4]) or "no tensors at all"
        raise UserError(f"{file} is no {format} checkpoint, nor one of {', '.join(FORMATS)}: it holds {some}")
    of_role: dict[str, list[str]] = {}
    for prefix in found:
        of_role.setdefault(role(prefix), []).append(prefix)
    if weights is not None and weights not in of_role:
        raise UserError(f"--weights {weights}: {file} holds the network of {' and '.join(sorted(of_role))} alone")
    chosen = of_role[weights or next(role for role in WEIGHTS if role in of_role)]
    if len(chosen) > 1:
        raise UserError(f"{file} holds several networks, {' and '.join(chosen)}: keep one of them")
    return Match(found[chosen[0]], chosen[0], tuple(prefix for prefix in found if prefix != chosen[0]))


def prefixes(names: Collection[str]) -> list[str]:
    """Prefixes that a network may be kept under, shorter ones first."""
    found: set[str] = set()
    for name in names:
        before = ""
        for part in name.split(".")[:-1]:
            if not HOLDER.fullmatch(part):
                break
            before += f"{part}."
            found.add(before)
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def role(prefix: str) -> str:
    """Which of WEIGHTS a prefix holds."""
    words = set(re.split(r"[._]", prefix))
    return next((name for name in ("ema", "teacher", "student") if name in words), "model")
