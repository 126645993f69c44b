"""The answer of a block in two to four sentences: what is best, what ties with it, how sure that is, what it cost.

Every sentence is computed from the table and from its comparison. Of single seeds nothing is concluded.
"""

import math
from typing import TYPE_CHECKING

from ssl_bench.leaderboard.table import Block, Cell, Row
from ssl_bench.leaderboard.text import MORE_SEEDS, TEST_IMAGES_ONLY, joined, label, percent
from ssl_bench.leaderboard.units import duration

if TYPE_CHECKING:
    from ssl_bench.leaderboard.significance import BlockComparison
    from ssl_bench.statistics.comparison import Pair

MAIN = ("linear", "finetune", "knn", "logistic", "ridge", "attentive", "classifier")
SHOWN = 3  # names
MANY = 100  # times as many seeds or images: beyond it a number says no more


def summary(block: Block, compared: "BlockComparison | None") -> list[str]:
    """Two to four sentences; none where nothing was pretrained.

    Args:
        block: Its marks set.
        compared: What is known of its predictions.
    """
    index = _main_column(block)
    if index is None:
        return []
    cells = [(row, cell) for row in block.rows if (cell := row.cells[index])]
    pretrained = sorted((pair for pair in cells if pair[0].kind != "baseline"), key=lambda pair: -pair[1].mean)
    several = [pair for pair in pretrained if not pair[1].one_seed]
    if len(several) > 1 and block.ranked:
        found = _of_several_seeds(block, compared, index, several)
    else:
        found = _of_single_seeds(block, index, pretrained)
    return [*found, _cost(several or pretrained, len(several) > 1 and block.ranked)]


def _main_column(block: Block) -> int | None:
    """The column of the first main protocol on the block's own images, or the first with anything pretrained."""
    places = {
        column.title: index
        for index, column in reversed(list(enumerate(block.columns)))
        if not column.oracle and any(row.cells[index] and row.kind != "baseline" for row in block.rows)
    }
    names = [*MAIN, *sorted(places, key=places.__getitem__)]
    return next((places[name] for name in names if name in places), None)


def _where(block: Block) -> str:
    backbone = block.backbone.partition(" (")[0]
    return (
        f"On {block.data}{f' with {backbone}' if backbone else ''}{f', {block.budget_text},' if block.matched else ''}"
    )


def _of_several_seeds(
    block: Block, compared: "BlockComparison | None", index: int, several: list[tuple[Row, Cell]]
) -> list[str]:
    title = block.columns[index].title
    best, cell = several[0]
    beside = [label(row) for row, other in several[1:] if other.unbeaten]
    first = f"{_where(block)} {label(best)} has the highest accuracy by {title}: {_score(cell)}"
    ranking = compared.ranking if compared else None
    if ranking:
        rank = ranking.ranks[0]
        first += f"; over {len(ranking.protocols)} protocols {rank.name} ranks first with probability "
        first += f"{100 * rank.first:.0f} %"
    second = f"It is significantly better than all others of several seeds ({len(several) - 1})"
    if beside:
        second = f"{joined(beside, SHOWN)} {'is' if len(beside) == 1 else 'are'} not significantly worse"
    second += _baselines(block, index, several)
    return [f"{first}.", f"{second}.", f"{_certainty(block, compared, index, several)}."]


def _baselines(block: Block, index: int, pretrained: list[tuple[Row, Cell]]) -> str:
    """Baselines that the best does not beat."""
    best = pretrained[0][1]
    rows = [(row, cell) for row in block.rows if row.kind == "baseline" and (cell := row.cells[index])]
    above = [
        f"{label(row)} ({percent(cell.mean)} %)"
        for row, cell in rows
        if cell.mean >= best.mean or cell.unbeaten and best.unbeaten
    ]
    return f", but {'it is' if len(above) == 1 else 'they are'} no better than {joined(above)}" if above else ""


def _certainty(block: Block, compared: "BlockComparison | None", index: int, several: list[tuple[Row, Cell]]) -> str:
    """How sure the lead is, and what would make it surer."""
    pairs = _pairs_of_best(block, compared, index, label(several[0][0]), {label(row) for row, _ in several})
    beside = [pair for pair in pairs if pair.verdict in ("undecided", "tie")]
    seeds = f"{len(several[0][1].seeds)} seeds and {several[0][1].n_test} test images"
    if not pairs:
        text = "Tested by intervals alone, which finds less than predictions of the same images would"
    elif beside:
        pair = max(beside, key=lambda pair: pair.difference)
        text = (
            f"With {seeds} a difference of {100 * pair.detectable:.1f} points is found four times in five; to tell "
            f"{pair.b} ({100 * pair.difference:.1f} below) from {pair.a} takes {_needed(pair, several[0][1])}"
        )
    else:
        pair = min(pairs, key=lambda pair: pair.difference)
        low, high = (100 * end for end in pair.interval)
        text = f"The next, {pair.b}, is {low:.1f} to {high:.1f} points below, over new seeds and test images"
    single = [label(row) for row in block.rows if any(cell and cell.one_seed for cell in row.cells)]
    text += f"; one seed, not compared: {joined(single, SHOWN)}" if single else ""
    return text + ("" if block.matched else "; budgets are not matched, so a difference may come from the budget")


def _needed(pair: "Pair", cell: Cell) -> str:
    """The seeds, or the test images, that would show a difference."""
    found = []
    for times, there, what in (
        (pair.times_needed("seeds"), len(cell.seeds), "seeds of each"),
        (pair.times_needed("images"), cell.n_test, "test images"),
    ):
        if times is not None and times <= MANY:
            found.append(f"about {_rounded(max(there + 1, times * there))} {what}")
    if len(found) == 1:
        other = "more test images" if "seeds" in found[0] else "more seeds"
        return f"{found[0]}, and {other} alone would not do"
    return ", or ".join(found) or f"more than {MANY} times the seeds and test images"


def _rounded(count: float) -> str:
    """Up to two digits."""
    unit = 10 ** max(0, int(math.log10(count)) - 1)
    return f"{math.ceil(round(count / unit, 6)) * unit:,}"


def _pairs_of_best(
    block: Block, compared: "BlockComparison | None", index: int, best: str, names: set[str]
) -> "list[Pair]":
    protocols = compared.protocols if compared else ()
    found = [p for p in protocols if p.title == block.columns[index].title]
    return [pair for protocol in found for pair in protocol.pairs if pair.a == best and pair.b in names]


def _of_single_seeds(block: Block, index: int, pretrained: list[tuple[Row, Cell]]) -> list[str]:
    title = block.columns[index].title
    best, cell = pretrained[0]
    first = f"{_where(block)} the highest accuracy by {title} is that of {label(best)}, {_score(cell)}"
    if len(pretrained) == 1:
        first = f"{_where(block)} {label(best)} has an accuracy of {_score(cell)} by {title}"
    elif len(pretrained) > 1:
        other, second = pretrained[1]
        first += f", before {label(other)} with {percent(second.mean)} %"
    first += _baselines(block, index, pretrained)
    if not block.ranked:
        return [f"{first}.", "Budgets are unknown and may differ, so nothing is ranked."]
    if not cell.one_seed:
        return [f"{first}."]
    what = (
        "Which method is best is not known" if len(pretrained) > 1 else "How another seed would come out is not known"
    )
    also = "" if block.matched or len(pretrained) < 2 else "; budgets are not matched either"
    return [f"{first}.", f"{what}, since there is one seed: {MORE_SEEDS}{also}."]


def _score(cell: Cell) -> str:
    over = TEST_IMAGES_ONLY if cell.one_seed else f"{len(cell.seeds)} seeds"
    return f"{percent(cell.mean)} % ±{percent(cell.half)} ({over})"


def _cost(pretrained: list[tuple[Row, Cell]], tested: bool) -> str:
    """What the best took, and the cheapest of those that are not significantly worse."""
    best = pretrained[0][0]
    device = f" on {best.device}" if best.device else ""
    text = f"Pretraining {label(best)} took {duration(best.seconds)} a run{device}"
    unbeaten = [row for row, cell in pretrained if cell.unbeaten] if tested else []
    cheapest = min(unbeaten, key=lambda row: row.seconds, default=best)
    if cheapest.seconds < 0.9 * best.seconds:
        text += f", {label(cheapest)} {duration(cheapest.seconds)}"
    return f"{text}."
