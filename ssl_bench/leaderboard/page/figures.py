"""The pictures that `ssl-bench figures` wrote into run folders: beside a page, inside it, or not at all."""

import base64
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args
from urllib.parse import quote

from ssl_bench.errors import UserError, near
from ssl_bench.records.files import replacing

Images: TypeAlias = Literal["beside", "embed", "none"]
FOLDER = "figures"
CAPTIONS = "figures.json"  # name -> caption and alt, as the picture was drawn
# File -> caption, and what it shows for who cannot see it: where its own are missing.
FIGURES = {
    "reconstruction": (
        "Reconstructions: input, mask, prediction",
        "A few images in rows: the image, the image with its hidden patches grey, and what the method makes of them",
    ),
    "attention": (
        "Attention of the last block, head by head",
        "A few images in rows, and for each attention head where its class token or mean patch attends",
    ),
    "neighbours": (
        "Nearest neighbours of test images",
        "A few test images in rows, each followed by the training images whose features are nearest",
    ),
    "map": ("Map of features", "Features of test images in two dimensions, coloured by class"),
    "masks": ("Masks as the method saw them", "A few images in rows, and the patches hidden from the method"),
    "views": ("Views as the method saw them", "A few images in rows, and the augmented views made of each"),
}


@dataclass(frozen=True)
class Figure:
    """A picture of a run on the page: address (quoted as in a URL), caption, alternative text."""

    address: str
    caption: str
    words: str


def checked_images(images: str) -> Images:
    """Where figures go, by name.

    Raises:
        UserError: There is no such place.
    """
    if images not in get_args(Images):
        raise UserError(
            f"no place {images!r} for images{near(images, get_args(Images))}: {', '.join(get_args(Images))}"
        )
    return cast(Images, images)


def figures(run: Path, images: Images, folder: Path | None, prefix: str) -> list[Figure]:
    """A run's figures, as many as there are.

    Args:
        run: Its folder.
        images: beside: copied into ``folder``; embed: inside the page; none.
        folder: Where copies go, next to the page.
        prefix: Of the copies' names.
    """
    found = []
    own = _captions(run / FOLDER / CAPTIONS)
    for name, (caption, words) in FIGURES.items():
        file = run / FOLDER / f"{name}.png"
        if images == "none" or not file.is_file():
            continue
        if images == "embed":
            address = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
        else:
            assert folder is not None, "images beside a page need a folder"
            copy = folder / f"{prefix}-{name}.png"
            with replacing(copy) as temporary:
                shutil.copyfile(file, temporary)
            address = quote(os.fsencode(f"{folder.name}/{copy.name}"))
        said = own.get(name)
        said = said if isinstance(said, dict) else {}
        found.append(Figure(address, _said(said, "caption") or caption, _said(said, "alt") or words))
    return found


def _captions(file: Path) -> dict[str, Any]:
    """What `figures` wrote of a run's pictures; nothing where it is missing or damaged."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _said(said: dict[str, Any], key: str) -> str:
    words = said.get(key)
    return words.strip() if isinstance(words, str) else ""
