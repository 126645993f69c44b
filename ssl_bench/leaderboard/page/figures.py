"""The pictures that `ssl-bench figures` wrote into run folders: beside a page, inside it, or not at all."""

import base64
import errno
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args
from urllib.parse import quote

from ssl_bench.console import say
from ssl_bench.errors import UserError, near
from ssl_bench.records.files import in_words, is_inside, read_regular, replacing

Images: TypeAlias = Literal["beside", "embed", "none"]
FOLDER = "figures"
MOST_BYTES = 2**25  # of a picture
PNG = b"\x89PNG\r\n\x1a\n"
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
    alt: str


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
    if images == "none":
        return []
    pictures = {name: content for name in FIGURES if (content := read_png(run, run / FOLDER / f"{name}.png"))}
    own, found = _captions(run) if pictures else {}, []
    for name in [name for name in own if name in FIGURES and not os.path.lexists(run / FOLDER / f"{name}.png")]:
        say(f"warning: {run / FOLDER / name}.png is gone, though {CAPTIONS} names it")
    for name, content in pictures.items():
        caption, alt = FIGURES[name]
        if images == "embed":
            address = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        else:
            assert folder is not None, "images beside a page need a folder"
            copy = folder / f"{prefix}-{name}.png"
            with replacing(copy) as temporary:
                temporary.write_bytes(content)
            address = quote(os.fsencode(f"{folder.name}/{copy.name}"))
        known = own.get(name)
        known = known if isinstance(known, dict) else {}
        found.append(Figure(address, _text(known, "caption") or caption, _text(known, "alt") or alt))
    return found


def read_png(run: Path, file: Path) -> bytes | None:
    """The content of a picture to publish: None for what is no PNG, no regular file, or lies outside its run's folder.

    A run folder may come from someone else: a link in it must not publish what it points to.

    Args:
        run: The run's folder.
        file: In it.
    """
    try:
        content = read_regular(file, MOST_BYTES) if is_inside(file, run) else b""
    except OSError:
        content = b""
    if _is_whole(content):
        return content
    if os.path.lexists(file):
        say(f"warning: {file} is not published: it is no whole PNG file of the run's own folder")
    return None


def _is_whole(content: bytes) -> bool:
    """Whether this is a PNG file from its first part to its last, each as its checksum says."""
    at = len(PNG)
    while content.startswith(PNG) and at + 12 <= len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4], "big")
        if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            return False
        if content[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False


def published_pictures(run: Path) -> list[Path]:
    """The pictures in a run's folder that may be published: regular PNG files of the folder itself, by name."""
    try:
        names = sorted(name for name in os.listdir(run / FOLDER) if name.endswith(".png") and name[:1] != ".")
    except OSError:
        return []
    return [run / FOLDER / name for name in names if read_png(run, run / FOLDER / name) is not None]


def _captions(run: Path) -> dict[str, Any]:
    """What `figures` wrote of a run's pictures; nothing where it is missing or damaged."""
    file = run / FOLDER / CAPTIONS
    try:
        if os.path.lexists(file) and not is_inside(file, run):
            raise OSError(errno.EINVAL, "it is no regular file of the run's own folder")
        found = json.loads(read_regular(file, MOST_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        say(f"warning: captions of {file} are not its own: {in_words(error)}")
        return {}
    return found if isinstance(found, dict) else {}


def _text(captions: dict[str, Any], key: str) -> str:
    text = captions.get(key)
    return text.strip() if isinstance(text, str) else ""
