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
from ssl_bench.leaderboard.text import block_facts, block_title, joined, label, seeds_caveat
from ssl_bench.statistics.comparison import Pair

Kind: TypeAlias = Literal["leader", "tie", "baseline", "disagreement", "rank", "caveat"]
SHOWN = 3  # of what there may be many of
NEEDED = "two methods with results of one protocol, images, and architecture are needed"


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
        if column.title in paired and column.test != "intervals":
            protocols.append(paired[column.title])
        elif block.ranked and not column.oracle and len(cells) > 1 and any(row.kind != "baseline" for row, _ in cells):
            scores = [
                MethodScore(
                    *(label(row), row.kind, cell.seeds, cell.mean, (cell.low, cell.high), None),
                    *(cell.unbeaten, cell.covers, cell.one_seed),
                )
                for row, cell in sorted(cells, key=lambda found: -found[1].mean)
            ]
            protocols.append(Protocol(column.title, column.variant, cells[0][1].n_test, tuple(scores), ()))
    ranking = compared.ranking if compared else None
    left_out = compared.left_out if compared else ()
    title, facts = block_title(block), block_facts(block)
    return BlockComparison(title, facts, tuple(protocols), ranking, left_out, block.matched)


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
            text = f"{protocol.title}: shown to be equal within 0.3 points: {joined(ties, SHOWN, '; ')}."
            found.append(Finding("tie", block.title, text))
        found += [Finding("baseline", block.title, text) for text in _no_better_than_baselines(protocol, pretrained)]
    found += _disagreements(block, pretrained)
    if block.ranking:
        found += _of_ranking(block.title, block.ranking, "")
    alone = [p.title for p in block.protocols if not p.pairs and len(_of_several_seeds(p)) > 1]
    if alone:
        text = (
            f"{joined(alone)}: not compared image by image, for predictions are missing or too many. What is "
            "significant is decided by intervals alone, which finds less."
        )
        found.append(Finding("caveat", block.title, text))
    single = sorted({m.name for p in block.protocols for m in p.methods if m.one_seed})
    if single:
        several = any(not m.one_seed and len(m.seeds) > 1 for p in block.protocols for m in p.methods)
        found.append(Finding("caveat", block.title, seeds_caveat(single, several)))
    if block.left_out:
        text = f"Not compared image by image: {joined(block.left_out, SHOWN, '; ')}."
        found.append(Finding("caveat", block.title, text))
    if not block.matched:
        text = "Budgets are not matched: a difference may come from the budget and not from the method."
        found.append(Finding("caveat", block.title, text))
    return found


def _of_several_seeds(protocol: Protocol) -> list[MethodScore]:
    return [method for method in protocol.methods if not method.one_seed]


def _leader(protocol: Protocol) -> str:
    """Who is ahead, and of whom that is not significant; of single runs, which number is the highest."""
    methods = _of_several_seeds(protocol)
    best = (methods if len(methods) > 1 else protocol.methods)[0]
    a_baseline = " (a baseline)" if best.kind == "baseline" else ""
    if len(protocol.methods) == 1:
        return f"{protocol.title}: {best.name}{a_baseline} has {_percent(best.accuracy)}."
    if len(methods) < 2:
        ends = f"[{100 * best.interval[0]:.1f}, {100 * best.interval[1]:.1f}] over {best.covers}"
        of = f"the highest of {len(protocol.methods)} numbers"
        return f"{protocol.title}: {_percent(best.accuracy)} of {best.name}{a_baseline} is {of}, {ends}."
    where = f"{protocol.title}: {best.name}{a_baseline} leads with {_percent(best.accuracy)}"
    beside = [method.name for method in methods[1:] if method.unbeaten]
    if not beside:
        second = methods[1]
        ahead = _pair(protocol.pairs, best.name, second.name)
        shown = f", {_points(ahead.difference)} above {second.name}" if ahead else ""
        return f"{where}, significantly ahead of all others ({len(methods) - 1}){shown}."
    rest = len(methods) - 1 - len(beside)
    of_rest = f", and significantly of the rest ({rest})" if rest else ""
    return f"{where}, ahead of {joined(beside)} by no significant difference{of_rest}."


def _no_better_than_baselines(protocol: Protocol, pretrained: set[str]) -> list[str]:
    """Methods that are not significantly better than a baseline, baseline by baseline."""
    found = []
    known = {method.name for method in _of_several_seeds(protocol)}
    pretrained = pretrained & known
    for baseline in (m.name for m in protocol.methods if m.kind == "baseline" and m.name in known):
        above = {pair.b for pair in protocol.pairs if pair.a == baseline and pair.verdict == "better"}
        clear = {pair.a for pair in protocol.pairs if pair.b == baseline and pair.verdict == "better"}
        worse = [method.name for method in protocol.methods if method.name in pretrained & above]
        open_ = [m.name for m in protocol.methods if m.name in pretrained and m.name not in above | clear]
        if worse:
            found.append(f"{protocol.title}: {joined(worse)} {_is(worse)} significantly below the baseline {baseline}.")
        if open_:
            found.append(f"{protocol.title}: {joined(open_)} {_is(open_)} not shown to beat the baseline {baseline}.")
    return found


def _disagreements(block: BlockComparison, pretrained: set[str]) -> list[Finding]:
    """Leaders that change, and pairs of methods that two protocols order in opposite ways, each significantly."""
    found = []
    leaders: dict[str, list[str]] = {}
    for protocol in block.protocols:
        first = next((method.name for method in _of_several_seeds(protocol) if method.name in pretrained), "")
        leaders.setdefault(first, []).append(protocol.title)
    leaders.pop("", None)
    if len(leaders) > 1:
        parts = [f"{name} under {joined(titles)}" for name, titles in leaders.items()]
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
        text = f"Not in the ranks, since not every method was measured: {joined(ranking.left_out)}."
        found.append(Finding("caveat", block, text))
    return found


def _pair(pairs: Iterable[Pair], a: str, b: str) -> Pair | None:
    return next((pair for pair in pairs if (pair.a, pair.b) == (a, b)), None)


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:.1f} points"
