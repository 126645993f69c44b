"""What `ssl-bench figures` is asked for. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.errors import UserError, near

NAMES = ("reconstruction", "attention", "neighbours", "map", "masks", "views")
MOST = 32


@dataclass(frozen=True)
class Figures:
    """A parsed `figures` command.

    Args:
        runs: Run folders, or folders of them.
        only: Names of the pictures; all when None.
        images: Shown in each picture of images.
        data: Options of the images that were given: `name`, `root`.
        device: auto, cpu, cuda, ...
        force: Draw again what is current.
        named_classes: Class paths that the runs' configurations may have, since the user named them.

    Raises:
        UserError: A picture that there is not, or too many images.
    """

    runs: Sequence[Path]
    only: Sequence[str] | None = None
    images: int = 8
    data: dict[str, Any] | None = None
    device: str = "auto"
    force: bool = False
    named_classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in self.only or ():
            if name not in NAMES:
                raise UserError(f"--only: no picture {name!r}{near(name, NAMES)} ({', '.join(NAMES)})")
        if not 1 <= self.images <= MOST:
            raise UserError(f"--images {self.images} must lie between 1 and {MOST}")
