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
        classes = _classes(root, "", found)
        return Layout(root, _part(root, "", classes, found), None, classes, "", False, found.left_out)
    found = find_images(str(root), ["train", *([test] if test else [])])
    _name_the_rest(root, {"train", test}, found)
    classes = _classes(root, "train", found)
    train = _part(root, "train", classes, found)
    if test is None or classes is None:
        if test is not None:
            found.left_out[f"{test}/"] = UNLABELLED
        return Layout(root, train, None, classes, "", True, found.left_out)
    others = _classes(root, test, found)
    if others != classes:
        odd = sorted(set(others or ()) ^ set(classes))
        raise UserError(
            f"{root / 'train'} and {root / test} differ in their class folders, such as {odd[0]!r}: make them the same"
        )
    tests = _part(root, test, classes, found)
    return Layout(root, train, tests, classes, f"the folder {test}", True, found.left_out)


def _name_the_rest(root: Path, used: set[str | None], found: Found) -> None:
    """What lies beside `train/` and is not looked into."""
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.name not in used and not is_system(entry.name):
                name = written_name(entry.name) + ("/" if entry.is_dir() else "")
                found.left_out[name] = BESIDE


def _classes(root: Path, top: str, found: Found) -> tuple[str, ...] | None:
    """Names of the class folders, in order, or None when the images lie in the folder itself."""
    start = len(top) + 1 if top else 0
    loose, filled = False, set()
    for file in found.files:
        if not top or file.name.startswith(f"{top}/"):
            first, slash, _ = file.name[start:].partition("/")
            loose |= not slash
            filled.add(first)
    with os.scandir(root / top) as entries:
        folders = [
            entry.name
            for entry in entries
            if entry.is_dir() and not is_system(entry.name) and (entry.name in filled or not entry.is_symlink())
        ]
    if folders and loose:
        odd = sorted(folders)[0]
        raise UserError(f"{root / top} holds images and folders ({odd!r}): class folders or images, not both")
    return tuple(sorted(folders)) or None


def _part(root: Path, top: str, classes: tuple[str, ...] | None, found: Found) -> Part:
    """The images of a folder by class.

    Raises:
        UserError: The folder, or that of a class, has none.
    """
    files = [file for file in found.files if not top or file.name.startswith(f"{top}/")]
    if classes is None:
        if not files:
            raise refusal_of_nothing(str(root / top), _below(found, top))
        return Part(files, None)
    number = {name: label for label, name in enumerate(classes)}
    start = len(top) + 1 if top else 0
    labelled = sorted((number[file.name[start:].partition("/")[0]], file) for file in files)
    labels = [label for label, _ in labelled]
    for label in sorted(set(number.values()) - set(labels)):
        own = f"{top}/{classes[label]}" if top else classes[label]
        raise refusal_of_nothing(str(root / own), _below(found, own))
    return Part([file for _, file in labelled], labels)


def _below(found: Found, top: str) -> Found:
    return Found([], {n: why for n, why in found.left_out.items() if not top or n == top or n.startswith(f"{top}/")})
