"""Which files of a folder are training images, which are test images, and their classes. Torch-free.

Three layouts are told apart by what is there:
- `train/`, with `test/` or else `val/` as test images, each holding a folder per class;
- a folder per class: a fixed fifth of each class becomes the test images, if each class has two or more;
- images without class folders, directly in the root or in `train/`: unlabelled, for pretraining only.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from ssl_bench.config.options import DataOptions
from ssl_bench.data.files.listing import (
    BESIDE,
    HARMLESS,
    UNLABELLED,
    Found,
    ImageFile,
    find_images,
    is_system,
    refusal_of_nothing,
    written_name,
)
from ssl_bench.errors import UserError

TESTS = ("test", "val")


@dataclass(frozen=True)
class Part:
    """The images of one folder.

    Args:
        files: In order of their class, then of their names.
        labels: The class of each; None without class folders.
    """

    files: list[ImageFile]
    labels: list[int] | None


@dataclass(frozen=True)
class Layout:
    """A folder of images, as its names tell it.

    Args:
        root: The folder.
        train: Training images; all images where there is no `train/`.
        test: Test images; None where no folder holds them.
        classes: Names of the class folders; None where there are none.
        test_is: The folder that holds the test images.
        has_train: Whether there is a folder `train/`.
        left_out: Files and folders that are no part of it: name -> why.
    """

    root: Path
    train: Part
    test: Part | None
    classes: tuple[str, ...] | None
    test_is: str
    has_train: bool
    left_out: dict[str, str]

    def refuse_lost_images(self) -> None:
        """Stop at an image that is left out because it cannot be read or decoded here: `--data.strict`.

        Raises:
            UserError: There is one.
        """
        for name, why in self.left_out.items():
            if why not in HARMLESS:
                raise UserError(f"{name} ({why}): remove it, or leave out --data.strict to skip such files")

    @property
    def files(self) -> list[ImageFile]:
        """All images."""
        return [*self.train.files, *(self.test.files if self.test else ())]


def read_layout(options: DataOptions) -> Layout:
    """What is in the folder that `root` names; no image is opened.

    Raises:
        UserError: There is no such folder, it is empty, or its layout is none of the three.
    """
    if options.root is None:
        raise UserError("--data folder needs --data.root: the folder that holds the images")
    root = Path(options.root).expanduser()
    if not root.is_dir():
        raise UserError(f"no folder {root}: --data.root says where the images are")
    test = next((name for name in TESTS if (root / name).is_dir()), None)
    if not (root / "train").is_dir():
        if test is not None:
            raise UserError(f"{root} has {test}/ but no train/ folder: put the training images there")
        found = find_images(str(root))
        groups = _by_class(found, "")
        classes = _classes(root, "", groups)
        return Layout(root, _part(root, "", classes, groups, found), None, classes, "", False, found.left_out)
    found = find_images(str(root), ["train", *([test] if test else [])])
    _name_the_rest(root, {"train", test}, found)
    groups = _by_class(found, "train")
    classes = _classes(root, "train", groups)
    train = _part(root, "train", classes, groups, found)
    if test is None or classes is None:
        if test is not None:
            found.left_out[f"{test}/"] = UNLABELLED
        return Layout(root, train, None, classes, "", True, found.left_out)
    groups = _by_class(found, test)
    others = _classes(root, test, groups)
    if others != classes:
        odd = sorted(set(others or ()) ^ set(classes))
        raise UserError(
            f"{root / 'train'} and {root / test} differ in their class folders, such as {odd[0]!r}: make them the same"
        )
    tests = _part(root, test, classes, groups, found)
    return Layout(root, train, tests, classes, f"the folder {test}", True, found.left_out)


def _name_the_rest(root: Path, used: set[str | None], found: Found) -> None:
    """What lies beside `train/` and is not looked into."""
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name not in used and not is_system(entry.name):
                name = written_name(entry.name) + ("/" if entry.is_dir() else "")
                found.left_out[name] = BESIDE


def _by_class(found: Found, top: str) -> dict[str, list[ImageFile]]:
    """Folder directly below `top` -> all images in it, in order; those in `top` itself under the empty name."""
    start, groups = f"{top}/" if top else "", dict[str, list[ImageFile]]()
    for file in found.files:
        name = file.name
        if name.startswith(start):
            end = name.find("/", len(start))
            groups.setdefault(name[len(start) : end] if end > 0 else "", []).append(file)
    return groups


def _classes(root: Path, top: str, groups: dict[str, list[ImageFile]]) -> tuple[str, ...] | None:
    """Names of the class folders, in order, or None when the images lie in the folder itself."""
    with os.scandir(root / top) as entries:
        folders = [
            entry.name
            for entry in entries
            if entry.is_dir() and not is_system(entry.name) and (entry.name in groups or not entry.is_symlink())
        ]
    if folders and "" in groups:
        odd = sorted(folders)[0]
        raise UserError(f"{root / top} holds images and folders ({odd!r}): class folders or images, not both")
    return tuple(sorted(folders)) or None


def _part(
    root: Path, top: str, classes: tuple[str, ...] | None, groups: dict[str, list[ImageFile]], found: Found
) -> Part:
    """The images of a folder by class.

    Raises:
        UserError: The folder, or that of a class, has none.
    """
    for name in classes or ("",):
        if name not in groups:
            own = "/".join(part for part in (top, name) if part)
            raise refusal_of_nothing(str(root / own), _below(found, own))
    if classes is None:
        return Part(groups[""], None)
    files = [file for name in classes for file in groups[name]]
    return Part(files, [label for label, name in enumerate(classes) for _ in groups[name]])


def _below(found: Found, top: str) -> Found:
    return Found([], {n: why for n, why in found.left_out.items() if not top or n == top or n.startswith(f"{top}/")})
