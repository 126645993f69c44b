"""What every evaluation must do, whatever it measures: found by its file, tested here without being named."""

import inspect
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch

from ssl_bench.config import registry
from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.masks import ResidentMasks
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestImages, TestSplit, TrainSplit, ValidationSplit
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction, Scored
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.models.backbone import Backbone

CLASSES = 3
# For the evaluations that have such options; those of one evaluation alone are named after it.
QUICK: dict[str, Any] = {"iterations": 30, "batch_size": 16}
QUICK_ALONE: dict[str, dict[str, Any]] = {
    "distill": {
        "fraction": 0.3,
        "epochs": 5,
        "warmup_epochs": 1,
        "teacher_epochs": 20,
        "teacher_warmup_epochs": 1,
        "teacher_lrs": (0.02,),
        "teacher_resnet_lrs": (0.5,),
        "lr": 0.02,
        "precision": "32-true",
    },
    "finetune-1pct": {
        "draws": 1,
        "epochs": 20,
        "resnet_epochs": 20,
        "warmup_epochs": 1,
        "lrs": (0.02,),
        "resnet_lrs": (0.5,),
        "drop_path": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "randaugment": None,
        "precision": "32-true",
    },
    "finetune-10pct": {
        "draws": 1,
        "epochs": 12,
        "resnet_epochs": 25,
        "warmup_epochs": 1,
        "lrs": (0.02,),
        "resnet_lrs": (0.5,),
        "drop_path": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "randaugment": None,
        "precision": "32-true",
    },
    "finetune": {
        "epochs": 4,
        "warmup_epochs": 1,
        "search_epochs": 1,
        "lrs": (0.02,),
        "layer_decays": (0.75,),
        "drop_paths": (0.0, 0.1),
        "mixup": 0.0,
        "cutmix": 0.0,
        "randaugment": None,
        "precision": "32-true",
    },
    "ood": {"against": ("digits",)},
    "robustness": {"views": 0, "seeds": 1},
    "robustness-finetune": {
        "epochs": 4,
        "warmup_epochs": 1,
        "lrs": (0.02,),
        "layer_decays": (0.75,),
        "drop_paths": (0.0,),
        "mixup": 0.0,
        "cutmix": 0.0,
        "randaugment": None,
        "precision": "32-true",
    },
    "segmentation-finetune": {"epochs": 12, "warmup_epochs": 1.0, "lrs": (0.01,), "drop_path": 0.0},
    "partial-finetune": {
        "depths": (0.0, 0.5, 1.0),
        "epochs": (4,),
        "warmup_epochs": 1,
        "lr": 0.05,
        "drop_path": 0.0,
        "mixup": 0.0,
        "cutmix": 0.0,
        "randaugment": None,
        "precision": "32-true",
    },
}
FLOOR = {
    "labels-1pct": 0.45,  # of accuracy: from one labelled image per class less can be learned
    "segmentation resnet": 0.3,  # whose map of these images has one place: half of the pixels at best
    "segmentation-knn resnet": 0.3,
    "segmentation-finetune resnet": 0.3,
}
VIT = BackboneOptions(name="vit_nano_patch4_32", img_size=8, patch_size=4, width=24, depth=1, num_heads=2)
RESNET = BackboneOptions(name="resnet18", img_size=8, timm_args={"channels": (16, 24, 32, 48)})
NAMES = registry.all_evaluations()
NEED_A_NETWORK = ("attentive", *(name for name in NAMES if "finetune" in name), "distill")  # raw pixels are none
LEARNING = [name for name in NAMES if name != "classifier"]  # which learns nothing: see test_classifier.py


def evaluation_class(name: str) -> type[Evaluation[Any]]:
    cls = registry.load(registry.find("evaluations", name))
    assert issubclass(cls, Evaluation)
    return cls


@pytest.fixture(params=LEARNING)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def protocol(name: str) -> Evaluation[Any]:
    return quick_one(name)


def quick_one(name: str) -> Evaluation[Any]:
    """An evaluation that takes moments."""
    cls = evaluation_class(name)
    quick = {option: value for option, value in QUICK.items() if option in inspect.signature(cls).parameters}
    return cls(**registry.preset_options(registry.find("evaluations", name)) | quick | QUICK_ALONE.get(name, {}))


@pytest.fixture
def splits(protocol: Evaluation[Any]) -> tuple[TrainSplit, ValidationSplit, TestSplit]:
    return coloured(protocol.needs == "masks")


@cache
def coloured(dense: bool) -> tuple[TrainSplit, ValidationSplit, TestSplit]:
    """Noisy images whose colour tells their class: what is learned can be seen.

    Where each pixel has a class (`dense`), the left and the right half of an image have one each.
    """
    rng = np.random.default_rng(0)
    labels = np.arange(90) % CLASSES
    masks = np.repeat(labels[:, None, None], 8, 1).repeat(8, 2).astype(np.uint8)
    masks[:, :, 4:] = ((labels + 1) % CLASSES)[:, None, None]
    bright = np.eye(CLASSES)[masks if dense else labels[:, None, None]].transpose(0, 3, 1, 2)  # one channel
    images = np.clip(60 + 120 * bright + 25 * rng.normal(size=(90, 3, 8, 8)), 0, 255)
    pools = [
        ResidentPool(
            images=torch.tensor(images[rows], dtype=torch.uint8),
            labels=None if dense else labels[rows],
            ids=[f"{name}/{i}" for i in range(n)],
            masks=ResidentMasks(values=torch.from_numpy(masks[rows])) if dense else None,
        )
        for name, rows, n in (("train", slice(0, 60), 60), ("test", slice(60, 90), 30))
    ]
    return (
        TrainSplit(pools[0], np.arange(45)),
        ValidationSplit(pools[0], np.arange(45, 60)),
        TestSplit(pools[1], np.arange(30)),
    )


def frozen(network: str = "vit", batch_size: int = 256) -> FeatureExtractor:
    torch.manual_seed(0)
    built = {"vit": lambda: Backbone(VIT), "resnet": lambda: Backbone(RESNET), "pixels": lambda: Pixels(8)}[network]()
    return FeatureExtractor(built, (0.5,) * 3, (0.25,) * 3, {}, batch_size=batch_size)


@dataclass(frozen=True)
class Fitted:
    """An evaluation's fit, made once for all tests that look at one; and the backbone's weights before and after."""

    backbone: FeatureExtractor
    fit: Fit[Any]
    predictions: list[Prediction] | Scored
    before: str
    after: str


@cache
def fitted(name: str, network: str) -> Fitted:
    protocol, backbone = quick_one(name), frozen(network)
    train, validation, test = coloured(protocol.needs == "masks")
    before = backbone.state_hash()
    fit = protocol.fit(backbone, train, validation)
    predictions = protocol.predict(backbone, fit, test.unlabelled())
    predictions = predictions if isinstance(predictions, Scored) else list(predictions)
    return Fitted(backbone, fit, predictions, before, backbone.state_hash())


def predicted(
    protocol: Evaluation[Any], backbone: FeatureExtractor, fit: Fit[Any], test: TestSplit
) -> dict[str, list[int]]:
    return by_variant(protocol.predict(backbone, fit, test.unlabelled()), test)


def by_variant(found: Iterable[Prediction] | Scored, test: TestSplit) -> dict[str, list[int]]:
    """What is said of each image, (..., N), by variant."""
    if isinstance(found, Scored):
        return {variant: statistic.sums.T.round(9).tolist() for variant, statistic in found.scores(test).items()}
    return {p.variant: p.labels.tolist() for p in found}


def test_every_evaluation_is_found() -> None:
    files = {file.stem.replace("_", "-") for file in registry.folder("evaluations").glob("[!_]*.py")}
    presets = {file.stem for file in (registry.folder("configs") / "evaluations").glob("*.yaml")}
    assert {"knn", "linear"} <= files and {"labels-1pct", "finetune-10pct"} <= presets
    assert set(registry.names("evaluations")) == files | presets
    assert set(NAMES) == files - {"labels", "finetune-labels"} | presets, "all: presets in their evaluations' place"


def test_raw_pixels_are_refused_where_a_network_is_needed(name: str, protocol: Evaluation[Any]) -> None:
    why = protocol.refusal(frozen("pixels"))
    assert (why is not None and "raw pixels" in why) == (name in NEED_A_NETWORK)
    assert protocol.refusal(frozen("vit")) is None and protocol.refusal(frozen("resnet")) is None


@pytest.mark.integration
def test_each_test_image_gets_a_class_from_each_variant(name: str, splits: Any) -> None:
    for network in ("vit", "resnet", *(() if name in NEED_A_NETWORK else ("pixels",))):
        found = fitted(name, network)
        backbone, fit, predictions = found.backbone, found.fit, found.predictions
        assert set(fit.features) <= set(backbone.feature_types)
        assert fit.chosen.keys() >= fit.grid.keys()
        if isinstance(predictions, Scored):
            check_scores(f"{name} {network}", predictions, splits[2])
            continue
        variants = [prediction.variant for prediction in predictions]
        assert len(set(variants)) == len(variants)
        assert predictions or fit.diagnostics
        assert all(np.isfinite(value) for value in fit.diagnostics.values())
        for prediction in predictions:
            assert prediction.labels.shape[-1] == 30 and prediction.labels.dtype == torch.int64
            assert prediction.labels.min() >= 0 and prediction.labels.max() < CLASSES
        if predictions:
            accuracy = (predictions[0].labels.numpy() == splits[2].labels).mean()
            floor = FLOOR.get(name, 0.7)
            assert accuracy > floor, f"{network}: even {accuracy:.0%} of these images is too little"


def check_scores(name: str, predictions: Scored, test: TestSplit) -> None:
    """A number in [0, 1] within its interval, whose mean part it is, and that says something on these images."""
    scores = predictions.scores(test)
    for statistic in scores.values():
        low, high = statistic.interval(draws=200)
        assert len(statistic.sums) == len(test) and 0 <= low <= statistic.value <= high <= 1
        assert statistic.parts().mean() == pytest.approx(statistic.value, abs=1e-6)
    assert all(np.isfinite(value) for value in predictions.diagnostics(test).values())
    assert all(np.isfinite(values).all() for values in predictions.curves(test).values())
    floor = FLOOR.get(name, 0.7)
    first = next(iter(scores.values())).value
    assert first > floor or name.startswith("ood "), "what features at random make of other images is anything"


def test_the_backbone_stays_as_it_was(name: str) -> None:
    found = fitted(name, "resnet")  # its batch norms would notice a pass in train mode
    assert found.after == found.before == frozen("resnet").state_hash()
    network = found.backbone.network
    assert not network.training and all(p.grad is None for p in network.parameters())


@pytest.mark.integration
def test_fitting_twice_gives_the_same(name: str, protocol: Evaluation[Any], splits: Any) -> None:
    once, second = by_variant(fitted(name, "vit").predictions, splits[2]), frozen()
    torch.manual_seed(1)  # whatever else drew random numbers
    fit = protocol.fit(second, *splits[:2])
    assert predicted(protocol, second, fit, splits[2]) == once
    assert predicted(protocol, second, fit, splits[2]) == once


@pytest.mark.integration
def test_predictions_do_not_depend_on_the_batch(name: str, protocol: Evaluation[Any], splits: Any) -> None:
    train, validation, test = splits
    at_once = fitted(name, "vit")  # batches of 256
    found = by_variant(at_once.predictions, test)
    for size in (1, 7):
        fit = protocol.fit(frozen(batch_size=size), train, validation)
        assert predicted(protocol, frozen(batch_size=size), fit, test) == found, size
    backbone, fit = frozen(), at_once.fit
    shuffled = np.random.default_rng(0).permutation(30)
    other = predicted(protocol, backbone, fit, TestSplit(test.pool, test.rows[shuffled]))
    if name == "retrieval":  # images are ranked among themselves
        assert all(np.array_equal(other[v], np.array(found[v])[..., shuffled]) for v in other)
        return
    alone = [predicted(protocol, backbone, fit, TestSplit(test.pool, test.rows[at : at + 1])) for at in range(30)]
    for variant, labels in found.items():
        found_labels = np.array(labels)  # (30,) or (R, 30)
        assert np.array_equal(other[variant], found_labels[..., shuffled])
        assert np.array_equal(np.concatenate([one[variant] for one in alone], -1), found_labels)


def test_options_are_kept_under_their_own_names(protocol: Evaluation[Any]) -> None:
    defaults = {name: p.default for name, p in inspect.signature(type(protocol)).parameters.items()}
    assert protocol.options().keys() == defaults.keys()
    assert type(protocol)(**protocol.options()).options() == protocol.options()


# --- no evaluation learns from, or chooses on, the test images


@pytest.mark.parametrize("name", NAMES)
def test_fit_has_no_parameter_for_test_images(name: str) -> None:
    hints = get_type_hints(evaluation_class(name).fit)
    hints.pop("return")
    assert list(hints.values()) == [FeatureExtractor, TrainSplit, ValidationSplit]
    signature = inspect.signature(evaluation_class(name).fit)
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in signature.parameters.values()), "nothing can be slipped in"


def test_the_three_splits_are_no_kinds_of_one_another() -> None:
    splits = (TrainSplit, ValidationSplit, TestSplit, TestImages)
    assert not any(issubclass(a, b) for a in splits for b in splits if a is not b)


@pytest.mark.parametrize("name", NAMES)
def test_predict_is_handed_no_labels(name: str) -> None:
    hints = get_type_hints(evaluation_class(name).predict)
    assert hints["test"] is TestImages


@pytest.mark.parametrize("name", ["knn"])
def test_test_images_have_no_labels_wherever_one_looks(splits: Any) -> None:
    hidden = splits[2].unlabelled()
    with pytest.raises(AttributeError, match="test images have no labels here: predict gives classes"):
        _ = hidden.labels
    with pytest.raises(AttributeError, match="no attribute 'label'"):
        _ = hidden.label
    assert hidden.pool.labels is None and splits[2].pool.labels is not None
    assert hidden.ids == splits[2].ids and hidden.pool.digest() == splits[2].pool.digest()
    assert pickle.loads(pickle.dumps(hidden)).ids == hidden.ids, "processes that decode are handed it, too"


@pytest.mark.integration
def test_fit_needs_no_test_image(
    name: str, protocol: Evaluation[Any], splits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of a pool that holds all of them, either: each row that is looked at is noted."""
    train, validation, test = splits
    pool = ResidentPool(
        images=torch.cat([train.pool.images, test.pool.images]),
        labels=None if train.pool.masks else np.concatenate([train.pool.labels, test.pool.labels]),
        ids=train.pool.ids + test.pool.ids,
        masks=train.pool.masks and ResidentMasks(values=torch.cat([train.pool.masks.values, test.pool.masks.values])),
    )
    asked: set[int] = set()

    class Spied(torch.Tensor):
        """Images that note which of them are looked at."""

        def __getitem__(self, rows: Any) -> Any:
            asked.update(np.arange(len(pool))[np.asarray(rows)].flatten().tolist())
            return self.as_subclass(torch.Tensor)[rows]

    watched = replace(pool, images=pool.images.as_subclass(Spied))
    protocol.fit(frozen(), TrainSplit(watched, train.rows), ValidationSplit(watched, validation.rows))
    assert bool(asked) == (name != "retrieval"), "which learns nothing unless whitening is asked for"
    assert max(asked, default=0) < 60, "the test images are the last 30"
