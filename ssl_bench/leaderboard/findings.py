"""What a comparison says, in words: who leads where, what ties, what beats no baseline, what protocols disagree on.

Every sentence is computed from the numbers of `compare`, or from the leaderboard's marks where predictions were not
compared; a difference that was not shown is called so. Torch-free.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ssl_bench.leaderboard.significance import BlockComparison, MethodScore, Protocol, Ranking, Report
from ssl_bench.leaderboard.table import Block, Table
from ssl_bench.leaderboard.text import block_facts, block_title, label
from ssl_bench.statistics.comparison import Pair

Kind: TypeAlias = Literal["leader", "tie", "baseline", "disagreement", "rank", "caveat"]
SHOWN = 3  # of what there may be many of
NEEDED = "two methods with results of one protocol, images, architecture and budget are needed"


@dataclass(frozen=True)
class Finding:
    """A sentence, and what it is about.

    Args:
        kind: Of what it says.
        block: Title of the block it is of; empty for all of them together.
        text: The sentence; names are as users wrote them.
    """

    kind: Kind
    block: str
    text: str


def findings(table: Table, compared: Sequence[BlockComparison | None]) -> tuple[Finding, ...]:
    """Findings of a leaderboard, block by block: as `tabled` gives it, so that they say what its marks say.

    Args:
        table: Its marks set.
        compared: What is known of each block's predictions.
    """
    blocks = tuple(_with_intervals(block, known) for block, known in zip(table.blocks, compared, strict=True))
    found = of_report(Report(blocks, None, ()))
    return found or (Finding("caveat", "", f"No comparison: {NEEDED}."),)


def _with_intervals(block: Block, compared: BlockComparison | None) -> BlockComparison:
    """A block's comparison, and beside it the protocols whose marks were set by intervals: they have no pairs."""
    paired = {protocol.title: protocol for protocol in compared.protocols} if compared else {}
    protocols = []
    for index, column in enumerate(block.columns):
        cells = [(row, cell) for row in block.rows if (cell := row.cells[index])]
        if column.title in paired:
            protocols.append(paired[column.title])
        elif column.test and len(cells) > 1:
            scores = [
                MethodScore(label(row), row.kind, cell.seeds, cell.mean, (cell.low, cell.high), None, cell.unbeaten)
                for row, cell in sorted(cells, key=lambda found: -found[1].mean)
            ]
            protocols.append(Protocol(column.title, column.variant, cells[0][1].n_test, tuple(scores), ()))
    ranking = compared.ranking if compared else None
    return BlockComparison(block_title(block), block_facts(block), tuple(protocols), ranking)


def of_report(report: Report) -> tuple[Finding, ...]:
    """Findings of a comparison."""
    found: list[Finding] = []
    for block in report.blocks:
        found += _of_block(block)
    if report.ranking:
        found += _of_ranking("", report.ranking, "over all blocks ")
    return tuple(found)


def _of_block(block: BlockComparison) -> list[Finding]:
    pretrained = {m.name for p in block.protocols for m in p.methods if m.kind != "baseline"}
    found = []
    for protocol in block.protocols:
        found.append(Finding("leader", block.title, _leader(protocol)))
        if not protocol.pairs:
            continue
        ties = [f"{pair.a} and {pair.b}" for pair in protocol.pairs if pair.verdict == "tie"]
        if ties:
            text = f"{protocol.title}: shown to be equal within 0.3 points: {listed(ties, SHOWN, '; ')}."
            found.append(Finding("tie", block.title, text))
        found += [Finding("baseline", block.title, text) for text in _no_better_than_baselines(protocol, pretrained)]
    found += _disagreements(block, pretrained)
    if block.ranking:
        found += _of_ranking(block.title, block.ranking, "")
    alone = [protocol.title for protocol in block.protocols if not protocol.pairs and len(protocol.methods) > 1]
    if alone:
        text = (
            f"{listed(alone)}: not compared image by image, for predictions are missing or too many. What is "
            "significant is told by intervals alone, which finds less."
        )
        found.append(Finding("caveat", block.title, text))
    single = sorted({m.name for p in block.protocols for m in p.methods if m.kind != "baseline" and len(m.seeds) == 1})
    if single:
        text = (
            f"{listed(single)} {'has' if len(single) == 1 else 'have'} one seed: what is said of them is of that run."
        )
        found.append(Finding("caveat", block.title, text))
    return found


def _leader(protocol: Protocol) -> str:
    """Who is ahead, and from whom it is not told apart."""
    best = protocol.methods[0]
    a_baseline = " (a baseline)" if best.kind == "baseline" else ""
    where = f"{protocol.title}: {best.name}{a_baseline} leads with {_percent(best.accuracy)}"
    beside = [method.name for method in protocol.methods[1:] if method.unbeaten]
    if len(protocol.methods) == 1:
        return f"{where}."
    if not beside:
        second = protocol.methods[1]
        ahead = _pair(protocol.pairs, best.name, second.name)
        shown = f", {_points(ahead.difference)} above {second.name}" if ahead else ""
        return f"{where}, significantly ahead of all others ({len(protocol.methods) - 1}){shown}."
    rest = len(protocol.methods) - 1 - len(beside)
    of_rest = f", and significantly of the rest ({rest})" if rest else ""
    return f"{where}, ahead of {listed(beside)} by no significant difference{of_rest}."


def _no_better_than_baselines(protocol: Protocol, pretrained: set[str]) -> list[str]:
    """Methods that are not significantly better than a baseline, baseline by baseline."""
    said = []
    for baseline in (method.name for method in protocol.methods if method.kind == "baseline"):
        above = {pair.b for pair in protocol.pairs if pair.a == baseline and pair.verdict == "better"}
        clear = {pair.a for pair in protocol.pairs if pair.b == baseline and pair.verdict == "better"}
        worse = [method.name for method in protocol.methods if method.name in pretrained & above]
        open_ = [m.name for m in protocol.methods if m.name in pretrained and m.name not in above | clear]
        if worse:
            said.append(f"{protocol.title}: {listed(worse)} {_is(worse)} significantly below the baseline {baseline}.")
        if open_:
            said.append(f"{protocol.title}: {listed(open_)} {_is(open_)} not shown to beat the baseline {baseline}.")
    return said


def _disagreements(block: BlockComparison, pretrained: set[str]) -> list[Finding]:
    """Leaders that change, and pairs of methods that two protocols order in opposite ways, each significantly."""
    found = []
    leaders: dict[str, list[str]] = {}
    for protocol in block.protocols:
        first = next((method.name for method in protocol.methods if method.name in pretrained), "")
        leaders.setdefault(first, []).append(protocol.title)
    leaders.pop("", None)
    if len(leaders) > 1:
        parts = [f"{name} under {listed(titles)}" for name, titles in leaders.items()]
        text = f"The best pretrained method depends on the protocol: {'; '.join(parts)}."
        found.append(Finding("disagreement", block.title, text))
    flips = []
    for one, other in itertools.combinations(block.protocols, 2):
        against = {(pair.b, pair.a): pair for pair in other.pairs if pair.verdict == "better"}
        for pair in one.pairs:
            back = against.get((pair.a, pair.b))
            if pair.verdict == "better" and back and {pair.a, pair.b} <= pretrained:
                flips.append((min(pair.difference, back.difference), one, pair, other, back))
    flips.sort(key=lambda flip: -flip[0])
    for _, one, pair, other, back in flips[:SHOWN]:
        text = (
            f"{one.title} puts {pair.a} {_points(pair.difference)} above {pair.b}, {other.title} puts {pair.b} "
            f"{_points(back.difference)} above {pair.a}; both are significant."
        )
        found.append(Finding("disagreement", block.title, text))
    if len(flips) > SHOWN:
        more = (
            f"{len(flips) - SHOWN} more pairs of methods are significantly ordered in opposite ways by two protocols."
        )
        found.append(Finding("disagreement", block.title, more))
    return found


def _of_ranking(block: str, ranking: Ranking, scope: str) -> list[Finding]:
    best = ranking.ranks[0]
    low, high = best.interval
    places = f"rank {low}" if low == high else f"ranks {low} to {high}"
    what = f"{len(ranking.protocols)} protocols in {len(ranking.families)} families"
    if len(ranking.families) == 1:
        what = f"{len(ranking.protocols)} protocols of one family"
    text = (
        f"Ranks {scope}over {what}: {best.name} has the best mean rank, {best.mean:.2f} of {len(ranking.ranks)} "
        f"({places} with 90 % probability, first with {100 * best.first:.0f} %)."
    )
    found = [Finding("rank", block, text)]
    pairs = [
        (tau, ranking.protocols[i], ranking.protocols[j])
        for i, row in enumerate(ranking.tau)
        for j, tau in enumerate(row)
        if i < j and tau is not None
    ]
    if pairs and len(ranking.ranks) > 2:
        low_tau, one, other = min(pairs)
        text = f"{one} and {other} agree on the order of methods with Kendall's tau {low_tau:+.2f}"
        if len(pairs) > 1:
            high_tau, first, second = max(pairs)
            text = (
                f"{first} and {second} agree most on the order of methods (Kendall's tau {high_tau:+.2f}), "
                f"{one} and {other} least ({low_tau:+.2f})"
            )
        found.append(Finding("disagreement" if low_tau < 0 else "rank", block, f"{text}."))
    if ranking.left_out:
        text = f"Not in the ranks, since not every method was measured: {listed(ranking.left_out)}."
        found.append(Finding("caveat", block, text))
    return found


def listed(names: Sequence[str], most: int = 8, separator: str = ", ") -> str:
    """`a, b and c`; of many, the first and how many more."""
    if len(names) > most:
        return f"{separator.join(names[:most])} and {len(names) - most} more"
    if separator != ", " or len(names) < 2:
        return separator.join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _pair(pairs: Iterable[Pair], a: str, b: str) -> Pair | None:
    return next((pair for pair in pairs if (pair.a, pair.b) == (a, b)), None)


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"
