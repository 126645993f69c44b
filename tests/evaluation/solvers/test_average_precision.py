"""Average precision by hand, against the official code's numbers, and as the area under scikit-learn's curve."""

import golden_files
import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve

from ssl_bench.evaluation.solvers.average_precision import average_precision, hard, mean_average_precision, medium


def flags(text: str, letter: str) -> np.ndarray:
    return np.array([found == letter for found in text])


@pytest.mark.parametrize(
    ("ranking", "expected"),
    [
        ("p", 1.0),
        ("pp--", 1.0),
        ("-p", (0 + 1 / 2) / 2),  # precision 0 at rank 1, 1/2 at rank 2
        ("p-p", ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2),
        ("--p-p", ((0 + 1 / 3) / 2 + (1 / 4 + 2 / 5) / 2) / 2),
        ("---", None),
    ],
)
def test_by_hand(ranking: str, expected: float | None) -> None:
    assert average_precision(flags(ranking, "p")) == (expected and pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize(("ranking", "without"), [("jp", "p"), ("pjjp", "pp"), ("-jp-jpj", "-p-p"), ("jj-", "-")])
def test_junk_is_taken_out(ranking: str, without: str) -> None:
    found = average_precision(flags(ranking, "p"), flags(ranking, "j"))
    assert found == average_precision(flags(without, "p"))


def test_medium_and_hard_by_hand() -> None:
    """easy, junk, nothing, hard, easy, hard: in medium E-HEH, in hard -H-H of which easy ones are gone: -HH."""
    easy, own, junk = (flags("ej-heh", letter) for letter in "ehj")
    e_h_e_h = ((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2 + (2 / 3 + 3 / 4) / 2 + (3 / 4 + 4 / 5) / 2) / 4
    assert average_precision(*medium(easy, own, junk)) == pytest.approx(e_h_e_h, rel=1e-12)
    h_h = ((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2
    assert average_precision(*hard(easy, own, junk)) == pytest.approx(h_h, rel=1e-12)


def test_against_the_official_code() -> None:
    record, tensors = golden_files.load("dino_compute_map")
    ranks = tensors["ranks"].numpy()  # (N, Q) images, the most similar first
    found, without = [], []
    for query, truth in enumerate(record["gnd"]):
        positive, junk = (np.isin(ranks[:, query], truth[kind]) for kind in ("ok", "junk"))
        found.append(average_precision(positive, junk))
        without.append(average_precision(positive))
    for mine, official in zip(found, record["aps"], strict=True):
        assert mine == (official if official is None else pytest.approx(official, rel=1e-12))
    assert mean_average_precision(found) == pytest.approx(record["map"], rel=1e-12)
    assert mean_average_precision(without) == pytest.approx(record["map_without_junk"], rel=1e-12)


def test_against_the_area_under_scikit_learns_curve() -> None:
    """Between two positives recall stands still, so that the curve's own trapezoids are these."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        positive = rng.random(50) < 0.3
        positive[0] = True  # where scikit-learn's curve begins at precision 1, too
        precision, recall, _ = precision_recall_curve(positive, -np.arange(50))
        assert average_precision(positive) == pytest.approx(np.trapezoid(precision[::-1], recall[::-1]), rel=1e-9)
