"""The image files below a folder, each once, and what is left out with the reason. Torch-free.

An image is what its content says it is, whatever its name ends in. What systems leave behind (thumbnails of file
servers, recycle bins, hidden files) is no data and is passed over without a word.

A file counts once, however many names lead to it: a link to a folder or file that is found elsewhere below the root,
and a second hard link to a file, are left out. So no image is trained on twice as often, and none of the training
images is a test image by another name. Real folders are searched before links, all in the order of their names.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple, final

from ssl_bench.errors import UserError

# Hidden ones begin with a dot: .DS_Store, ._photo.jpg, .thumbnails, .Spotlight-V100, .Trashes, .ipynb_checkpoints.
SYSTEM = {
    *("@eadir", "@recycle", "#recycle", "#snapshot", "@tmp", "@__thumb"),  # file servers
    *("$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini"),  # Windows
    *("__macosx", "icon\r", "network trash folder", "temporary items", "lost+found", "__pycache__"),
}
IMAGES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    *(".tga", ".ico", ".mpo", ".psd", ".pcx", ".sgi", ".ras", ".qoi"),
}
PLUG_IN = {".heic", ".heif", ".hif", ".avif", ".avifs", ".jxl", ".jxr", ".wdp"}  # Pillow may have one, or not
RAW = {
    *(".raw", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".orf", ".rw2", ".raf"),
    *(".pef", ".srw", ".3fr", ".dcr", ".kdc", ".mrw", ".x3f", ".iiq", ".rwl", ".mef", ".mos", ".erf"),
}
OTHERS = {
    **dict.fromkeys((".dcm", ".dicom", ".nii", ".npy", ".npz", ".mat", ".fits", ".svs", ".czi"), "save it as TIFF"),
    **dict.fromkeys((".svg", ".pdf", ".eps", ".ps", ".ai"), "save it as PNG"),
    **dict.fromkeys((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"), "save its frames as images"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".xz", ".bz2", ".zst"), "unpack it"),
}
TEXT = {".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".md", ".yaml", ".yml", ".html", ".htm", ".py", ".log"}
STARTS = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"II*\0",
    b"MM\0*",
    b"\0\0\0\x0cjP  ",
    b"8BPS",
    b"qoif",
)
NO_IMAGE = "no image"
NO_FILE = "no regular file"
LINKED_FOLDER = "a link to a folder that is counted already"
LINKED_FILE = "a link to a file that is counted already"
HARD_LINK = "a hard link to a file that is counted already"
COUNTED = "counted already, through a link"
BESIDE = "it lies beside train/"
UNLABELLED = "train/ holds images without class folders, so nothing is evaluated"
HARMLESS = {NO_IMAGE, NO_FILE, LINKED_FOLDER, LINKED_FILE, HARD_LINK, COUNTED, BESIDE, UNLABELLED}  # no image is lost


class ImageFile(NamedTuple):
    """A file, as it is on the disk.

    Args:
        name: From the root on, with `/` between folders.
        path: Where it is opened.
        size: Bytes.
        modified: Nanoseconds at which its content was last written.
        changed: Nanoseconds at which its content or its entry was last changed.
        inode: Its number on the disk.
    """

    name: str
    path: str
    size: int
    modified: int
    changed: int
    inode: int


@final
@dataclass
class Found:
    """What is below a folder.

    Args:
        files: In order of their names.
        left_out: Name -> why.
    """

    files: list[ImageFile] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def find_images(root: str, tops: Sequence[str] = ("",)) -> Found:
    """Image files at any depth below some folders of a root.

    Args:
        root: The folder that names begin at.
        tops: The folders, in the order in which they are searched; the root itself when not given.
    """
    search = _Search(root)
    for top in tops:
        search.enter(top, os.path.join(root, top) if top else root)
    search.follow_links()
    search.found.files.sort()
    return search.found


def listed(files: Iterable[tuple[str, str]]) -> list[ImageFile]:
    """Files whose names and paths are known; one that is not there has no size and no times."""
    rows = []
    for name, path in files:
        try:
            status = os.stat(path)
            times = status.st_mtime_ns, status.st_ctime_ns
            rows.append(ImageFile(name, path, status.st_size, *times, status.st_ino))
        except OSError:
            rows.append(ImageFile(name, path, 0, 0, 0, 0))
    return rows


def is_system(name: str) -> bool:
    """Whether a file or folder of this name is an operating system's or a file server's, not the user's."""
    return name[0] == "." or name.lower() in SYSTEM


def written_name(name: str) -> str:
    """A file's name as records have it: a byte that is not UTF-8 as `\\xe9`, and so a backslash as `\\\\`."""
    doubled = name.replace("\\", "\\\\")
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in doubled)


def file_name(written: str) -> str:
    """What `written_name` was made from."""
    parts = written.split("\\\\")
    for at, part in enumerate(parts):
        first, *others = part.split("\\x")
        parts[at] = first + "".join(chr(0xDC00 + int(other[:2], 16)) + other[2:] for other in others)
    return "\\".join(parts)


def refusal_of_nothing(folder: str, found: Found) -> UserError:
    """There are no images in a folder: what there is instead."""
    if not found.left_out:
        return UserError(f"no images in {folder}: put them there, or name another folder (--data.root)")
    name, why = next(iter(found.left_out.items()))
    return UserError(f"no images in {folder}: {len(found.left_out)} files are left out, such as {name} ({why})")


@final
class _Search:
    def __init__(self, root: str) -> None:
        self.root, self.found = root, Found()
        self.folders: dict[str, str] = {}  # real path of each folder that was entered -> its name
        self.links: list[tuple[str, str]] = []  # name and path of links, for later
        self.following = False
        self.targets: set[str] = set()  # real paths of files, once links are followed
        self.inodes: dict[tuple[int, int], str] = {}  # of files with several hard links -> the first one's name

    def enter(self, name: str, path: str) -> None:
        """A folder and all below it that is no link."""
        if os.path.islink(path) and name:
            self.links.append((name, path))
            return
        self._walk(name, path, os.path.realpath(path))

    def follow_links(self) -> None:
        """All links, of which some may lead to folders that hold links."""
        if self.links:
            self.following, self.targets = True, self._real_paths()
        while self.links:
            waiting, self.links = sorted(self.links), []
            for name, path in waiting:
                real = os.path.realpath(path)
                if os.path.isdir(real):
                    if real in self.folders:
                        self.found.left_out[written_name(name)] = LINKED_FOLDER
                    else:
                        self._walk(name, path, real)
                elif real in self.targets:
                    self.found.left_out[written_name(name)] = LINKED_FILE
                elif self._add(name, path):
                    self.targets.add(real)

    def _real_paths(self) -> set[str]:
        """Of the files found so far that are no links themselves."""
        real = {name: folder for folder, name in self.folders.items()}
        parts = (file.name.rpartition("/") for file in self.found.files)
        return {f"{real[folder]}{os.sep}{base}" for folder, _, base in parts if folder in real}

    def _walk(self, name: str, path: str, real: str) -> None:
        waiting = [(name, path, real)]
        while waiting:
            name, path, real = waiting.pop()
            if real in self.folders:
                self.found.left_out[written_name(name)] = COUNTED
                continue
            self.folders[real] = name
            try:
                with os.scandir(path) as scan:
                    entries = sorted((e for e in scan if not is_system(e.name)), key=lambda entry: entry.name)
            except OSError as error:
                self.found.left_out[written_name(name) or "."] = f"it cannot be read ({error.strerror})"
                continue
            below = []
            start = f"{name}/" if name else ""
            for entry in entries:
                own = start + entry.name
                if entry.is_symlink():
                    self.links.append((own, entry.path))
                elif entry.is_dir():
                    below.append((own, entry.path, f"{real.rstrip(os.sep)}{os.sep}{entry.name}"))
                elif self.following and f"{real}{os.sep}{entry.name}" in self.targets:
                    self.found.left_out[written_name(own)] = COUNTED
                elif self._add(own, entry.path, entry) and self.following:
                    self.targets.add(f"{real}{os.sep}{entry.name}")
            waiting += reversed(below)

    def _add(self, name: str, path: str, entry: "os.DirEntry[str] | None" = None) -> bool:
        """Count a file if it is an image and new; whether it was."""
        try:
            status = entry.stat() if entry is not None else os.stat(path)
            why = _fault(name, path, status)
        except OSError as error:
            gone = isinstance(error, FileNotFoundError)
            why = "a link to nothing" if gone else f"it cannot be read ({error.strerror})"
        if why is None and status.st_nlink > 1 and status.st_ino:
            first = self.inodes.setdefault((status.st_dev, status.st_ino), name)
            why = None if first == name else HARD_LINK
        if why is not None:
            self.found.left_out[written_name(name)] = why
            return False
        self.found.files.append(
            ImageFile(name, path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        )
        return True


def _fault(name: str, path: str, status: os.stat_result) -> str | None:
    """Why a file is no image that can be used, as far as its name and first bytes tell."""
    if not stat.S_ISREG(status.st_mode):
        return NO_FILE
    dot = name.rfind(".")
    ending = name[dot:].lower() if dot > name.rfind("/") else ""
    if status.st_size == 0:
        return "an empty file" if ending in IMAGES | PLUG_IN | RAW else NO_IMAGE
    if ending in IMAGES:
        return None
    if ending in PLUG_IN:
        return None if ending in _plugged_in() else f"{ending} cannot be decoded here: save it as JPEG or PNG"
    if ending in RAW:
        return f"{ending}, a camera's raw file, cannot be decoded here: save it as TIFF or JPEG"
    if ending in OTHERS:
        return f"{ending} cannot be decoded here: {OTHERS[ending]}"
    return None if ending not in TEXT and _begins_as_image(path) else NO_IMAGE


@cache
def _plugged_in() -> set[str]:
    from PIL import Image, features

    known = set(Image.registered_extensions())
    return known if features.check("avif") else known - {".avif", ".avifs"}


def _begins_as_image(path: str) -> bool:
    with open(path, "rb") as file:
        start = file.read(26)
    bitmap = start[:2] == b"BM" and int.from_bytes(start[14:18], "little") in (12, 40, 52, 56, 64, 108, 124)
    return start.startswith(STARTS) or start[:4] == b"RIFF" and start[8:12] == b"WEBP" or bitmap
