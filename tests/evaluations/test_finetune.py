"""Evaluations that fine-tune: the search, what is learned from, and where it starts."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_bench.config import registry
from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.evaluations import finetune as page
from ssl_bench.evaluations.finetune import Finetune
from ssl_bench.evaluations.finetune_labels import FinetuneLabels
from ssl_bench.finetuning import cross_validation
from ssl_bench.finetuning.images import Batches
from ssl_bench.finetuning.model import FineTuneModel, Recipe
from ssl_bench.models.backbone import Backbone

VIT = BackboneOptions("vit_nano_patch4_32", img_size=8, patch_size=4, width=16, depth=2, num_heads=2)
RESNET = BackboneOptions("resnet18", img_size=8, timm_args={"channels": (4, 6, 8, 8)})
QUIET: dict[str, Any] = {"mixup": 0.0, "cutmix": 0.0, "randaugment": None, "erase": 0.0, "precision": "32-true"}

Splits = tuple[TrainSplit, ValidationSplit, TestSplit]


def frozen(options: BackboneOptions = VIT, head: nn.Module | None = None) -> FeatureExtractor:
    torch.manual_seed(0)
    return FeatureExtractor(Backbone(options), (0.5,) * 3, (0.25,) * 3, {}, num_workers=0, head=head)


@pytest.fixture
def splits() -> Splits:
    """Images of three classes that differ in brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = np.clip(30 + 90 * labels[:, None, None, None] + 25 * rng.normal(size=(90, 3, 8, 8)), 0, 255)
    pools = [
        ResidentPool(images=torch.tensor(images[r], dtype=torch.uint8), labels=labels[r], ids=[str(i) for i in r])
        for r in (np.arange(60), np.arange(60, 90))
    ]
    order = rng.permutation(60)
    return (
        TrainSplit(pools[0], np.sort(order[:45])),
        ValidationSplit(pools[0], np.sort(order[45:])),
        TestSplit(pools[1], np.arange(30)),
    )


class Spy:
    """Stands for `tune`: notes what it was asked for, and leaves the network as it is."""

    def __init__(self) -> None:
        self.calls: list[tuple[Recipe, list[int], Any]] = []
        self.models: list[FineTuneModel] = []

    def __call__(self, model: FineTuneModel, batches: Batches, recipe: Recipe, validation: Any = None, **_: Any) -> Any:
        self.calls.append((recipe, batches._prepared.rows.tolist(), validation))
        self.models.append(model.eval())
        return {"epoch": [1.0], "loss": [float(len(self.calls))]}


# --- finetune


def searched(monkeypatch: pytest.MonkeyPatch, splits: Splits, best: tuple[float, float, float], **options: Any) -> Any:
    """Its fit on networks that answer all validation images rightly with the best of the grid, and else none."""
    spy = Spy()

    def answer(model: FineTuneModel, backbone: FeatureExtractor, split: Any) -> Tensor:
        recipe = spy.calls[spy.models.index(model)][0]
        right = (recipe.lr, recipe.layer_decay, recipe.drop_path) == best
        return nn.functional.one_hot(torch.as_tensor(split.labels + (0 if right else 1)) % 3, 3).float()

    monkeypatch.setattr(page, "tune", spy)
    monkeypatch.setattr(page, "logits_of", answer)
    return Finetune(**options).fit(frozen(), *splits[:2]), spy


def test_the_whole_grid_is_searched_briefly_and_the_best_trained_in_full(
    monkeypatch: pytest.MonkeyPatch, splits: Splits
) -> None:
    fit, spy = searched(monkeypatch, splits, (1e-3, 0.65, 0.2), epochs=50, warmup_epochs=10, search_epochs=10)
    tried = [(r.lr, r.layer_decay, r.drop_path) for r, *_ in spy.calls]
    assert len(tried) == 9 and set(tried[:8]) == {
        (lr, decay, path) for lr in (5e-4, 1e-3) for decay in (0.65, 0.75) for path in (0.1, 0.2)
    }
    assert all((r.epochs, r.warmup_epochs) == (10, 2) for r, *_ in spy.calls[:8])
    assert tried[8] == (1e-3, 0.65, 0.2) and (spy.calls[8][0].epochs, spy.calls[8][0].warmup_epochs) == (50, 10)
    assert fit.chosen == {"lr": 1e-3, "layer_decay": 0.65, "drop_path": 0.2} and fit.at_grid_boundary
    assert fit.grid == {"lr": [5e-4, 1e-3], "layer_decay": [0.65, 0.75], "drop_path": [0.1, 0.2]}
    assert fit.state is spy.models[8] and fit.curve["loss"] == [9.0]
    audited = [fit.curve[f"{name} tried"] for name in ("lr", "layer_decay", "drop_path", "validation accuracy")]
    assert list(zip(*audited, strict=True)) == [(*point, float(point == (1e-3, 0.65, 0.2))) for point in tried[:8]]
    assert all(rows == splits[0].rows.tolist() and chosen_on is splits[1] for _, rows, chosen_on in spy.calls)


def test_full_runs_are_not_repeated(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> None:
    grid: dict[str, Any] = {"lrs": (1e-4, 1e-3, 1e-2), "layer_decays": (0.7,), "drop_paths": (0.1,)}
    fit, spy = searched(monkeypatch, splits, (1e-3, 0.7, 0.1), epochs=50, search_epochs=None, **grid)
    assert [r.epochs for r, *_ in spy.calls] == [50] * 3 and fit.state is spy.models[1] and fit.curve["loss"] == [2.0]
    assert fit.chosen["lr"] == 1e-3 and not fit.at_grid_boundary


def test_one_value_each_is_no_search(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> None:
    one: dict[str, Any] = {"lrs": (1e-3,), "layer_decays": (0.7,), "drop_paths": (0.1,)}
    fit, spy = searched(monkeypatch, splits, (0, 0, 0), epochs=50, search_epochs=10, **one)
    assert (
        [r.epochs for r, *_ in spy.calls] == [50] and fit.chosen == {} and fit.grid == {} and not fit.at_grid_boundary
    )
    train, empty = splits[0], ValidationSplit(splits[0].pool, np.array([], dtype=np.int64))
    monkeypatch.undo()
    assert Finetune(epochs=1, warmup_epochs=0, batch_size=16, **one, **QUIET).fit(frozen(), train, empty).curve["loss"]


def test_nothing_to_choose_on(splits: Splits) -> None:
    empty = ValidationSplit(splits[0].pool, np.array([], dtype=np.int64))
    with pytest.raises(UserError, match="validation split, on which finetune chooses, is empty"):
        Finetune().fit(frozen(), splits[0], empty)


def test_rates_that_diverge_are_passed_over(splits: Splits) -> None:
    grid: dict[str, Any] = {"layer_decays": (0.7,), "drop_paths": (0.0,), "batch_size": 16, "epochs": 6, **QUIET}
    fit = Finetune(lrs=(1e20, 0.02), warmup_epochs=1, **grid).fit(frozen(), *splits[:2])
    assert fit.chosen["lr"] == 0.02 and fit.curve["validation accuracy"][-1] > 0.8
    with pytest.raises(UserError, match="every rate of finetune diverged"):
        Finetune(lrs=(1e20, 1e21), warmup_epochs=1, **grid).fit(frozen(), *splits[:2])


@pytest.mark.integration
@pytest.mark.parametrize("options", [VIT, RESNET], ids=["vit", "resnet"])
def test_it_learns_and_keeps_the_curve_to_the_last_epoch(options: BackboneOptions, splits: Splits) -> None:
    protocol = Finetune(
        epochs=12, warmup_epochs=1, batch_size=16, lrs=(0.02,), layer_decays=(0.75,), drop_paths=(0.1,), **QUIET
    )
    backbone = frozen(options)
    fit = protocol.fit(backbone, *splits[:2])
    assert fit.curve["epoch"] == list(range(1, 13)) and fit.curve["loss"][-1] < fit.curve["loss"][0]
    (prediction,) = protocol.predict(backbone, fit, splits[2])
    assert prediction.variant == ("gap" if options is RESNET else "avg")
    assert (prediction.labels.numpy() == splits[2].labels).mean() > 0.8


def test_whole_augmentation_runs(splits: Splits) -> None:
    protocol = Finetune(epochs=2, warmup_epochs=1, search_epochs=1, batch_size=16, lrs=(1e-3, 2e-3), precision="auto")
    backbone = frozen()
    fit = protocol.fit(backbone, *splits[:2])
    assert protocol.predict(backbone, fit, splits[2])[0].labels.shape == (30,)


def test_refusals() -> None:
    assert Finetune().refusal(FeatureExtractor(Pixels(8), (0.5,) * 3, (0.5,) * 3, {})) == (
        "raw pixels have no network to train"
    )
    swin = BackboneOptions(
        "swin_tiny_patch4_window7_224",
        img_size=16,
        patch_size=2,
        width=24,
        timm_args={"depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    )
    assert Finetune().refusal(frozen(swin)) is None
    assert Finetune(pooling="cls").refusal(frozen(swin)) == "it has no class token to pool"
    assert Finetune(pooling="cls").refusal(frozen(RESNET)) is None and Finetune(pooling="cls").refusal(frozen()) is None


@pytest.mark.parametrize(
    "wrong", [{"lrs": ()}, {"search_epochs": 0}, {"warmup_epochs": 100.0}, {"lrs": (0.0,)}, {"layer_decays": (2.0,)}]
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least|below|above|\\(0, 1\\]"):
        Finetune(**wrong)


# --- finetune-labels, and its presets finetune-1pct and finetune-10pct


def test_few_labels_are_nested_stratified_and_all_that_is_seen(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> None:
    seen = {}
    for fraction in (0.01, 0.1):
        spy = Spy()
        monkeypatch.setattr(cross_validation, "tune", spy)
        FinetuneLabels(fraction, draws=2).fit(frozen(), *splits[:2])
        finals = [rows for recipe, rows, chosen_on in spy.calls if len(rows) == max(len(r) for _, r, _ in spy.calls)]
        assert all(chosen_on is None for *_, chosen_on in spy.calls)
        seen[fraction] = [set(finals[-1]), set().union(*(rows for _, rows, _ in spy.calls))]
    labels = splits[0].pool.labels
    assert labels is not None
    assert sorted(labels[list(seen[0.01][0])]) == [0, 1, 2]
    assert sorted(labels[list(seen[0.1][0])]) == [0, 0, 1, 1, 2, 2]
    assert seen[0.01][1] <= seen[0.1][1] and len(seen[0.1][1]) <= 12


def test_the_rate_is_chosen_on_folds_inside_the_subset(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> None:
    spy = Spy()
    held_out: list[list[int]] = []

    def answer(model: FineTuneModel, backbone: FeatureExtractor, split: Any) -> Tensor:
        recipe, rows, _ = spy.calls[spy.models.index(model)]
        assert isinstance(split, ValidationSplit) and not set(rows) & set(split.rows)
        held_out.append(sorted(split.rows.tolist()))
        return nn.functional.one_hot(torch.as_tensor(split.labels + (0 if recipe.lr == 2e-3 else 1)) % 3, 3).float()

    monkeypatch.setattr(cross_validation, "tune", spy)
    monkeypatch.setattr(cross_validation, "logits_of", answer)
    fit = FinetuneLabels(0.1, lrs=(1e-3, 2e-3, 4e-3)).fit(frozen(), *splits[:2])
    assert (
        fit.chosen == {"lr encoder": 2e-3}
        and fit.grid == {"lr encoder": [1e-3, 2e-3, 4e-3]}
        and not fit.at_grid_boundary
    )
    assert fit.curve["accuracy encoder 0"] == [0, 1, 0]
    assert len(held_out) == 6 and held_out[:2] == held_out[2:4]  # six images, two of each class: two folds
    final, rows, _ = spy.calls[-1]
    assert final.lr == 2e-3 and sorted(rows) == sorted(held_out[0] + held_out[1])


def test_with_one_image_per_class_the_first_rate_is_taken(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> None:
    spy = Spy()
    monkeypatch.setattr(cross_validation, "tune", spy)
    fit = FinetuneLabels(0.01).fit(frozen(), *splits[:2])
    assert [r.lr for r, *_ in spy.calls] == [5e-4] and fit.curve["loss encoder 0"] == [1.0]
    assert "accuracy encoder 0" not in fit.curve and fit.chosen == {} and fit.grid == {}


def test_resnets_have_sgd_and_crops_alone(monkeypatch: pytest.MonkeyPatch, splits: Splits) -> None:
    spy = Spy()
    monkeypatch.setattr(cross_validation, "tune", spy)
    FinetuneLabels(0.01, resnet_epochs=60).fit(frozen(RESNET), *splits[:2])
    ((recipe, *_),) = spy.calls
    assert (recipe.optimizer, recipe.lr, recipe.epochs, recipe.warmup_epochs) == ("sgd", 0.005, 60, 0)
    assert (recipe.weight_decay, recipe.layer_decay, recipe.drop_path, recipe.min_lr) == (0, 1, 0, 0)
    assert (recipe.mixup, recipe.cutmix, recipe.smoothing, recipe.erase, recipe.randaugment) == (0, 0, 0, 0, None)
    assert recipe.scale == (0.08, 1.0) and recipe.flip == 0.5


@pytest.mark.integration
@pytest.mark.parametrize("options", [VIT, RESNET], ids=["vit", "resnet"])
def test_head1_starts_from_the_heads_first_layer(options: BackboneOptions, splits: Splits) -> None:
    dim = 16 if options is VIT else 8
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(dim, 20, bias=False), nn.BatchNorm1d(20), nn.ReLU())
    backbone = frozen(options, head)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    rates: dict[str, Any] = {"lrs": (0.02,), "resnet_lrs": (0.5,), "epochs": 25, "resnet_epochs": 25, **QUIET}
    protocol = FinetuneLabels(0.1, warmup_epochs=1, **rates)
    fit = protocol.fit(backbone, *splits[:2])
    assert list(fit.state) == ["encoder", "head1"]
    assert set(fit.features) == ({"avg_raw", "cls"} if options is VIT else {"gap"})
    assert fit.state["encoder"][0].first is None
    first = fit.state["head1"][0].first
    assert first is not None and not first.state_dict()["0.weight"].equal(before["0.weight"])  # it has learned
    assert backbone.head is not None
    assert all(backbone.head.state_dict()[name].equal(tensor) for name, tensor in before.items())  # the original not
    predictions = protocol.predict(backbone, fit, splits[2])
    assert [p.variant for p in predictions] == ["encoder", "head1"]
    assert (predictions[1].labels.numpy() == splits[2].labels).mean() > 0.6


def test_draws_are_repeats(splits: Splits) -> None:
    protocol = FinetuneLabels(0.01, draws=2, epochs=2, warmup_epochs=1, lrs=(0.01,), **QUIET)
    backbone = frozen()
    (prediction,) = protocol.predict(backbone, protocol.fit(backbone, *splits[:2]), splits[2])
    assert prediction.labels.shape == (2, 30) and prediction.repeats == "draws"


def test_a_published_list_is_taken(tmp_path: Any, splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy()
    monkeypatch.setattr(cross_validation, "tune", spy)
    (tmp_path / "list.txt").write_text("3\n10\n59\n")
    FinetuneLabels(0.01, subset=str(tmp_path / "list.txt")).fit(frozen(), *splits[:2])
    assert [sorted(rows) for _, rows, _ in spy.calls] == [[3, 10, 59]]
    (tmp_path / "list.txt").write_text("3\n10\n")
    with pytest.raises(UserError, match=r"subset .*no image of class 2"):
        FinetuneLabels(0.01, subset=str(tmp_path / "list.txt")).fit(frozen(), *splits[:2])


@pytest.mark.parametrize("wrong", [{"lrs": ()}, {"resnet_lrs": (0.0,)}, {"draws": 0}, {"folds": 1}, {"fraction": 2.0}])
def test_impossible_options_of_few_labels_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least|at most"):
        FinetuneLabels(**wrong)


def test_presets_have_the_papers_epochs_and_draws() -> None:
    one, ten = (registry.preset_options(registry.find("evaluations", f"finetune-{n}pct")) for n in (1, 10))
    assert one == {"fraction": 0.01, "draws": 3, "epochs": 200, "resnet_epochs": 60}
    assert ten == {"fraction": 0.1, "draws": 1, "epochs": 100, "resnet_epochs": 30}
