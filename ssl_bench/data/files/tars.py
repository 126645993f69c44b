"""What tars hold, as WebDataset has it: files whose names are equal up to the first dot are a sample. Torch-free."""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ssl_bench.data.files.listing import IMAGES, is_system
from ssl_bench.errors import UserError


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Args:
        start: Its first byte in the tar.
        size: How many.
    """

    start: int
    size: int


def samples(tar: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Name and files of each sample, by what follows the first dot.

    Raises:
        UserError: It is no tar, or a damaged one.
    """
    found: dict[str, dict[str, Member]] = {}
    try:
        with tarfile.open(tar, "r:") as opened:
            for member in opened:
                folder, slash, base = member.name.rpartition("/")
                if not member.isreg() or is_system(base or "."):
                    continue
                stem, _, ending = base.partition(".")
                found.setdefault(folder + slash + stem, {})[ending.lower()] = Member(member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{tar} is no readable tar: {error}; one that is compressed must be unpacked") from None
    if any(file.start + file.size > tar.stat().st_size for files in found.values() for file in files.values()):
        raise UserError(f"{tar} is cut short: fetch it again")
    yield from found.items()


def images_of(files: Mapping[str, Member]) -> list[str]:
    """Endings of a sample's images."""
    return [ending for ending in files if f".{ending.rpartition('.')[2]}" in IMAGES]


def images_in(tar: Path) -> Iterator[Member]:
    """The images of a tar's samples.

    Raises:
        UserError: As `samples`.
    """
    for _, files in samples(tar):
        yield from (files[ending] for ending in images_of(files)[:1])


def read_member(tar: Path, member: Member) -> bytes:
    """The content of a file in a tar."""
    with open(tar, "rb") as file:
        file.seek(member.start)
        return file.read(member.size)
