"""Distillation: the loss against a loop, who teaches, who learns, and from what."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.evaluations import distill as page
from ssl_bench.evaluations.distill import Distill, imitation
from ssl_bench.finetuning.images import Batch, Batches
from ssl_bench.finetuning.model import FineTuneModel, Recipe
from ssl_bench.finetuning.training import cross_entropy, logits_of
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import Classifier, save_classifier
from ssl_bench.models.saved_backbone import write_backbone

VIT = BackboneOptions("vit_nano_patch4_32", img_size=8, patch_size=4, width=16, depth=2, num_heads=2)
RESNET = BackboneOptions("resnet18", img_size=8, timm_args={"channels": (4, 6, 8, 8)})
Splits = tuple[TrainSplit, ValidationSplit, TestSplit]


def frozen(options: BackboneOptions = VIT) -> FeatureExtractor:
    torch.manual_seed(0)
    return FeatureExtractor(Backbone(options), (0.5,) * 3, (0.25,) * 3, {}, num_workers=0)


@pytest.fixture
def splits() -> Splits:
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = np.clip(30 + 90 * labels[:, None, None, None] + 20 * rng.normal(size=(90, 3, 8, 8)), 0, 255)
    pools = [
        ResidentPool(images=torch.tensor(images[r], dtype=torch.uint8), labels=labels[r], ids=[str(i) for i in r])
        for r in (np.arange(60), np.arange(60, 90))
    ]
    return (
        TrainSplit(pools[0], np.arange(0, 60, 2)),
        ValidationSplit(pools[0], np.arange(1, 60, 2)),
        TestSplit(pools[1], np.arange(30)),
    )


class Caught:
    """The student's training: what it was given."""

    student: FineTuneModel
    batches: Batches
    recipe: Recipe
    loss: Any

    def __call__(
        self, model: FineTuneModel, batches: Batches, recipe: Recipe, loss: Any, **_: Any
    ) -> dict[str, list[float]]:
        self.student, self.batches, self.recipe, self.loss = model, batches, recipe, loss
        return {"epoch": [1.0], "loss": [0.0]}


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> Caught:
    catch = Caught()
    monkeypatch.setattr(page, "tune", catch)
    return catch


QUICK: dict[str, Any] = {
    "fraction": 0.3,
    "teacher_epochs": 2,
    "teacher_warmup_epochs": 1,
    "teacher_lrs": (0.02,),
    "teacher_resnet_lrs": (0.1,),
    "precision": "32-true",
}


@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_imitation_is_the_papers_sum(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))

    def softmax(logits: Tensor) -> list[float]:
        powers = [math.exp(float(value) / temperature) for value in logits]
        return [power / sum(powers) for power in powers]

    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        total -= sum(p * math.log(q) for p, q in zip(softmax(t), softmax(s), strict=True))
    assert float(imitation(student, teacher, temperature)) == pytest.approx(total / 4, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_loss_mixes_labels_and_teacher(alpha: float, caught: Caught, splits: Splits) -> None:
    fit = Distill(alpha=alpha, temperature=0.7, **QUICK).fit(frozen(), *splits[:2])
    generator = torch.Generator().manual_seed(0)
    images, logits = torch.randn(4, 3, 8, 8, generator=generator), torch.randn(4, 3, generator=generator)
    targets = torch.tensor([[0, 1.0, 0], [0, 0, 0], [0, 0, 0], [1.0, 0, 0]])
    teacher = fit.state.teacher
    assert not teacher.training
    with torch.no_grad():
        wanted = (teacher(images) / 0.7).softmax(1)
    labels = -(logits.log_softmax(1)[0, 1] + logits.log_softmax(1)[3, 0]) / 2
    expected = (1 - alpha) * labels - alpha * (wanted * (logits / 0.7).log_softmax(1)).sum(1).mean()
    found = caught.loss(logits.requires_grad_(), Batch(images, targets))
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-5)
    found.backward()
    assert logits.grad is not None and all(p.grad is None for p in teacher.parameters())
    assert float(cross_entropy(logits, Batch(images, targets)).detach()) == pytest.approx(float(labels), rel=1e-5)


def test_student_sees_all_images_and_few_labels_crops_and_flips_alone(caught: Caught, splits: Splits) -> None:
    Distill(**QUICK).fit(frozen(), *splits[:2])
    prepared, recipe = caught.batches._prepared, caught.recipe
    assert sorted(prepared.rows.tolist()) == list(range(60))
    known = prepared.labels >= 0
    assert int(known.sum()) == 18  # 0.3 of twenty of each of three classes
    pool_labels = splits[0].pool.labels
    assert pool_labels is not None
    assert prepared.labels[known].tolist() == pool_labels[prepared.rows[known]].tolist()
    assert prepared.labels[known].bincount().tolist() == [6, 6, 6]
    assert recipe.scale == (0.08, 1.0) and recipe.flip == 0.5 and recipe.randaugment is None
    assert recipe.mixup == recipe.cutmix == recipe.smoothing == recipe.erase == recipe.drop_path == 0
    assert (recipe.epochs, recipe.warmup_epochs, recipe.optimizer) == (400, 20, "adamw")


def test_teacher_learns_from_the_labelled_images_alone(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    original = page.fine_tune

    def spy(recipe: Recipe, backbone: FeatureExtractor, train: TrainSplit, *rest: Any) -> Any:
        seen.append(sorted(train.rows.tolist()))
        return original(recipe, backbone, train, *rest)

    monkeypatch.setattr(page, "fine_tune", spy)
    caught = Caught()
    monkeypatch.setattr(page, "tune", caught)
    Distill(**QUICK).fit(frozen(), *splits[:2])
    prepared = caught.batches._prepared
    assert seen == [sorted(prepared.rows[prepared.labels >= 0].tolist())]


def test_same_network_starts_pretrained_another_from_nothing(caught: Caught, splits: Splits) -> None:
    backbone = frozen()
    fit = Distill(**QUICK).fit(backbone, *splits[:2])
    assert isinstance(backbone.network, Backbone)
    own = backbone.network.model.state_dict()
    started = caught.student.backbone.model.state_dict()
    assert all(started[name].equal(tensor) for name, tensor in own.items() if not name.startswith("norm."))
    assert caught.recipe.layer_decay == 0.75 and fit.state.student is caught.student
    assert not fit.state.teacher.backbone.model.get_parameter("pos_embed").equal(own["pos_embed"])  # it has learned
    Distill(student="vit_pico_patch4_32", **QUICK).fit(backbone, *splits[:2])
    assert caught.student.backbone.options.name == "vit_pico_patch4_32" and caught.student.backbone.img_size == 8
    assert caught.recipe.layer_decay == 1
    first = caught.student.backbone.model.get_parameter("pos_embed").clone()
    torch.randn(3)
    Distill(student="vit_pico_patch4_32", **QUICK).fit(backbone, *splits[:2])
    assert caught.student.backbone.model.get_parameter("pos_embed").equal(first)
    Distill(student="resnet18", **QUICK).fit(backbone, *splits[:2])
    assert caught.student.backbone.is_resnet
    Distill(**QUICK).fit(frozen(RESNET), *splits[:2])
    assert caught.recipe.layer_decay == 1


@pytest.mark.parametrize(("student", "temperature"), [(None, 0.1), ("vit_pico_patch4_32", 1.0)])
def test_temperature_is_the_papers(student: str | None, temperature: float, caught: Caught, splits: Splits) -> None:
    fit = Distill(student=student, **QUICK).fit(frozen(), *splits[:2])
    images, logits = torch.randn(2, 3, 8, 8), torch.randn(2, 3)
    with torch.no_grad():
        expected = imitation(logits, fit.state.teacher(images), temperature)
    assert float(caught.loss(logits, Batch(images, torch.zeros(2, 3)))) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("alpha", [1.0, 0.5])
def test_student_learns_what_the_teacher_knows(alpha: float, splits: Splits) -> None:
    options = {**QUICK, "teacher_epochs": 25, "epochs": 10, "warmup_epochs": 1, "batch_size": 16, "lr": 0.02}
    protocol = Distill(alpha=alpha, student="vit_pico_patch4_32", **options)
    backbone = frozen()
    fit = protocol.fit(backbone, *splits[:2])
    student, teacher = protocol.predict(backbone, fit, splits[2])
    assert (student.variant, teacher.variant) == ("student", "teacher")
    assert (student.labels == teacher.labels).double().mean() > 0.8
    assert (student.labels.numpy() == splits[2].labels).mean() > 0.8
    assert {"epoch", "loss", "teacher epoch", "teacher loss"} <= set(fit.curve)


@pytest.mark.integration
def test_teachers_rate_is_chosen_inside_its_labels(caught: Caught, splits: Splits) -> None:
    options = {**QUICK, "teacher_lrs": (1e-6, 0.02, 1e20), "teacher_epochs": 12}
    fit = Distill(**options).fit(frozen(), *splits[:2])
    assert (
        fit.chosen == {"teacher lr": 0.02}
        and fit.grid == {"teacher lr": [1e-6, 0.02, 1e20]}
        and not fit.at_grid_boundary
    )
    assert (
        max(fit.curve["teacher accuracy"]) == fit.curve["teacher accuracy"][1]
        and len(fit.curve["teacher accuracy"]) == 3
    )


def test_all_labels(caught: Caught, splits: Splits) -> None:
    Distill(**{**QUICK, "fraction": 1.0}).fit(frozen(), *splits[:2])
    assert (caught.batches._prepared.labels >= 0).all()


def taught_by(folder: Path, options: BackboneOptions = RESNET, classes: int = 3) -> FeatureExtractor:
    """Write a run with a classifier; the same network, frozen, with its own constants of normalisation."""
    torch.manual_seed(3)
    backbone, classifier = Backbone(options), Classifier(8, classes, 1)
    torch.nn.init.normal_(classifier.linear.weight)
    folder.mkdir()
    write_backbone(folder, backbone, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    save_classifier(folder, classifier, tuple("abcdef"[:classes]))
    return FeatureExtractor(backbone, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), {}, num_workers=0, classifier=classifier)


def test_a_run_with_a_classifier_teaches(
    caught: Caught, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says of images what the run itself says, although the student's are normalised otherwise; nothing is tuned."""
    own = taught_by(tmp_path / "run")
    monkeypatch.setattr(page, "fine_tune", None)
    monkeypatch.setattr(page, "choose_recipe", None)
    backbone = frozen()
    fit = Distill(teacher=str(tmp_path / "run"), **QUICK).fit(backbone, *splits[:2])
    assert own.classifier is not None and fit.chosen == {} and not fit.at_grid_boundary
    with torch.no_grad():
        expected = own.classifier(own.features(splits[2], "gap"))
    found = logits_of(fit.state.teacher, backbone, splits[2])
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.01)  # those features are kept in float16
    assert caught.student.backbone.options.name == VIT.name and not fit.state.teacher.training
    start = backbone.trainable().model.get_parameter("pos_embed")
    assert caught.student.backbone.model.get_parameter("pos_embed").equal(start), "the student starts pretrained"
    assert (caught.batches._prepared.labels < 0).all(), "nobody learns from labels"
    images, logits = torch.randn(4, 3, 8, 8), torch.randn(4, 3)
    wanted = imitation(logits, fit.state.teacher(images), 1.0)
    assert float(caught.loss(logits, Batch(images, torch.zeros(4, 3)))) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "classes", "says"),
    [(RESNET, 5, "tells 5 classes apart, not 3"), (replace(RESNET, img_size=16), 3, "sees 16 pixels, the student 8")],
)
def test_a_teacher_that_does_not_fit(
    options: BackboneOptions, classes: int, says: str, splits: Splits, tmp_path: Path
) -> None:
    taught_by(tmp_path / "run", options, classes)
    with pytest.raises(UserError, match=f"--distill.teacher .*{says}"):
        Distill(teacher=str(tmp_path / "run"), **QUICK).fit(frozen(), *splits[:2])
    (tmp_path / "run" / "classifier.json").unlink()
    with pytest.raises(UserError, match="that run has no classifier; simclrv2-finetune"):
        Distill(teacher=str(tmp_path / "run"), **QUICK).fit(frozen(), *splits[:2])


def test_pixels_are_refused() -> None:
    pixels = FeatureExtractor(Pixels(8), (0.5,) * 3, (0.5,) * 3, {})
    assert Distill().refusal(pixels) == "raw pixels have no network to train" and Distill().refusal(frozen()) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"fraction": 0.0},
        {"alpha": 1.1},
        {"temperature": 0.0},
        {"teacher_lrs": ()},
        {"folds": 1},
        {"warmup_epochs": 400.0},
    ],
)
def test_impossible_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be|needs"):
        Distill(**wrong)
