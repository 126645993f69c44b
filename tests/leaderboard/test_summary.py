"""The answer on top of the page: each sentence from numbers that were made by hand."""

from pathlib import Path

import made
import pytest

from ssl_bench.leaderboard.build import build
from ssl_bench.leaderboard.marks import marked
from ssl_bench.leaderboard.summary import _needed, _rounded, summary
from ssl_bench.leaderboard.table import Cell
from ssl_bench.records.store import load_runs
from ssl_bench.statistics.comparison import Pair

CELL = Cell(0.7, 0.65, 0.75, (0, 1, 2), (0.7, 0.7, 0.7), 1000)


def said(root: Path) -> str:
    table, (compared,) = marked(build(load_runs([root])))
    return " ".join(summary(table.blocks[0], compared))


def pair(difference: float, seed_share: float) -> Pair:
    return Pair("a", "b", difference, (-0.01, 0.03), 0.3, None, 0.3, 0.02, "undecided", seed_share)


@pytest.mark.parametrize(
    ("difference", "seed_share", "words"),
    [
        (0.01, 0.9, "about 18 seeds of each, and more test images alone would not do"),  # six times three
        (0.01, 0.0, "about 4,000 test images, and more seeds alone would not do"),
        (0.018, 0.5, "about 5 seeds of each, or about 1,700 test images"),
        (0.01, 0.5, "more than 100 times the seeds and test images"),
        (0.0, 0.5, "more than 100 times the seeds and test images"),
        (0.0199, 1.0, "about 4 seeds of each, and more test images alone would not do"),  # at least one more
    ],
)
def test_what_would_show_a_difference(difference: float, seed_share: float, words: str) -> None:
    assert _needed(pair(difference, seed_share), CELL) == words


@pytest.mark.parametrize(("count", "text"), [(4, "4"), (17.2, "18"), (101.0, "110"), (4000.0, "4,000"), (9.01, "10")])
def test_needs_are_rounded_up_to_two_digits(count: float, text: str) -> None:
    assert _rounded(count) == text


def test_best_ties_certainty_and_cost_in_a_few_sentences(tmp_path: Path) -> None:
    for number, method in enumerate(("mae", "simclr", "dino")):
        for seed in range(3):
            made.full_run(tmp_path, method, seed, 0.12 * (number > 0) + 0.002 * number, ("knn", "linear"), 400)
    text = said(tmp_path)
    assert 2 <= text.count(". ") + 1 <= 4
    assert text.startswith("On cifar10 with vit_nano_patch4_32, 40 epochs x views, ")
    for part in ("highest accuracy by linear", "ranks first with probability", "is not significantly worse"):
        assert part in text
    assert "is found four times in five; to tell " in text and ("seeds of each" in text or "more than 100" in text)
    assert "Pretraining " in text and " a run on 2 CPU cores" in text


def test_of_single_seeds_nothing_is_concluded(tmp_path: Path) -> None:
    for number, method in enumerate(("mae", "simclr")):
        made.full_run(tmp_path, method, 0, 0.2 * number, ("linear",), 400)
    text = said(tmp_path)
    assert "Which method is best is not known, since there is one seed" in text
    for claim in ("significant", "probability", "ranks", "four times in five"):
        assert claim not in text
