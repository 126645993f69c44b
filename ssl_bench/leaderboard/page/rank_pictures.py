"""Pictures of what is significant: ranks and rates of wins by bootstrap, agreement of protocols, pairs."""

import json
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from ssl_bench.leaderboard.page.plot import bdi
from ssl_bench.leaderboard.page.view import Picture, View
from ssl_bench.leaderboard.text import joined, visible

if TYPE_CHECKING:
    from ssl_bench.leaderboard.significance import Protocol
    from ssl_bench.statistics.ranking import Average

MOST_RANKED = 16  # of the pictures that have a place for each pair


def ranks(view: View) -> Picture | None:
    """How probable each rank is for each method."""
    ranking = view.compared.ranking if view.compared else None
    if ranking is None or len(ranking.ranks) < 2:
        return None
    shown = ranking.ranks[:MOST_RANKED]
    heads = ["method", "mean rank", "90 %", "wins, %", "90 %", "improvability, %", "90 %"]
    heads += [f"{place}." for place in range(1, len(shown) + 1)]
    rows = ""
    for rank in shown:
        chances = [(f"{100 * p:.0f}" if p >= 0.005 else "", p) for p in rank.probabilities[: len(shown)]]
        cells = "".join(f'<td class=p style="--p:{p:.2g}">{text}' if text else "<td>" for text, p in chances)
        ends = f"{rank.interval[0]} to {rank.interval[1]}" if rank.interval[0] != rank.interval[1] else rank.interval[0]
        averages = "".join(f"<td>{_whole(of.mean)}<td>{_ends(of)}" for of in (rank.win_rate, rank.improvability))
        name = f'<th scope="row">{_name(rank.name)}</th>'
        rows += f"<tr>{name}<td>{rank.mean:.2f}</td><td>{ends}</td>{averages}{cells}</tr>\n"
    first = shown[0]
    detail = f"{first.name} is first with probability {100 * first.probabilities[0]:.0f} %"
    families = ", ".join(ranking.families)
    note = f"Probability in % of each rank, over {len(ranking.protocols)} protocols averaged first within {families}; "
    note += "bootstrap of test images and seeds. Wins: over the other methods. Improvability: the share of its errors "
    note += "that the best method does not make."
    note += f" Left out, for not every method has it: {', '.join(ranking.left_out)}." if ranking.left_out else ""
    return Picture("Ranks", _grid("Ranks", heads, rows), note, detail)


def protocols_agree(view: View) -> Picture | None:
    """Kendall's tau between the orders in which protocols put the methods."""
    ranking = view.compared.ranking if view.compared else None
    if ranking is None or len(ranking.protocols) < 2 or len(ranking.ranks) < 3:
        return None
    names = ranking.protocols
    rows = ""
    for name, values in zip(names, ranking.tau, strict=True):
        cells = "".join(
            f'<td class={"p" if tau >= 0 else "n"} style="--p:{abs(tau):.2g}">{tau:+.2f}'
            if tau is not None
            else "<td>-"
            for tau in values
        )
        rows += f'<tr><th scope="row">{_name(name)}</th>{cells}</tr>\n'
    pairs = [
        (tau, names[i], names[j])
        for i, row in enumerate(ranking.tau)
        for j, tau in enumerate(row[:i])
        if tau is not None
    ]
    if not pairs:
        return None
    low, high = min(pairs), max(pairs)
    detail = f"On the order of {len(ranking.ranks)} methods {high[2]} and {high[1]} agree most"
    detail += (
        f" ({high[0]:+.2f}); least: {low[2]} and {low[1]} ({low[0]:+.2f})" if low != high else f" ({high[0]:+.2f})"
    )
    note = "Kendall's tau-b: +1 the same order, 0 unrelated, -1 the reverse."
    return Picture("Agreement of protocols", _grid("Agreement of protocols", ["protocol", *names], rows), note, detail)


def pairs(view: View) -> Picture | None:
    """Differences, and which are significant; the page's script draws the protocol that is chosen."""
    if view.compared is None:
        return None
    shown = [_data(protocol) for protocol in view.compared.protocols]
    better = sum(pair.verdict == "better" for p in view.compared.protocols for pair in p.pairs)
    count = sum(len(p.pairs) for p in view.compared.protocols)
    single = sum(pair.verdict == "one seed" for p in view.compared.protocols for pair in p.pairs)
    ties = sum(pair.verdict == "tie" for p in view.compared.protocols for pair in p.pairs)
    if not count:
        return None
    detail = f"Of {count - single} differences between methods {better} are significant, {ties} are ties, "
    detail += f"{count - single - better - ties} undecided"
    # `<` would end the element, whatever a method is called.
    data = json.dumps(shown, separators=(",", ":")).replace("<", "\\u003c")
    names = joined([protocol.title for protocol in view.compared.protocols], 30)
    body = f'<div class="pairs" data-names="{escape(visible(names), quote=True)}">'
    body += f'<script type="application/json">{data}</script></div>'
    note = "Row less column in points, paired on the same test images. "
    if count > single:
        note += (
            "+ or -: significant after Holm's correction over all pairs of the protocol, =: a tie within 0.3 points, "
        )
        note += "?: undecided. "
    note += "Without a sign: one of the two has one seed, which shows nothing of its method. " if single else ""
    return Picture("Pairs", body, f"{note}Interval and p on hover.", detail if count > single else "")


def _data(protocol: "Protocol") -> dict[str, object]:
    """Names, and for each pair of their places: difference, interval (hundredths of a point), p, verdict."""
    names = [score.name for score in protocol.methods][:MOST_RANKED]
    place = {name: index for index, name in enumerate(names)}
    rows: list[Sequence[object]] = []
    for pair in protocol.pairs:
        if pair.a in place and pair.b in place:
            ends = [round(1e4 * value) for value in (pair.difference, *pair.interval)]
            p = pair.p if pair.adjusted is None else pair.adjusted
            rows.append([place[pair.a], place[pair.b], *ends, float(f"{p:.2g}"), pair.verdict[0]])
    return {"title": visible(protocol.title), "names": [visible(name) for name in names], "pairs": rows}


def _name(text: str) -> str:
    """As wide as the style sheet lets a name of a row be."""
    return f"<bdi>{escape(visible(text))}</bdi>"


def _whole(share: float) -> str:
    return f"{100 * share:.0f}"


def _ends(of: "Average") -> str:
    low, high = map(_whole, of.interval)
    return low if low == high else f"{low} to {high}"


def _grid(title: str, heads: Sequence[str], rows: str) -> str:
    cells = "".join(f'<th scope="col">{bdi(head)}</th>' for head in heads)
    return f"""<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="grid">
<caption>{title}</caption>
<thead><tr>{cells}</tr></thead>
<tbody>
{rows}</tbody>
</table></div>"""
