"""Features of the patches of whole images: computed once per split, kept as float16 in mapped files, shared.

Shapes: N images of a split, T patches of all of them, G x F patches of one, D features.
"""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_bench.console import say
from ssl_bench.data.splits import Split
from ssl_bench.data.whole_images import Grid, Whole, whole_images
from ssl_bench.errors import UserError
from ssl_bench.evaluation.cost import Cost, progress, split_name
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.token_bank import rounded

TOGETHER = 16  # images whose windows go forward together


@final
@dataclass(frozen=True, eq=False)
class PatchFeatures:
    """Of the images of a split, in its order.

    Args:
        halves: (T, D) float16, the patches of an image row by row.
        scales: (T,) float32 powers of two that they are multiplied by.
        grids: (N, 2) G and F of each image.
        sizes: (N, 2) its pixels, before it was resized.
        device: Where features are returned.
    """

    halves: NDArray[np.float16]
    scales: NDArray[np.float32]
    grids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    device: torch.device

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def dim(self) -> int:
        """D."""
        return int(self.halves.shape[1])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """(N + 1,) first patch of each image, and T."""
        return np.cumsum([0, *self.grids.prod(1)])

    def rows(self, rows: "slice | NDArray[np.int64]") -> Tensor:
        """(M, D) float32 of some patches."""
        halves = torch.from_numpy(np.array(self.halves[rows])).to(self.device)
        return halves.float().mul_(torch.from_numpy(np.array(self.scales[rows])).to(self.device)[:, None])

    def chunks(self, count: int) -> Iterator[Tensor]:
        """(<= count, D) of all patches in turn."""
        for at in range(0, len(self.halves), count):
            yield self.rows(slice(at, at + count))

    def of(self, place: int) -> Tensor:
        """(G, F, D) of an image."""
        start, stop = self.starts[place : place + 2]
        return self.rows(slice(int(start), int(stop))).view(*self.grids[place].tolist(), self.dim)

    def moments(self) -> tuple[Tensor, Tensor]:
        """(D,) float64 mean and biased variance of each feature over all patches."""
        mean = torch.stack([part.double().sum(0) for part in self.chunks(65536)]).sum(0) / len(self.halves)
        squares = torch.stack([(part.double() - mean).square().sum(0) for part in self.chunks(65536)])
        return mean, squares.sum(0) / len(self.halves)


def grid_of(backbone: FeatureExtractor, short_side: int | None = None) -> Grid:
    """The windows and cells of a network.

    Raises:
        UserError: Its map has no whole number of pixels for each place.
    """
    size = backbone.img_size
    cells = backbone.patch_map(torch.zeros(1, backbone.channels, size, size)).shape[1]
    if size % cells:
        raise UserError(f"a map of {cells} x {cells} places does not divide {size} pixels: choose another img_size")
    return Grid(size, cells, short_side)


def why_no_places(backbone: FeatureExtractor) -> str | None:
    """Why a network has no features of an image's places, if it has none."""
    if not hasattr(type(backbone.network), "patch_map"):
        return f"{backbone.baseline or 'networks of one feature'} have no features of an image's places"
    try:
        grid_of(backbone)
    except UserError as error:  # of a network that is known by its pooled features alone
        return str(error)
    return None


def patch_features(
    backbone: FeatureExtractor, split: Split, layers: int = 1, short_side: int | None = None
) -> PatchFeatures:
    """Those of a split: read if they were computed before.

    Args:
        backbone: Whose features.
        split: The images.
        layers: Of a ViT, how many of its last blocks stand side by side, each after the final norm.
        short_side: Pixels that images' short side is brought to; see `data.whole_images` when not given.
    """
    grid = grid_of(backbone, short_side)
    fields = {**backbone.fields(split), "patches of": layers, "grid": [grid.img_size, grid.cells, grid.short_side]}
    text = json.dumps(fields, sort_keys=True)
    name = f"{split_name(split)}-patches-{hashlib.sha256(text.encode()).hexdigest()}"
    if backbone.cache_dir is not None:
        found = _loaded(backbone.cache_dir / name, text, backbone)
        if found is not None:
            return found
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=".patches-", dir=_writable(backbone.cache_dir)) as temporary:
        made, windows = _computed(backbone, split, grid, layers, Path(temporary))
        cost = Cost(windows, windows * backbone.flops_per_image, time.perf_counter() - start)
        backbone.spent += cost
        backbone.used[name.rpartition("-")[0]] = cost
        if backbone.cache_dir is None or not _kept(made, cost, text, Path(temporary), backbone.cache_dir / name):
            return replace(made, halves=np.array(made.halves))  # the file goes
    found = _loaded(backbone.cache_dir / name, text, backbone)
    assert found is not None, "written a moment ago"
    return found


def _writable(folder: Path | None) -> Path | None:
    """Where to compute: beside where they will be kept, or where the system keeps what is temporary."""
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _computed(
    backbone: FeatureExtractor, split: Split, grid: Grid, layers: int, folder: Path
) -> tuple[PatchFeatures, int]:
    """Features of all images in files of a folder, and how many windows went forward."""
    scales, grids, sizes, windows, dim = [np.zeros(0, np.float32)], [], [], 0, 1
    what = f"patches of the {split_name(split)} images"
    with open(folder / "halves", "wb") as file, progress(what, len(split)) as bar:
        for images in _several(whole_images(split, grid, backbone.num_workers)):
            cut = [grid.windows(whole.image) for whole in images]
            together = torch.cat(cut)
            maps = torch.cat([backbone.patch_map(some, layers) for some in together.split(backbone.batch_size)])
            if not maps.isfinite().all():
                raise UserError("the backbone's patch features are not finite: its pretraining has diverged")
            windows, dim = windows + len(together), maps.shape[-1]
            for whole, own in zip(images, maps.split([len(part) for part in cut]), strict=True):
                joined = grid.joined(own, *whole.image.shape[1:])  # (G, F, D)
                halves, scale = rounded(joined.flatten(0, 1)[None])
                file.write(halves[0].cpu().contiguous().numpy().tobytes())
                scales.append(scale[0, :, 0].cpu().numpy())
                grids.append(joined.shape[:2])
                sizes.append(whole.size)
            bar.update(len(images))
    all_scales = np.concatenate(scales)
    shape = (len(all_scales), dim)
    mapped = np.memmap(folder / "halves", np.float16, "r", shape=shape) if len(split) else np.zeros(shape, np.float16)
    counts = np.array(grids, dtype=np.int64).reshape(-1, 2), np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return PatchFeatures(mapped, all_scales, *counts, backbone.device), windows


def _several(images: Iterator[Whole]) -> Iterator[list[Whole]]:
    some: list[Whole] = []
    for whole in images:
        some.append(whole)
        if len(some) == TOGETHER:
            yield some
            some = []
    if some:
        yield some


def _kept(made: PatchFeatures, cost: Cost, text: str, temporary: Path, folder: Path) -> bool:
    """Move what was computed to where it is looked for; whether that was possible."""
    try:
        np.savez(temporary / "about.npz", scales=made.scales, grids=made.grids, sizes=made.sizes)
        about = {"fields": text, "dim": made.dim, "cost": vars(cost)}
        (temporary / "fields.json").write_text(json.dumps(about), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        for name in ("halves", "about.npz", "fields.json"):  # the last says that all are there
            os.replace(temporary / name, folder / name)
    except OSError as error:
        say(f"warning: patch features cannot be kept in {folder.parent} ({error})")
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def _loaded(folder: Path, text: str, backbone: FeatureExtractor) -> PatchFeatures | None:
    """Features in files, or None unless they are whole and made from exactly these fields."""
    if not (folder / "fields.json").is_file():
        return None
    try:
        about: dict[str, Any] = json.loads((folder / "fields.json").read_text(encoding="utf-8"))
        if about["fields"] != text:
            raise ValueError("made from something else")
        with np.load(folder / "about.npz") as arrays:
            scales, grids, sizes = (arrays[name] for name in ("scales", "grids", "sizes"))
        shape = (len(scales), int(about["dim"]))
        if int(grids.prod(1).sum()) != len(scales) or (folder / "halves").stat().st_size != 2 * shape[0] * shape[1]:
            raise ValueError("damaged")
        halves = np.memmap(folder / "halves", np.float16, "r", shape=shape)
        cost = Cost(**about["cost"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"{folder}: {error}; computing these patches again")
        return None
    backbone.used[folder.name.rpartition("-")[0]] = cost
    return PatchFeatures(halves, scales, grids, sizes, backbone.device)
