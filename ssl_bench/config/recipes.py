"""Which recipe a run starts from, by what its images are: a set of the catalogue, their size, their number. Torch-free.

A named set has the recipe made for it, where there is one (`mae-cifar10`). Other images of at most 96 px have
CIFAR-10's, or the demo's where they are few, with patches that leave a grid of about 8 x 8 of them and as many steps;
photographs have the published one (`mae`). The name of a folder says nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ssl_bench.config import registry
from ssl_bench.errors import UserError, near

CONTINUE = "continue"  # the recipe over a method's own where a run begins with weights
SMALL = 96  # pixels; images of at most this size stay in memory, and patches of 16 px are too large for them
FEW_SMALL = 10_000  # with fewer small images, the recipe of the demo, which has 15,000
FEW_PHOTOGRAPHS = 50_000  # with fewer, steps of thousands of images would be a handful an epoch
SMALL_RECIPES = {"cifar10": 50_000, "digits-canvas": 15_000}  # name -> images that it was made for
GRID = 8  # patches along a side
MOST_EPOCHS = 800
STEP = 4  # small images are brought to a multiple of so many pixels, which patches divide


@dataclass(frozen=True)
class Images:
    """What a recipe is chosen by.

    Args:
        name: Of the set in the catalogue; empty for someone's own images.
        size: Pixels of a side of small images; None for photographs.
        count: Training images, at least; None when that is not known.
        one_size: All have that size, so that it need not be asked for.
    """

    name: str = ""
    size: int | None = None
    count: int | None = None
    one_size: bool = True


@dataclass(frozen=True)
class Recipe:
    """Where a configuration starts.

    Args:
        name: Of the recipe.
        file: Its YAML.
        fitted: Options that fit it to these images, over its own.
        why: For people: what it was chosen for, if not by name.
    """

    name: str
    file: Path
    fitted: dict[str, Any] = field(default_factory=dict)
    why: str = ""


def recipe_named(name: str) -> Recipe:
    """The recipe that was asked for.

    Raises:
        UserError: There is none of that name.
    """
    known = dict(registry.recipes())
    if name.endswith((".yaml", ".yml")):
        return Recipe(Path(name).stem, Path(name))
    if name not in known:
        raise UserError(f"no recipe {name!r}{near(name, known)} (ssl-bench list recipes)")
    return Recipe(name, known[name])


def recipe_for(method: str, images: Images) -> Recipe | None:
    """The method's recipe for such images; None for a method that has none."""
    known = dict(registry.recipes())
    own = f"{method}-{images.name}"
    if images.name and own in known:
        return Recipe(own, known[own])
    if images.size is None or images.size > SMALL:
        few = images.count is not None and images.count < FEW_PHOTOGRAPHS
        fitted = {"trainer.accumulate_grad_batches": 1} if few else {}
        return Recipe(method, known[method], fitted) if method in known else None
    few = images.count is not None and images.count < FEW_SMALL
    staged = any(name.startswith(f"{method}-") for name in registry.names("methods"))  # whose recipes are to agree
    for suffix in ("digits-canvas", "cifar10") if few and not staged else ("cifar10",):
        if f"{method}-{suffix}" in known:
            many = f"{images.count:,} " if images.count is not None else ""
            why = f"for {many}images of {images.size} px"
            return Recipe(f"{method}-{suffix}", known[f"{method}-{suffix}"], {}, why)
    return Recipe(method, known[method]) if method in known else None


def fit_to(recipe: Mapping[str, Any], name: str, images: Images, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options that fit a recipe of small images to images of another size or number.

    Args:
        recipe: Its flat options; the default network alone where a method has no recipe.
        name: Its name.
        images: What they are to fit.
        given: Flat options of the user's, which win in any case.
    """
    asked = str(given.get("backbone.img_size") or given.get("data.image_size") or images.size)
    if not asked.isdecimal() or not 0 < int(asked[:9]) <= SMALL:  # what is no size, the parser refuses
        return {}
    size, fitted = int(asked), dict[str, Any]()
    if "backbone.img_size" not in given and "data.image_size" not in given:
        whole = -(-size // STEP) * STEP
        if whole != size or not images.one_size:
            fitted["data.image_size"] = size = whole
    network, patch = str(recipe.get("backbone.name", "")), patch_for(size)
    if "patch" in network and "swin" not in network and patch != int(recipe.get("backbone.patch_size", 4)):
        fitted["backbone.patch_size"] = patch
    if recipe.get("method.mask_cell") and "backbone.patch_size" in fitted:  # SimMIM hides squares of 2 x 2 patches
        fitted["method.mask_cell"] = 2 * patch if size % (2 * patch) == 0 else patch
    made_for = next((count for suffix, count in SMALL_RECIPES.items() if name.endswith(f"-{suffix}")), None)
    epochs = recipe.get("trainer.max_epochs")
    if images.count and epochs and made_for == SMALL_RECIPES["digits-canvas"] and "trainer.max_epochs" not in given:
        times = max(1.0, made_for / images.count)  # as many steps, of as many images
        fitted["trainer.max_epochs"] = min(MOST_EPOCHS, round(epochs * times))
        if warmup := recipe.get("optim.warmup_epochs"):
            fitted["optim.warmup_epochs"] = round(warmup * fitted["trainer.max_epochs"] / epochs, 2)
        if (every := recipe.get("probe.every_n_epochs")) and times > 1:
            fitted["probe.every_n_epochs"] = round(every * fitted["trainer.max_epochs"] / epochs)
    return fitted


def patch_for(size: int) -> int:
    """Pixels of a patch's side: what divides the image into a grid nearest to 8 x 8, and is no single pixel."""
    fitting = [patch for patch in range(2, size // 2 + 1) if size % patch == 0] or [size]
    return min(fitting, key=lambda patch: (abs(size / patch - GRID), patch))
