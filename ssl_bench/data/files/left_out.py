"""Images that were found broken only while a run, or its evaluation, read them. Torch-free.

The run's folder remembers them, a line each, so that the run, its probe and its evaluations leave out the same images,
whichever of them met one first.
"""

import json
import re
from pathlib import Path
from typing import Self, final

from ssl_bench.errors import UserError
from ssl_bench.records.files import read_regular

LEFT_OUT = "left_out.jsonl"
MOST_BYTES = 256 << 20  # about a million names
MESSAGE = "broken image {}: evaluations need every image, so mend or remove it ({})"


@final
class UnreadableImage(UserError):
    """An image of a split cannot be decoded.

    It survives the trip from a worker process, which hands over its text inside a traceback.

    Args:
        text: That of `MESSAGE`, whatever stands around it.
    """

    def __init__(self, text: str) -> None:
        start, end = (re.escape(part) for part in MESSAGE.replace("({})", "").split("{}"))
        found = re.search(rf"{start}(.*){end}\((.*)\)", text)
        self.name, self.why = (found[1], found[2]) if found else (text, "")
        super().__init__(found[0] if found else text)

    @classmethod
    def of(cls, name: str, why: str) -> Self:
        """Of an image's name and what is wrong with it."""
        return cls(MESSAGE.format(name, why))


def read_left_out(folder: Path) -> dict[str, str]:
    """Name -> why, of the images that a run's folder remembers as broken."""
    try:
        lines = read_regular(folder / LEFT_OUT, MOST_BYTES).decode(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        where = f"cannot read {folder / LEFT_OUT}: {error.strerror}"
        raise UserError(f"{where}: move it away, and broken images are met again") from None
    found: dict[str, str] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            found[str(entry["name"])] = str(entry["why"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue  # cut short by a full disk: the image is met again
    return found


def add_left_out(folder: Path, name: str, why: str) -> None:
    """Remember an image as broken; several processes may do so at once."""
    with open(folder / LEFT_OUT, "a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "why": why}) + "\n")
