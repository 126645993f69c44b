"""Sentences follow from numbers: each from a comparison that was made by hand."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ssl_bench.leaderboard.findings import findings, of_report
from ssl_bench.leaderboard.render import Compared, tabled
from ssl_bench.leaderboard.significance import BlockComparison, MethodScore, Protocol, Ranking, Report
from ssl_bench.leaderboard.table import Table
from ssl_bench.leaderboard.text import joined
from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import Result, write_result
from ssl_bench.records.run import BackboneRecord, DataRecord, RunInfo, write_run
from ssl_bench.statistics.comparison import Pair
from ssl_bench.statistics.intervals import wilson
from ssl_bench.statistics.ranking import Average, Rank


def protocol(title: str, scores: dict[str, float], better: Sequence[str], ties: Sequence[str] = ()) -> Protocol:
    """Methods with their accuracies; pairs `a>b` are significant, pairs `a=b` ties, others undecided."""
    order = sorted(scores, key=lambda name: -scores[name])
    pairs = []
    for i, a in enumerate(order):
        for b in order[i + 1 :]:
            difference = scores[a] - scores[b]
            verdict: Any = (
                "one seed"
                if "single" in (a, b)
                else "better"
                if f"{a}>{b}" in better
                else "tie"
                if f"{a}={b}" in ties
                else "undecided"
            )
            pairs.append(Pair(a, b, difference, (difference - 0.01, difference + 0.01), 0.5, None, 0.5, 0.02, verdict))
    methods = []
    for name in order:
        kind = "baseline" if name in ("random", "pixels") else "pretrained"
        unbeaten = f"{order[0]}>{name}" not in better
        seeds = (0,) if name == "single" else (0, 1, 2)
        one = name == "single"
        methods.append(
            MethodScore(name, kind, seeds, scores[name], (0.0, 1.0), None, unbeaten and not one, one_seed=one)
        )
    return Protocol(title, "all", 100, tuple(methods), tuple(pairs))


def said(*protocols: Protocol, ranking: Ranking | None = None) -> list[str]:
    """Texts of one block."""
    block = BlockComparison("digits", "", protocols, ranking)
    return [finding.text for finding in of_report(Report((block,), None, ()))]


def test_a_clear_leader() -> None:
    scores = {"mae": 0.9, "dino": 0.8, "random": 0.3}
    assert said(protocol("knn", scores, ["mae>dino", "mae>random", "dino>random"])) == [
        "knn: mae leads with 90.0 %, significantly ahead of all others (2), 10.0 points above dino."
    ]


def test_a_lead_that_is_not_shown_is_called_so() -> None:
    scores = {"mae": 0.9, "dino": 0.895, "byol": 0.7}
    assert said(protocol("knn", scores, ["mae>byol", "dino>byol"], ["mae=dino"])) == [
        "knn: mae leads with 90.0 %, ahead of dino by no significant difference, and significantly of the rest (1).",
        "knn: shown to be equal within 0.3 points: mae and dino.",
    ]


def test_baselines_that_lead_or_are_not_beaten() -> None:
    scores = {"pixels": 0.6, "mae": 0.5, "dino": 0.58, "random": 0.5}
    assert said(protocol("knn", scores, ["pixels>mae", "pixels>random"])) == [
        "knn: pixels (a baseline) leads with 60.0 %, ahead of dino by no significant difference, and significantly of "
        "the rest (2).",
        "knn: mae is significantly below the baseline pixels.",
        "knn: dino is not shown to beat the baseline pixels.",
        "knn: dino and mae are not shown to beat the baseline random.",
    ]


def test_protocols_that_disagree() -> None:
    knn = protocol("knn", {"dino": 0.9, "mae": 0.7}, ["dino>mae"])
    tuned = protocol("finetune", {"mae": 0.95, "dino": 0.93}, ["mae>dino"])
    texts = said(knn, tuned)
    assert "The best pretrained method depends on the protocol: dino under knn; mae under finetune." in texts
    flip = "knn puts dino 20.0 points above mae, finetune puts mae 2.0 points above dino; both are significant."
    assert flip in texts
    weaker = protocol("finetune", {"mae": 0.95, "dino": 0.93}, [])
    assert not any("both are significant" in text for text in said(knn, weaker))
    vague = protocol("knn", {"dino": 0.9, "mae": 0.7}, [])
    assert not any("both are significant" in text for text in said(vague, tuned))


def test_many_reversals_are_counted() -> None:
    names = ["a", "b", "c", "d"]
    up = {name: 0.9 - i / 10 for i, name in enumerate(names)}
    down = {name: 0.5 + i / 10 for i, name in enumerate(names)}
    clear = [f"{a}>{b}" for a in names for b in names]
    texts = said(protocol("knn", up, clear), protocol("finetune", down, clear))
    assert sum("both are significant" in text for text in texts) == 3
    assert "knn puts a 30.0 points above d, finetune puts d 30.0 points above a; both are significant." in texts
    assert any(text.startswith("3 more pairs of methods") for text in texts)


def test_ranks_and_what_they_leave_out() -> None:
    some = Average(0.5, (0.4, 0.6))
    names = ("dino", "mae", "byol")
    ranks = tuple(Rank(name, i + 1.0, 0.8 - i / 4, (1, 2), (), some, some) for i, name in enumerate(names))
    tau = ((1.0, 0.33, -0.33), (0.33, 1.0, None), (-0.33, None, 1.0))
    ranking = Ranking(("knn", "linear", "finetune"), ("frozen-global", "full-tune"), ("fewshot",), 1, ranks, tau, None)
    one = protocol("knn", {"dino": 0.9, "mae": 0.7}, ["dino>mae"])
    assert said(one, ranking=ranking)[1:] == [
        "Ranks over 3 protocols in 2 families: dino has the best mean rank, 1.00 of 3 (ranks 1 to 2 with 90 % "
        "probability, first with 80 %).",
        "knn and linear agree most on the order of methods (Kendall's tau +0.33), knn and finetune least (-0.33).",
        "Not in the ranks, since not every method was measured: fewshot.",
    ]


def board(tmp_path: Path, methods: int = 3) -> tuple[Table, Compared]:
    """Methods of which each has twenty right answers fewer than the one before, under two protocols."""
    labels = np.arange(200) % 10
    for number, seed in itertools.product(range(methods), range(2)):
        folder, data = tmp_path / f"m{number}-{seed}", DataRecord("digits", {"sha256": "ab" * 32})
        backbone = BackboneRecord("vit")
        write_run(folder, RunInfo("finished", "pretrained", f"m{number}", data, {}, backbone, seed, epochs=2.0))
        for protocol in ("knn", "linear"):
            right = max(0, 190 - 20 * number)
            given = np.where(np.arange(200) < right, labels, (labels + 1) % 10)
            result = Result(protocol, 1, {}, "all", right / 200, wilson(right, 200), 200, data)
            write_result(folder, result, Predictions([str(i) for i in range(200)], labels, {"all": given}))
    return tabled([tmp_path])[:2]


def test_findings_say_what_the_marks_of_the_table_say(tmp_path: Path) -> None:
    board(tmp_path)
    (tmp_path / "m0-0" / "predictions" / "knn.parquet").unlink()
    table, compared = tabled([tmp_path])[:2]
    texts = [finding.text for finding in findings(table, compared)]
    (block,) = table.blocks
    assert [column.test for column in block.columns] == ["intervals", "paired"]
    assert "knn: m0 leads with 95.0 %, significantly ahead of all others (2)." in texts
    assert "linear: m0 leads with 95.0 %, significantly ahead of all others (2), 10.0 points above m1." in texts
    assert any(text.startswith("knn: not compared image by image") for text in texts)


def test_nothing_is_compared_twice_or_without_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssl_bench.leaderboard.marks.MOST_METHODS", 2)
    table, compared = board(tmp_path)
    monkeypatch.setattr("ssl_bench.statistics.comparison.compare", None)
    monkeypatch.setattr("ssl_bench.leaderboard.significance.compare", None)
    texts = [finding.text for finding in findings(table, compared)]
    assert sum("leads with 95.0 %" in text for text in texts) == 2
    assert any(text.startswith("knn and linear: not compared image by image") for text in texts)


def test_a_single_method_has_no_findings(tmp_path: Path) -> None:
    (finding,) = findings(*board(tmp_path, methods=1))
    assert finding.text.startswith("No comparison: two methods")


def test_one_seed_is_said() -> None:
    texts = said(protocol("knn", {"mae": 0.9, "single": 0.5}, ["mae>single"]))
    assert texts[-1].startswith(
        "One seed (single): intervals are over test images only. Differences mean nothing about"
    )
    assert not any("significant" in text for text in texts)


def test_lists() -> None:
    assert [joined(list("abc")[:n]) for n in (1, 2, 3)] == ["a", "a and b", "a, b and c"]
    assert joined(list("abcd"), most=2) == "a, b and 2 more"
