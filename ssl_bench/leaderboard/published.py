"""Numbers that others published, from a small CSV or YAML file: shown beside ours with their source, never ranked.

Each line has method, data, backbone, protocol, value (in %) and source; an empty backbone fits all of them.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError, near
from ssl_bench.leaderboard.table import Block, PublishedRow, Table
from ssl_bench.records.files import in_words, read_regular

FIELDS = ("method", "data", "backbone", "protocol", "value", "source")


@dataclass(frozen=True)
class Published:
    """One published number.

    Args:
        method: As its authors call it.
        data: Title of the images, as in a block's title.
        backbone: Name of the network, as in a block's title; empty for any.
        protocol: Title of a column.
        value: Accuracy in [0, 1].
        source: Where it was published.
    """

    method: str
    data: str
    backbone: str
    protocol: str
    value: float
    source: str


def read_published(path: Path) -> list[Published]:
    """The numbers of a file.

    Raises:
        UserError: It cannot be read, or a line lacks something.
    """
    try:
        text = read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--published {path} cannot be read ({in_words(error)}): name a CSV or YAML file") from None
    lines = _yaml(path, text) if path.suffix in (".yaml", ".yml") else list(csv.DictReader(io.StringIO(text)))
    return [_published(f"--published {path}, entry {number}", line) for number, line in enumerate(lines, 1)]


def _yaml(path: Path, text: str) -> list[Any]:
    from ssl_bench.config.safe_yaml import load_yaml

    found = load_yaml(text, f"--published {path}")
    if not isinstance(found, list):
        raise UserError(f"--published {path} must be a list of entries with {', '.join(FIELDS)}")
    return found


def _published(where: str, line: Any) -> Published:
    if not isinstance(line, Mapping):
        raise UserError(f"{where} has no {FIELDS[0]}: each has {', '.join(FIELDS)}")
    for name in line:
        if name not in FIELDS:
            raise UserError(f"{where} has {name!r}{near(str(name), FIELDS)}; there are {', '.join(FIELDS)}")
    texts = {name: str(line.get(name) if line.get(name) is not None else "").strip() for name in FIELDS}
    for name in FIELDS:
        if not texts[name] and name != "backbone":
            raise UserError(f"{where} has no {name}: each has {', '.join(FIELDS)}")
    try:
        value = float(texts.pop("value")) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"{where}: value {line.get('value')!r} is no accuracy in %, such as 67.8")
    return Published(value=value, **texts)


def with_published(table: Table, numbers: list[Published]) -> Table:
    """The table with each number in the blocks of its images and backbone; a note for each that fits nowhere."""
    blocks = tuple(replace(block, published=_rows(block, numbers)) for block in table.blocks)
    unused = [number for number in numbers if not any(_fits(block, number) for block in table.blocks)]
    notes = [
        f"published {n.method}, {n.protocol} on {n.data} with {n.backbone or 'any backbone'} fits no block"
        for n in unused
    ]
    return replace(table, blocks=blocks, notes=(*table.notes, *notes))


def _rows(block: Block, numbers: list[Published]) -> tuple[PublishedRow, ...]:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for number in numbers:
        if _fits(block, number):
            found.setdefault((number.method, number.source), {})[number.protocol] = number.value
    return tuple(
        PublishedRow(method, source, tuple(values.get(column.title) for column in block.columns))
        for (method, source), values in found.items()
    )


def _fits(block: Block, number: Published) -> bool:
    backbone = block.backbone.partition(" (")[0]
    protocols = {column.title for column in block.columns}
    return (
        number.data == block.data and number.backbone in ("", backbone, block.backbone) and number.protocol in protocols
    )
