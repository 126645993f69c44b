"""The pictures that `ssl-bench figures` wrote into run folders: beside a page, inside it, or not at all."""

import base64
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, cast, get_args

from ssl_bench.errors import UserError, near
from ssl_bench.files import replacing

Images: TypeAlias = Literal["beside", "embed", "none"]
FOLDER = "figures"
# File -> caption, and what it shows for who cannot see it.
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
    """A picture of a run on the page: address, caption, alternative text."""

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
            address = f"{folder.name}/{copy.name}"
        found.append(Figure(address, caption, words))
    return found
