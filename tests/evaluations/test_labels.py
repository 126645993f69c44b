"""Logistic regression from a share of the labels: which labels, how C is chosen, and scikit-learn's answer."""

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from ssl_bench.config import registry
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluate_config import parse_evaluate
from ssl_bench.evaluation.label_subsets import (
    PUBLISHED_MD5,
    concatenated_labels,
    labelled_subsets,
    stratified_folds,
    stratified_fraction,
)
from ssl_bench.evaluation.solvers import logistic
from ssl_bench.evaluation.solvers.affine_classifier import grid_boundary
from ssl_bench.evaluations import labels as labels_module
from ssl_bench.evaluations.finetune_labels import FinetuneLabels
from ssl_bench.evaluations.labels import Labels, cross_validated
from ssl_bench.runtime.seeds import derive

CS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
ONE_PERCENT, TEN_PERCENT = partial(Labels, 0.01), partial(Labels, 0.1)


def clusters(count: int, dim: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """(count, dim) features of overlapping classes, of unlike scales and far from 0, one of them constant."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % classes)
    features = rng.normal(size=(classes, dim))[labels] + 2 * rng.normal(size=(count, dim))
    features = features * np.geomspace(0.1, 10, dim) + 5
    features[:, 1] = 3.25
    return torch.tensor(features), labels


def predicted(protocol: Any, backbone: Any, train: Any, validation: Any, test: Any) -> tuple[np.ndarray, Any]:
    fit = protocol.fit(backbone, train, validation)
    (prediction,) = protocol.predict(backbone, fit, test)
    return prediction.labels.numpy(), fit


def oracle(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-9, max_iter=20_000)


def standardised(features: torch.Tensor, learned_from: int) -> np.ndarray:
    x = features.float().double().numpy()
    deviation = x[:learned_from].std(0)
    return (x - x[:learned_from].mean(0)) / np.where(deviation < 1e-9, np.inf, deviation)


# --- which images have labels


def test_a_share_of_each_class() -> None:
    labels = np.repeat(np.arange(5), [400, 250, 149, 20, 1])
    for seed in range(3):
        one, ten = stratified_fraction(labels, 0.01, seed), stratified_fraction(labels, 0.1, seed)
        assert np.bincount(labels[one]).tolist() == [4, 3, 1, 1, 1], "2.5 is rounded up; one image at least"
        assert np.bincount(labels[ten]).tolist() == [40, 25, 15, 2, 1]
        assert set(one) < set(ten), "1 % is part of 10 %"
        assert (np.diff(one) > 0).all()
    assert not np.array_equal(stratified_fraction(labels, 0.1, 0), stratified_fraction(labels, 0.1, 1))


def asked(page: Any, given: Any) -> list[set[int]]:
    """Rows of the pool whose features `fit` asks for, draw by draw, but for those that moments are taken of."""
    backbone, train, validation, _ = given
    seen: list[set[int]] = []
    original = labels_module.subset_features

    def spy(backbone: Any, splits: Any, feature_type: str, rows: np.ndarray) -> torch.Tensor:
        seen.append(set(np.concatenate([split.rows for split in splits])[rows].tolist()))
        return original(backbone, splits, feature_type, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labels_module, "subset_features", spy)
        page.fit(backbone, train, validation)
    return seen


def test_the_pages_nest_draw_by_draw(problem: Callable) -> None:
    given = problem({"cls": clusters(1200, 6, 2)[0]}, labels := clusters(1200, 6, 2)[1], 700, 300)
    one, ten = asked(ONE_PERCENT(cs=(0.1,)), given), asked(TEN_PERCENT(cs=(0.1,)), given)
    for few, more in zip(one, ten, strict=True):
        assert few < more and max(more) < 1000
        for rows, count in ((few, 0.01), (more, 0.1)):
            held = np.bincount(labels[:1000])
            assert np.bincount(labels[list(rows)]).tolist() == np.floor(count * held + 0.5).tolist()
    assert len(one) == 3 and one[0] != one[1] and one[1] != one[2]
    assert any(max(rows) >= 700 for rows in ten), "the validation part is drawn from as well"


def test_no_other_label_is_seen(problem: Callable, tmp_path: Path) -> None:
    """With the labels of all other images permuted, nothing changes."""
    features, labels = clusters(500, 8, 4)
    rows = np.random.default_rng(1).permutation(400)[:60]
    (tmp_path / "list.txt").write_text("\n".join(map(str, rows)) + "\n")
    page = TEN_PERCENT(subset=str(tmp_path / "list.txt"), cs=CS)
    expected, fit = predicted(page, *problem({"cls": features}, labels, 300, 100))
    others = np.setdiff1d(np.arange(400), rows)
    shuffled = labels.copy()
    shuffled[others] = labels[np.random.default_rng(2).permutation(others)]
    found, other_fit = predicted(page, *problem({"cls": features}, shuffled, 300, 100))
    assert expected.shape == (100,) and np.array_equal(found, expected)
    assert fit.chosen == other_fit.chosen and fit.curve == other_fit.curve


# --- C by cross-validation


def test_folds_are_stratified() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), [13, 12, 7, 3, 2, 1]))
    fold = stratified_folds(labels, 5, seed=0)
    for k, count in enumerate([13, 12, 7, 3, 2, 1]):
        held = fold[labels == k]
        if count == 1:
            assert held.tolist() == [-1], "the only image of a class is always learned from"
            continue
        sizes = np.bincount(held, minlength=5)
        assert sizes.max() - sizes.min() <= 1 and sizes.max() < count
    total = np.bincount(fold[fold >= 0], minlength=5)
    assert total.min() >= 6 and not np.array_equal(fold, stratified_folds(labels, 5, seed=1))


def test_fewer_folds_where_classes_have_fewer_images() -> None:
    assert set(stratified_folds(np.repeat(np.arange(4), 3), 5, 0)) == {0, 1, 2}
    assert set(stratified_folds(np.repeat(np.arange(4), 2), 5, 0)) == {0, 1}
    assert set(stratified_folds(np.arange(4), 5, 0)) == {-1}


@pytest.mark.parametrize("fraction", [0.01, 0.1])
def test_choice_and_classifier_against_scikit_learn(problem: Callable, fraction: float) -> None:
    features, labels = clusters(6400, 9, 4)
    total = 6000 if fraction == 0.01 else 600
    labels = np.concatenate([labels[:total], labels[6000:]])
    features = torch.cat([features[:total], features[6000:]])
    protocol = Labels(fraction, cs=CS)
    found, fit = predicted(protocol, *problem({"cls": features}, labels, total - 100, 100))
    assert found.shape == (3, 400) and fit.features == ("cls",)
    x = standardised(features, total)
    chosen = []
    for draw in range(3):
        rows = stratified_fraction(labels[:total], fraction, derive(0, draw))
        n = len(rows)
        assert abs(n - 60) <= 2
        fold = stratified_folds(labels[rows], 5, derive(0, draw, 1))
        scores = []
        for c in CS:
            right, loss = 0, 0.0
            for number in range(5):
                learn, held = rows[fold != number], rows[fold == number]
                model = oracle(c).fit(x[learn], labels[learn])
                right += (model.predict(x[held]) == labels[held]).sum()
                loss -= np.log(model.predict_proba(x[held])[np.arange(len(held)), labels[held]]).sum()
            scores.append((right / n, -loss))
        np.testing.assert_allclose(fit.curve[f"accuracy {draw}"], [accuracy for accuracy, _ in scores])
        chosen.append(CS[scores.index(max(scores))])
        final = oracle(chosen[-1]).fit(x[rows], labels[rows])
        assert (found[draw] == final.predict(x[total:])).mean() > 0.995
        np.testing.assert_allclose(fit.state[draw].weight[:, 1], 0, atol=1e-12)  # of the feature that is constant
    assert fit.chosen == {"C": chosen} and fit.grid == {"C": list(CS)} and fit.curve["C"] == list(CS)
    assert fit.chosen_on == "train"
    assert 0.4 < (found == labels[total:]).mean() < 0.95, "neither trivial nor hopeless"


def test_of_equal_accuracies_the_lowest_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes far apart: every C is right, and the largest is the surest."""
    inputs = torch.tensor([[-1.0], [-1.1], [-0.9], [1.0], [1.1], [0.9]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    c, accuracy = cross_validated(inputs, labels, stratified_folds(labels.numpy(), 3, 0), 2, (0.01, 1.0, 10.0))
    assert c == 10.0 and accuracy == [1.0, 1.0, 1.0]


def stub(accuracies: list[float], asked: list[float]) -> Callable[..., Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """A path whose classifiers are right on so large a part of images of class 0 with features in [0, 1)."""

    def path(inputs: Any, labels: Any, classes: int, cs: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for c, accuracy in zip(cs, accuracies, strict=True):
            asked.append(c)
            yield torch.tensor([[-1.0], [1.0]]), torch.tensor([2 * accuracy, 0.0])

    return path


@pytest.mark.parametrize(
    ("accuracies", "tried", "best"),
    [
        ([0.5, 0.9, 0.8, 0.8, 0.7, 0.6, 0.6, 0.6], 6, 1),
        ([0.5, 0.9, 0.8, 0.8, 0.7, 1.0, 0.6, 0.6], 8, 5),
        ([0.9, 0.8, 0.7, 0.6, 0.5, 1.0, 1.0, 1.0], 5, 0),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], 8, 7),
    ],
)
def test_the_path_ends_after_four_that_are_no_better(
    accuracies: list[float], tried: int, best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    monkeypatch.setattr(logistic, "path", stub(accuracies, seen))
    cs = [10.0**k for k in range(8)]
    place = torch.linspace(0.005, 0.995, 100)[:, None]
    labels = torch.zeros(100, dtype=torch.int64)
    c, found = cross_validated(place, labels, stratified_folds(labels.numpy(), 2, 0), 2, cs)
    assert c == cs[best] and found == pytest.approx(accuracies[:tried])
    assert len(seen) == 2 * tried, "no fold went further"


def test_what_lies_at_an_end_of_the_grid() -> None:
    assert grid_boundary([0.9, 0.8, 0.7], 0, 5) == grid_boundary([0.5, 0.6, 0.7], 2, 3) == (True, False)
    assert grid_boundary([0.5, 0.7, 0.6], 1, 3) == (False, False)
    assert grid_boundary([0.9, 0.9, 0.8], 0, 3) == grid_boundary([1.0, 1.0, 1.0], 2, 3) == (True, True)
    assert grid_boundary([0.5, 0.6, 0.7], 2, 4) == (False, False), "the path ended before the grid"
    assert grid_boundary([0.5], 0, 1) == (False, False), "there was no choice"
    assert grid_boundary([0.5, 0.4], 0, 2) == (True, False), "of two, each is an end"


def test_a_choice_at_the_end_of_the_grid_is_flagged(problem: Callable) -> None:
    given = problem({"cls": clusters(800, 60, 4)[0]}, clusters(800, 60, 4)[1], 500, 100)
    narrow, wide = TEN_PERCENT(cs=(1e-7, 1e-2)), TEN_PERCENT(cs=(1e-7, 1e-2, 1e5))
    assert predicted(narrow, *given)[1].at_grid_boundary and not predicted(wide, *given)[1].at_grid_boundary


def test_one_image_per_class_leaves_nothing_to_choose_on(problem: Callable) -> None:
    features, labels = clusters(300, 8, 4)
    given = problem({"cls": features}, labels, 150, 50)
    found, fit = predicted(ONE_PERCENT(), *given)
    assert fit.chosen == {} and fit.grid == {} and fit.curve == {} and not fit.at_grid_boundary
    x = standardised(features, 200)
    for draw in range(3):
        rows = stratified_fraction(labels[:200], 0.01, derive(0, draw))
        assert len(rows) == 4
        expected = oracle(0.1).fit(x[rows], labels[rows]).predict(x[200:])
        assert (found[draw] == expected).mean() > 0.98


def test_one_draw_is_a_row_of_its_own(problem: Callable) -> None:
    given = problem({"cls": clusters(400, 8, 4)[0]}, clusters(400, 8, 4)[1], 200, 100)
    one, fit = predicted(TEN_PERCENT(draws=1, cs=CS), *given)
    three, _ = predicted(TEN_PERCENT(cs=CS), *given)
    assert one.shape == (100,) and three.shape == (3, 100) and np.array_equal(one, three[0])
    assert isinstance(fit.chosen["C"], float)
    assert not np.array_equal(predicted(TEN_PERCENT(seed=1, cs=CS), *given)[0], three)


# --- the published lists


def imagenet(classes: int = 1000, names: str = "train/n{k:08d}/n{k:08d}_{i}.JPEG") -> tuple[Any, Any]:
    """Three images of each class, the last of each held out."""
    labels = np.repeat(np.arange(classes), 3)
    ids = [names.format(k=k, i=i) for k in range(classes) for i in range(3)]
    pool = ResidentPool(images=torch.zeros(3 * classes, 3, 1, 1, dtype=torch.uint8), labels=labels, ids=ids)
    rows = np.arange(3 * classes)
    return TrainSplit(pool, rows[rows % 3 < 2]), ValidationSplit(pool, rows[rows % 3 == 2])


def write_list(path: Path, names: list[str]) -> tuple[str, str]:
    """The file and its md5."""
    path.write_text("\n".join(names) + "\n")
    return str(path), hashlib.md5(path.read_bytes()).hexdigest()


def rows_of(splits: Any, subset: str | None, md5: str | None = None) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        if md5 is not None:
            patch.setitem(PUBLISHED_MD5, 0.01, md5)
        return labelled_subsets(splits, 0.01, subset, [0])[0]


@pytest.mark.parametrize("fraction", [0.01, 0.1])
def test_lists_are_held_to_the_checksum_of_their_fraction(
    fraction: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published list is taken, and that list with a line moved is not."""
    splits, wanted = imagenet(), [f"n{k:08d}_0.JPEG" for k in range(1000)]
    subset, md5 = write_list(tmp_path / "right.txt", wanted)
    monkeypatch.setitem(PUBLISHED_MD5, fraction, md5)
    assert len(labelled_subsets(splits, fraction, subset, [0])[0]) == 1000
    subset, _ = write_list(tmp_path / "wrong.txt", [*wanted[1:], wanted[0]])
    with pytest.raises(UserError, match=f"md5 .* is not that of ImageNet's published list, {md5}"):
        labelled_subsets(splits, fraction, subset, [0])
    assert len(labelled_subsets(splits, 0.05, subset, [0])[0]) == 1000, "of 5 % nobody has published a list"


def test_the_published_lists() -> None:
    """12,811 and 128,116 lines, the former among the latter, all classes, and their md5."""
    folder = os.environ.get("IMAGENET_SUBSETS")
    if not folder:
        pytest.skip("IMAGENET_SUBSETS names no folder with 1percent.txt and 10percent.txt of google-research/simclr")
    lists = [Path(folder, name).read_bytes() for name in ("1percent.txt", "10percent.txt")]
    one, ten = (content.decode().split() for content in lists)
    assert (len(one), len(ten)) == (12_811, 128_116) and set(one) < set(ten)
    assert len(set(ten)) == len(ten) and len({name.partition("_")[0] for name in one}) == 1000
    own = [hashlib.md5(content).hexdigest() for content in lists]
    assert own == [PUBLISHED_MD5[0.01], PUBLISHED_MD5[0.1]]


@pytest.mark.parametrize(
    "names", ["train/n{k:08d}/n{k:08d}_{i}.JPEG", "n{k:08d}_{i}_n{k:08d}.JPEG", "n{k:08d}_{i}.JPEG"]
)
def test_lines_are_found_by_file_name(tmp_path: Path, names: str) -> None:
    """In a folder, in Hugging Face's parquet files; in the validation part too."""
    splits = imagenet(names=names)
    wanted = [f"n{k:08d}_{2 if k % 2 else 0}.JPEG" for k in range(1000)]
    subset, md5 = write_list(tmp_path / "1percent.txt", wanted[::-1])
    rows = rows_of(splits, subset, md5)
    ids = [name for split in splits for name in split.ids]
    assert [ids[row] for row in rows[:2]] == [names.format(k=0, i=0), names.format(k=2, i=0)]
    assert len(rows) == 1000 and np.array_equal(np.sort(concatenated_labels(splits)[rows]), np.arange(1000))
    assert (rows >= 2000).sum() == 500 and (np.diff(rows) > 0).all()


def test_imagenet_takes_no_other_list(tmp_path: Path) -> None:
    wanted = [f"n{k:08d}_0.JPEG" for k in range(1000)]
    subset, _ = write_list(tmp_path / "mine.txt", wanted)
    with pytest.raises(
        UserError, match=f"md5 .* is not that of ImageNet's published list, {PUBLISHED_MD5[0.01]}.*simclr"
    ):
        rows_of(imagenet(), subset, PUBLISHED_MD5[0.01])
    subset, _ = write_list(tmp_path / "less.txt", wanted[:100])
    assert len(rows_of(imagenet(100), subset, PUBLISHED_MD5[0.01])) == 100, "of other data any list will do"
    others = [f"{k}/0.png" for k in range(1000)]
    subset, _ = write_list(tmp_path / "others.txt", others)
    found = rows_of(imagenet(names="train/{k}/{i}.png"), subset, PUBLISHED_MD5[0.01])
    assert len(found) == 1000, "of other data with as many classes, too"


def test_imagenets_subset_is_not_drawn() -> None:
    with pytest.raises(
        UserError, match="subset: 1 % of ImageNet is a published list: give the file from https://.*simclr"
    ):
        rows_of(imagenet(), None)
    assert len(rows_of(imagenet(100), None)) == 100
    assert len(rows_of(imagenet(names="train/{k}/{i}.png"), None)) == 1000, "of other data with as many classes it is"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["n00000000_0.JPEG", "n00000007_9.JPEG"], "n00000007_9.JPEG is no training image"),
        (["n00000000_0.JPEG", "n00000001_0.JPEG", "n00000001_0.JPEG"], "names an image twice"),
        (["n00000000_0.JPEG"], "no image of class 1"),
        (["other/n00000000_0.JPEG", "n00000001_0.JPEG"], "other/n00000000_0.JPEG is no training image"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, names: list[str], message: str) -> None:
    subset, _ = write_list(tmp_path / "list.txt", names)
    with pytest.raises(UserError, match=f"subset .*{message}"):
        rows_of(imagenet(2), subset)


def test_names_that_repeat_need_their_folder(tmp_path: Path) -> None:
    splits = imagenet(2, names="train/{k}/{i}.png")
    subset, _ = write_list(tmp_path / "list.txt", ["0.png", "1.png"])
    with pytest.raises(UserError, match="0.png is the name of several images"):
        rows_of(splits, subset)
    subset, _ = write_list(tmp_path / "list.txt", ["0/0.png", "train/1/2.png"])
    assert rows_of(splits, subset).tolist() == [0, 5]


def test_a_list_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere", "binary"):
        with pytest.raises(UserError, match="subset .*cannot be read"):
            rows_of(imagenet(2), str(tmp_path / name))


# --- options


@pytest.mark.parametrize(
    "options",
    [
        *({"cs": cs} for cs in ((), (1.0, 0.1), (0.0, 1.0), (1.0, 1.0))),
        *({"draws": 0}, {"folds": 1}, {"fraction": 0.0}, {"fraction": 1.5}, {"fraction": float("nan")}),
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cs must|draws must|fraction must"):
        Labels(**options)


def test_on_the_command_line() -> None:
    given = parse_evaluate(
        ["pixels", "--protocols", "labels-1pct,labels-10pct", "--data=digits", "--labels_1pct.subset", "list.txt"], {}
    )
    one, ten = given.protocols["labels-1pct"], given.protocols["labels-10pct"]
    assert (one["fraction"], one["subset"], ten["fraction"], ten["subset"]) == (0.01, "list.txt", 0.1, None)


@pytest.mark.parametrize("cls", [Labels, FinetuneLabels])
def test_presets_are_the_two_published_fractions(cls: type) -> None:
    found = {
        name: registry.preset_options(each)["fraction"]
        for name, each in registry.names("evaluations").items()
        if each.preset and registry.load(each) is cls
    }
    stem = "labels" if cls is Labels else "finetune"
    assert found == {f"{stem}-1pct": 0.01, f"{stem}-10pct": 0.1} and set(found.values()) == set(PUBLISHED_MD5)
