"""Masks against the statistics of the official code, and what must hold of each of them."""

import math
import random
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from golden_files import load
from hypothesis import given
from torch import Tensor

from ssl_bench.pretraining.masks import block_masks, hidden_mask, mask_ratios, random_masks

DRAWS = 20_000
STATISTICS: dict[str, Any] = load("ibot_masks")[0]["statistics"]


def one_by_one(rng: random.Random, grid: int, target: float, min_area: float, exact: bool) -> list[list[bool]]:
    """A mask as BEiT draws it: block after block, try after try."""
    mask = [[False] * grid for _ in range(grid)]
    left, failed = target, 0
    while left > 0 and (exact or failed < 10):
        area, shape = rng.uniform(min_area, left), math.exp(rng.uniform(math.log(0.3), -math.log(0.3)))
        height, width = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        failed += 1
        if width >= grid or height >= grid:
            continue
        top, start = rng.randint(0, grid - height), rng.randint(0, grid - width)
        cells = [(y, x) for y in range(top, top + height) for x in range(start, start + width) if not mask[y][x]]
        if 0 < len(cells) <= left:
            for y, x in cells:
                mask[y][x] = True
            left, failed = left - len(cells), 0
    return mask


def drawn(case: str, seed: int = 0) -> Tensor:
    """(20000, N) masks with the options of a golden case."""
    torch.manual_seed(seed)
    c = STATISTICS[case]
    ratios, spreads = (tuple(v) if isinstance(v, list) else (float(v),) for v in (c["pred_ratio"], c["pred_ratio_var"]))
    target = mask_ratios(DRAWS, ratios, spreads) * c["grid"] ** 2
    if c["shape"] == "rand":
        return random_masks(DRAWS, c["grid"], target)
    return block_masks(DRAWS, c["grid"], target, (c["grid"] // 3) ** 2)


@pytest.mark.parametrize("case", STATISTICS)
def test_statistics_of_the_official_code(case: str) -> None:
    """Both are means of 20 000 draws, so differences have sqrt(2) times the error of one; 4.5 of those are allowed."""
    c = STATISTICS[case]
    masks = drawn(case)
    ratio = masks.double().mean(1)
    error = 4.5 * math.sqrt(2 / DRAWS)
    assert abs(ratio.mean() - c["mean_ratio"]) <= error * c["std_ratio"]
    assert abs((ratio == 0).double().mean() - c["fraction_empty"]) <= error / 2
    some = ratio[ratio > 0]
    assert abs(some.mean() - c["mean_ratio_non_empty"]) <= 1.5 * error * some.std()  # half of them are empty
    assert abs(ratio.std() - c["std_ratio"]) <= error * c["std_ratio"]
    assert some.min().item() == pytest.approx(c["min_non_empty"], abs=0.03)
    assert ratio.max().item() == pytest.approx(c["max"], abs=1e-9)
    quantiles = some.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], dtype=torch.float64))
    assert quantiles.tolist() == pytest.approx(c["quantiles_non_empty"], abs=0.016)  # about one patch of 8 x 8
    rows = masks.double().unflatten(1, (c["grid"], c["grid"])).mean((0, 2))
    assert rows.tolist() == pytest.approx(c["mean_center_row_profile"], abs=error / 2)


def test_half_are_empty_and_the_others_fall_short_as_often_as_one_by_one() -> None:
    """`methods.md`: 49 % empty; of the others, 40 % of 14 x 14 end below their target, their mean is 0.296 of all."""
    torch.manual_seed(0)
    target = mask_ratios(10_000, (0.0, 0.3), (0.0, 0.2)) * 196
    masks = block_masks(10_000, 14, target, 16)
    empty = masks.sum(1) == 0
    assert 0.48 <= empty.double().mean().item() <= 0.52
    assert torch.equal(empty, target == 0)
    assert (masks.sum(1) <= target.ceil()).all()
    short = (masks.sum(1) < target.floor())[~empty].double().mean().item()
    rng, fell_short = random.Random(0), 0
    for _ in range(1000):
        goal = 196 * rng.uniform(0.1, 0.5)
        fell_short += sum(map(sum, one_by_one(rng, 14, goal, 16, exact=False))) < math.floor(goal)
    assert short == pytest.approx(fell_short / 1000, abs=0.06)
    assert 0.2 < short < 0.5


@pytest.mark.parametrize(
    ("grid", "target", "min_area"), [(14, 98, 16), (8, 32, 5), (14, 75, 16), (6, 36, 4), (2, 3, 1)]
)
def test_exact_masks_hide_exactly_so_many(grid: int, target: int, min_area: int) -> None:
    torch.manual_seed(0)
    masks = block_masks(1000, grid, target, min_area, exact=True)
    assert masks.shape == (1000, grid**2)
    assert masks.dtype == torch.bool
    assert (masks.sum(1) == target).all()
    assert len(masks.unique(dim=0)) > 0.9 * min(1000, math.comb(grid**2, target))


def edges(masks: Tensor) -> Tensor:
    """(B, g, g) -> (B,): pairs of neighbours of which one is hidden; fewer where blocks are compact."""
    return (masks[:, 1:] ^ masks[:, :-1]).sum((1, 2)) + (masks[:, :, 1:] ^ masks[:, :, :-1]).sum((1, 2))


@pytest.mark.parametrize("exact", [True, False])
def test_shapes_are_those_drawn_one_by_one(exact: bool) -> None:
    """Ragged edges and places agree with the loop's, to four standard errors."""
    torch.manual_seed(0)
    rng = random.Random(0)
    theirs = torch.tensor([one_by_one(rng, 14, 98, 16, exact) for _ in range(600)])
    ours = block_masks(4000, 14, 98, 16, exact=exact).unflatten(1, (14, 14))
    for measure in (edges, lambda masks: masks[:, :3].sum((1, 2)), lambda masks: masks[:, 5:9, 5:9].sum((1, 2))):
        a, b = measure(ours).double(), measure(theirs).double()
        assert abs(a.mean() - b.mean()) < 4 * (b.var() / len(b) + a.var() / len(a)).sqrt()


def test_first_block_is_as_large_and_as_long_as_asked() -> None:
    """Area 30, sides from 1:2 to 2:1 before rounding, either way as often."""
    torch.manual_seed(0)
    masks = block_masks(2000, 20, 30.0, min_area=30.0, aspect=0.5).unflatten(1, (20, 20))
    height, width = (masks.any(axis).sum(1).double() for axis in (2, 1))
    whole = height * width == masks.sum((1, 2))  # one block alone
    assert whole.double().mean() > 0.5
    assert masks.sum((1, 2)).max() <= 30
    ratio = (height / width)[whole]
    assert ratio.min() > 0.45 and ratio.max() < 2.3
    assert ratio.log().mean().abs() < 0.05


def test_targets_may_differ_between_images_and_be_nothing() -> None:
    torch.manual_seed(0)
    target = torch.tensor([0.0, 5.0, 20.0, 64.0])
    assert block_masks(4, 8, target, 4, exact=True).sum(1).tolist() == [0, 5, 20, 64]
    assert random_masks(4, 8, target + 0.9).sum(1).tolist() == [0, 5, 20, 64]
    assert not block_masks(3, 8, 0.0, 4).any()
    assert block_masks(0, 8, 4, 4).shape == (0, 64)


def test_same_seed_same_masks_and_autocast_changes_none() -> None:
    found = []
    for enabled in (False, True, False):
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(block_masks(50, 24, 300, 16, exact=True))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    torch.manual_seed(8)
    assert not torch.equal(found[0], block_masks(50, 24, 300, 16, exact=True))


def test_random_masks_are_anywhere() -> None:
    torch.manual_seed(0)
    masks = random_masks(20_000, 4, 5)
    assert (masks.sum(1) == 5).all()
    torch.testing.assert_close(masks.double().mean(0), torch.full((16,), 5 / 16).double(), atol=0.015, rtol=0)
    pairs = masks.double().T @ masks.double() / len(masks)
    others = pairs[~torch.eye(16, dtype=torch.bool)]
    torch.testing.assert_close(others, torch.full_like(others, 5 * 4 / (16 * 15)), atol=0.01, rtol=0)


def test_ratios_are_one_of_those_given_with_its_spread() -> None:
    torch.manual_seed(0)
    ratios = mask_ratios(20_000, (0.0, 0.3), (0.0, 0.2))
    some = ratios[ratios > 0]
    assert len(some) / len(ratios) == pytest.approx(0.5, abs=0.02)
    assert some.min().item() == pytest.approx(0.1, abs=1e-3)
    assert some.max().item() == pytest.approx(0.5, abs=1e-3)
    assert some.std().item() == pytest.approx(0.4 / math.sqrt(12), rel=0.02)
    assert mask_ratios(3, (0.25,), (0.0,)).tolist() == [0.25] * 3


GRIDS = st.integers(2, 16)
SEEDS = st.integers(0, 2**32 - 1)


@given(st.integers(1, 6), GRIDS, st.floats(0, 1), SEEDS)
def test_random_masks_of_any_grid_hide_exactly_so_many(count: int, grid: int, part: float, seed: int) -> None:
    torch.manual_seed(seed)
    target = part * grid**2
    masks = random_masks(count, grid, target)
    assert masks.shape == (count, grid**2) and masks.dtype == torch.bool
    assert masks.sum(1).tolist() == [math.floor(target)] * count


@given(st.integers(1, 4), GRIDS, st.floats(0, 1), st.floats(0, 1), st.booleans(), SEEDS)
def test_block_masks_of_any_grid_keep_their_target(
    count: int, grid: int, part: float, smallest: float, exact: bool, seed: int
) -> None:
    """Blocks of up to a ninth of the image, as in the papers."""
    target = float(round(part * grid**2)) if exact else part * grid**2
    min_area = max(1.0, smallest * (grid // 3) ** 2)

    def drawn_again() -> Tensor:
        torch.manual_seed(seed)
        return block_masks(count, grid, target, min_area, exact=exact)

    masks = drawn_again()
    hidden = masks.sum(1)
    assert masks.shape == (count, grid**2) and torch.equal(masks, drawn_again())
    assert (hidden == target).all() if exact else (hidden <= target).all()


@pytest.mark.parametrize("grid", [2, 3, 4, 5])
def test_exact_masks_are_done_where_the_smallest_block_is_larger_than_the_image(grid: int) -> None:
    torch.manual_seed(0)
    target = grid**2 - max(1, grid**2 // 4)
    assert block_masks(4, grid, target, 16, exact=True).sum(1).tolist() == [target] * 4


@given(st.integers(1, 50), st.integers(1, 40), SEEDS, st.data())
def test_hidden_places_become_a_mask(count: int, patches: int, seed: int, data: st.DataObject) -> None:
    hide = data.draw(st.integers(0, patches))
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.rand(count, patches, generator=generator).argsort(1)[:, :hide]
    mask = hidden_mask(hidden, patches)
    assert [row.nonzero()[:, 0].tolist() for row in mask] == [sorted(row) for row in hidden.tolist()]
