"""Pictures appear where there is data for them, and their marks stand where their numbers say."""

import math
import re
from pathlib import Path

import made
import pytest
from recorded_runs import Runs

from ssl_bench.leaderboard.build import build
from ssl_bench.leaderboard.marks import marked
from ssl_bench.leaderboard.page import curve_pictures, page, rank_pictures, score_pictures
from ssl_bench.leaderboard.page.history import mean_over, thinned
from ssl_bench.leaderboard.page.plot import COLOURS, Plot, Scale, around, mark_path, tone
from ssl_bench.leaderboard.page.view import View, styles_of
from ssl_bench.leaderboard.render import leaderboard
from ssl_bench.leaderboard.table import Table
from ssl_bench.records.store import load_runs


def tables(root: Path) -> tuple[Table, list[View]]:
    table, compared = marked(build(load_runs([root])))
    styles = styles_of(table)
    return table, [View(block, known, styles) for block, known in zip(table.blocks, compared, strict=True)]


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> View:
    """Four methods under all protocols, two seeds each."""
    root = tmp_path_factory.mktemp("runs")
    for number, method in enumerate(("mae", "simclr", "dino", "byol")):
        for seed in range(2):
            made.full_run(root, method, seed, 0.07 * number, n_test=200)
    made.baselines(root, n_test=200)
    return tables(root)[1][0]


def test_each_picture_appears_where_there_is_data_and_nowhere_else(view: View, runs: Runs) -> None:
    assert all(draw(view) for draw in page.PICTURES)
    assert score_pictures.compute([view])
    runs.add("mae", 0, {"knn": 0.5})
    _, (bare,) = tables(runs.root)
    assert not any(draw(bare) for draw in page.PICTURES)
    assert score_pictures.compute([bare]) is None


def test_a_title_is_short_and_its_detail_says_what_to_see(view: View) -> None:
    pictures = [draw(view) for draw in page.PICTURES]
    assert all(picture and len(picture.title) < 35 for picture in pictures)
    titles = {draw.__name__: draw(view).detail for draw in page.PICTURES}  # type: ignore[union-attr]
    assert re.match(
        r"byol has the highest mean in 1[0-2] of 12 protocols; in \d+ the best is significantly",
        titles["results"],
    )
    assert re.search(r"(alike|in part) \(Kendall's tau \+\d\.\d\d, 4 methods\)", titles["linear_against_finetuning"])
    few = "byol has the highest mean with the fewest labels and with the most (frozen, ridge regression)"
    assert titles["label_efficiency"] == few
    assert titles["online_probes"] == "byol has the highest mean of linear at the end"
    assert re.search(r" changes by \+\d+\.\d points, the highest gain of means$", titles["partial_finetuning"])
    assert re.match(r"byol is first with probability \d+ %", titles["ranks"])


@pytest.mark.parametrize("methods", [("mae",), ("mae", "simclr", "dino")])
def test_single_seeds_put_nothing_in_order(tmp_path: Path, methods: tuple[str, ...]) -> None:
    for number, method in enumerate(methods):
        made.full_run(tmp_path, method, 0, 0.1 * number, n_test=100)
    made.baselines(tmp_path, n_test=100)
    (view,) = tables(tmp_path)[1]
    found = [picture for draw in page.PICTURES if (picture := draw(view))]
    assert len(found) > 4 and not any(picture.detail for picture in found)
    assert not {"Ranks", "Agreement of protocols"} & {picture.title for picture in found}
    compute = score_pictures.compute([view])
    assert compute is None if len(methods) == 1 else compute is not None and not compute.detail
    text = leaderboard([tmp_path], "html")
    for claim in ("significantly", "first with probability", "ranks first", "highest mean", "unbeaten"):
        assert claim not in text.partition("<script>")[0], claim
    assert "test images only" in text and "Differences mean nothing about methods yet" in text


def test_styles_differ_without_colour() -> None:
    marks = [mark_path(6, 6, style) for style in range(8 * COLOURS)]
    assert len(set(marks[:8])) == 8
    assert len({(mark, tone(style)) for style, mark in enumerate(marks)}) == len(marks)


def test_marks_stand_where_their_numbers_say() -> None:
    plot = Plot((0.0, 10.0), (0.0, 100.0), size=(120, 130), margins=(10, 10, 10, 20))
    plot.mark(5.0, 50.0, 0, "half")
    assert 'd="M56 60a' in plot.svg("")  # the circle starts 4 left of (60, 60)
    assert Scale(1.0, 100.0, 0.0, 200.0, log=True)(10.0) == pytest.approx(100.0)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (13.2, 97.1), (0.001, 0.0042), (-3.0, 5.0), (99.0, 99.1)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    ticks = Scale(low, high, 0, 1).ticks()
    assert 2 <= len(ticks) <= 11 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)
    step = ticks[1] - ticks[0]
    assert min(abs(step / 10 ** math.floor(math.log10(step)) - digit) for digit in (1, 2, 5, 10)) < 1e-6
    assert all(tick > 0 for tick in Scale(*around([50.0, 45000.0], log=True), 0, 1, log=True).ticks())


def test_label_efficiency_counts_labels(view: View) -> None:
    picture = curve_pictures.label_efficiency(view)
    assert picture
    places = {float(x) for x in re.findall(r"<title>mae, ([\d.e+]+): ", picture.body)}
    assert places == {10, 50, 100, 250, 500, 5000, 50000}  # shots x 10 classes; 1, 10 and 100 % of 45,000 + 5,000


def test_the_front_is_of_what_nothing_cheaper_reaches() -> None:
    points = [(3.0, 0.9, "c"), (1.0, 0.5, "a"), (2.0, 0.4, "b"), (4.0, 0.9, "d"), (1.0, 0.6, "e")]
    assert [name for *_, name in score_pictures._front(points)] == ["e", "c"]


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([(1, 1), (2, 2), (3, 3)], "alike"),
        ([(1, 3), (2, 2), (3, 1)], "contradict"),
        ([(1, 1), (2, 3), (3, 2)], "agree in part"),
        ([(1, 2), (2, 1), (3, 4), (4, 3), (5, 0)], "says little"),
    ],
)
def test_agreement_in_words(pairs: list[tuple[float, float]], words: str) -> None:
    assert words in score_pictures.agreement(pairs)


def test_curves_are_averaged_where_they_meet_and_keep_their_ends() -> None:
    assert mean_over([[(0, 1.0), (1, 2.0), (2, 9.0)], [(0, 3.0), (1, 4.0)]]) == [(0, 2.0), (1, 3.0)]
    assert mean_over([[(0, 1.0)], [(1, 2.0), (2, 3.0)]]) == [(1, 2.0), (2, 3.0)]
    points = [(float(i), float(i % 2)) for i in range(1000)]
    assert len(thinned(points)) == 60 and (thinned(points)[0], thinned(points)[-1]) == (points[0], points[-1])
    assert all(abs(y - 0.5) < 0.1 for _, y in thinned(points)[1:-1])


def test_tables_of_ranks_and_pairs_hold_what_compare_says(view: View) -> None:
    assert view.compared and view.compared.ranking
    ranks, pairs = rank_pictures.ranks(view), rank_pictures.pairs(view)
    assert ranks and pairs
    rows = re.findall(r'<tr><th scope="row"><bdi>(\w+)</bdi></th><td>([\d.]+)</td>', ranks.body)
    assert rows == [(rank.name, f"{rank.mean:.2f}") for rank in view.compared.ranking.ranks]
    count = sum(len(protocol.pairs) for protocol in view.compared.protocols)
    single = sum(p.verdict == "one seed" for protocol in view.compared.protocols for p in protocol.pairs)
    assert 0 < single < count  # those with the random network, which has one
    assert pairs.detail.startswith(f"Of {count - single} differences between methods ")
