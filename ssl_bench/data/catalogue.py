"""The data sets by name. Torch-free: the command line lists and completes them."""

import os
from dataclasses import dataclass
from pathlib import Path

from ssl_bench.config import class_paths, registry

MASKED = "ssl_bench.data.sources.masked:"
SUBSETS = "ssl_bench.data.sources.imagenet_subsets:"
TABLES = "ssl_bench.data.sources.tables:load"
TORCHVISION = "ssl_bench.data.sources.torchvision_sets:load"


@dataclass(frozen=True)
class Entry:
    """A data set.

    Args:
        loader: `module:function` that opens it: DataOptions -> Source.
        image_size: Pixels of its square images; None for photographs of any size.
        classes: How many; None when the files decide.
        description: One line for `ssl-bench list data`.
        images: How many it has to pretrain on; None when the files decide.
    """

    loader: str
    image_size: int | None
    classes: int | None
    description: str
    images: int | None = None


CATALOGUE: dict[str, Entry] = {
    "digits": Entry(
        "ssl_bench.data.sources.digits:load",
        8,
        10,
        "scikit-learn's 1,797 handwritten digits, 8 px, embedded; saturated",
        1_287,
    ),
    "digits-canvas": Entry(
        "ssl_bench.data.sources.digits_canvas:load",
        32,
        10,
        "derived from digits: placed, scaled and tinted on cluttered 32 px canvases, 15,000 + 3,000, embedded",
        15_000,
    ),
    "textures": Entry(
        "ssl_bench.data.sources.textures:load",
        32,
        12,
        "twelve kinds of generated textures, 32 px, 15,000 + 3,000, embedded",
        15_000,
    ),
    "textures-easy": Entry(
        "ssl_bench.data.sources.textures:load", 32, 12, "the same with less noise and fewer scales", 15_000
    ),
    "textures-hard": Entry(
        "ssl_bench.data.sources.textures:load", 32, 12, "the same with more noise and more scales", 15_000
    ),
    "textures-mosaic": Entry(
        "ssl_bench.data.sources.textures_mosaic:load",
        64,
        12,
        "mosaics of these textures with a class for each pixel, 64 px, 600 + 240, embedded",
        600,
    ),
    "cifar10": Entry(TORCHVISION, 32, 10, "CIFAR-10, 50,000 + 10,000", 50_000),
    "cifar100": Entry(TORCHVISION, 32, 100, "CIFAR-100, 50,000 + 10,000", 50_000),
    "stl10": Entry(
        TORCHVISION, 96, 10, "STL-10, 5,000 + 8,000, and 100,000 unlabelled images for pretraining", 105_000
    ),
    "svhn": Entry(TORCHVISION, 32, 10, "Street View house numbers, 73,257 + 26,032", 73_257),
    "fashion_mnist": Entry(TORCHVISION, 28, 10, "Fashion-MNIST, gray, 60,000 + 10,000", 60_000),
    "eurosat": Entry(
        TORCHVISION,
        64,
        10,
        "EuroSAT, satellite, 27,000; its test images are a fixed fifth of each class, by us",
        21_600,
    ),
    "flowers102": Entry(TORCHVISION, None, 102, "Oxford Flowers 102, 2,040 (its train and val) + 6,149", 2_040),
    "food101": Entry(TORCHVISION, None, 101, "Food-101, 75,750 + 25,250", 75_750),
    "oxford_pets": Entry(TORCHVISION, None, 37, "Oxford-IIIT Pets, breeds, 3,680 + 3,669", 3_680),
    "dtd": Entry(
        TORCHVISION, None, 47, "Describable Textures, first partition, 3,760 (its train and val) + 1,880", 3_760
    ),
    "imagenette": Entry(TORCHVISION, None, 10, "ten easy classes of ImageNet, full size, 9,469 + 3,925", 9_469),
    "tiny_imagenet": Entry(
        SUBSETS + "tiny_imagenet", 64, 200, "TinyImageNet as it is unpacked, 64 px, 100,000 + 10,000 (its val)", 100_000
    ),
    "imagenet100": Entry(
        SUBSETS + "imagenet100",
        None,
        100,
        "ImageNet-100: 100 class folders in train/ and val/, or a list of them",
        126_689,
    ),
    "voc2012": Entry(MASKED + "voc2012", None, 21, "PASCAL VOC 2012, a class for each pixel, 1,464 + 1,449", 1_464),
    "oxford_pets_trimaps": Entry(
        MASKED + "pets", None, 2, "Oxford-IIIT Pets, pet or background for each pixel, 3,680 + 3,669", 3_680
    ),
    "ade20k": Entry(MASKED + "ade20k", None, 150, "ADE20K, a class for each pixel, 20,210 + 2,000", 20_210),
    "cityscapes": Entry(MASKED + "cityscapes", None, 19, "Cityscapes, a class for each pixel, 2,975 + 500", 2_975),
    "image-masks": Entry(MASKED + "folder", None, None, "yours: images/ and masks/, a class for each pixel"),
    "folder": Entry(
        "ssl_bench.data.sources.folder:load",
        None,
        None,
        "yours: train/val/test class folders, or unlabelled images in one",
    ),
    "parquet": Entry(TABLES, None, None, "yours: Hugging Face image layout, one or many shards"),
    "arrow": Entry(TABLES, None, None, "yours: what Hugging Face's save_to_disk wrote"),
    "table": Entry(TABLES, None, None, "yours: metadata.csv, or a CSV, TSV, JSON or parquet table of paths and labels"),
    "webdataset": Entry(
        "ssl_bench.data.sources.webdataset:load", None, None, "yours: WebDataset tars, NAME.jpg beside NAME.cls"
    ),
    "array": Entry(
        "ssl_bench.data.sources.arrays:load", None, None, "yours: NumPy or Zarr arrays of images with any channels"
    ),
    "hf": Entry(TABLES, None, None, "a data set of the Hugging Face hub, --data hf:ORG/NAME[/CONFIG]"),
}


def entry_of(name: str) -> Entry | None:
    """The data set of a name: of the catalogue, of an installed plug-in, or a function of the user's by its path."""
    if name in CATALOGUE:
        return CATALOGUE[name]
    if name not in registry.plug_ins("data") and not class_paths.is_class_path(class_paths.DATA, name):
        return None
    found = registry.find_plug_in("data", name)
    return Entry(f"{found.module}:{found.class_name}", None, None, f"plug-in: {found.module}")


def names() -> list[str]:
    """The catalogue's and installed plug-ins'."""
    return [*CATALOGUE, *registry.plug_ins("data")]


def default_root() -> Path:
    """Where torchvision's sets are downloaded to when no root is given."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ssl-bench" / "data"
