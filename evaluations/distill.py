"""Distillation: the accuracy of a student of this network, which is fine-tuned on few labels first.

SimCLRv2's third stage: Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020
(https://arxiv.org/abs/2006.10029), open to every method, so that a comparison gives none two more stages than others.

1. Teacher: the backbone, fine-tuned on a fraction of the labels as finetune-1pct and finetune-10pct do it.
2. Student: trained on all images, (1 - alpha) x cross entropy with the labels there are + alpha x cross entropy of its
   softmax with the teacher's, both at a temperature. Crops and flips alone; the teacher, in eval mode, sees the same
   crop.

The student predicts the test images. The same network starts from the pretrained weights, at temperature 0.1
(self-distillation); another one starts from nothing, at temperature 1, as in the paper.

Ours, and why:
- AdamW for all networks, with layer-wise rates for the pretrained student, not LARS: one recipe for ViTs and ResNets.
- The loss is the paper's formula; its notebook multiplies by the temperature squared, which AdamW would not notice.
- The teacher's rate is chosen by cross-validation inside its labels; the student's is fixed. Nothing else is chosen, so
  the validation images are among the unlabelled ones, as in labels-1pct and labels-10pct.
- The teacher starts from the encoder, for every method. Or it is another run that has a classifier (`teacher`), as the
  paper's small students have a larger one; the network that is evaluated is then the student alone.

Shapes: B images of a batch, N images, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from ssl_bench.config.constraints import (
    FineTunePrecision,
    Fraction,
    NonNegativeFloat,
    PathText,
    PositiveFloat,
    PositiveInt,
    Range,
    Rates,
    Seed,
    UnitInterval,
)
from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.splits import LabelledSplit, TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.label_subsets import concatenated_labels, labelled_subsets
from ssl_bench.finetuning.cross_validation import (
    LabelledSubset,
    choose_recipe,
    crops_only_recipe,
    fine_tune,
)
from ssl_bench.finetuning.images import Batch, Batches, drawing
from ssl_bench.finetuning.model import FineTuneModel, Recipe
from ssl_bench.finetuning.training import autocast, cross_entropy, logits_of, tune
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import load_classifier
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.runtime.seeds import derive


@dataclass(frozen=True)
class Pair:
    """Who teaches and who has learned."""

    teacher: nn.Module
    student: FineTuneModel


@final
class Recorded(nn.Module):
    """The network of a run with its own classifier, given images as another network sees them.

    Args:
        folder: Of the run.
        classes: K.
        beside: The network whose images it is given.

    Raises:
        UserError: There is no such run, it has no classifier of so many classes, or sees images of another size.
    """

    def __init__(self, folder: Path, classes: int, beside: FeatureExtractor) -> None:
        super().__init__()
        option = f"--distill.teacher {folder}"
        self.backbone, mean, std = load_backbone(folder)
        classifier = load_classifier(folder)
        if classifier is None:
            raise UserError(f"{option}: that run has no classifier; simclrv2-finetune --init trains one")
        if classifier.spec["classes"] != classes:
            raise UserError(f"{option}: its classifier tells {classifier.spec['classes']} classes apart, not {classes}")
        if self.backbone.img_size != beside.img_size:
            raise UserError(f"{option}: it sees {self.backbone.img_size} pixels, the student {beside.img_size}")
        self.classifier, self.feature_type = classifier, self.backbone.primary_feature_type
        ratio = torch.tensor(beside.std) / torch.tensor(std)
        offset = (torch.tensor(beside.mean) - torch.tensor(mean)) / torch.tensor(std)
        self.register_buffer("ratio", ratio.view(3, 1, 1))
        self.register_buffer("offset", offset.view(3, 1, 1))
        self.to(beside.device).requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, s, s) normalised images -> (B, K) logits."""
        images = images * self.get_buffer("ratio") + self.get_buffer("offset")
        logits: Tensor = self.classifier(self.backbone.features(images, (self.feature_type,))[self.feature_type])
        return logits


@final
class Distill(Evaluation[Pair]):
    """A student learns from all images what this backbone, fine-tuned on a fraction of the labels, says of them.

    Args:
        fraction: Of the labels that the teacher, and the part of the loss with labels, see.
        subset: File that names the labelled images; for ImageNet 1percent.txt or 10percent.txt as published. They are
            drawn when not given.
        teacher: Folder of a run with a classifier (of simclrv2-finetune, say) that teaches, its classes in the order of
            these images'; this backbone, fine-tuned, when not given.
        student: Any backbone by name, which starts from nothing; this backbone from its pretrained weights when not
            given.
        temperature: Of both softmaxes; when not given, 0.1 for the same network as the teacher's and 1 for another.
        alpha: Weight of the teacher; the rest is cross entropy with the labels.
        epochs: Passes of the student over all images.
        warmup_epochs: Of them, with a growing rate.
        batch_size: Images per step, of student and teacher.
        lr: Of the student, for 256 images.
        layer_decay: Of a pretrained student that is no ResNet; others have one rate.
        weight_decay: Of the student.
        teacher_epochs: Passes over the labelled images.
        teacher_warmup_epochs: Of them, with a growing rate; ResNets have none.
        teacher_lrs: Rates of the teacher to choose from, for 256 images.
        teacher_resnet_lrs: The same where it is a ResNet, which SGD trains.
        folds: Of the cross-validation that chooses.
        precision: auto (bf16-mixed where the hardware has it), bf16-mixed or 32-true.
        seed: Of all that is random.
    """

    trains: ClassVar[bool] = True

    def __init__(
        self,
        fraction: Fraction = 0.1,
        subset: PathText | None = None,
        teacher: PathText | None = None,
        student: PathText | None = None,
        temperature: PositiveFloat | None = None,
        alpha: UnitInterval = 1.0,
        epochs: PositiveInt = 400,
        warmup_epochs: NonNegativeFloat = 20.0,
        batch_size: PositiveInt = 1024,
        lr: PositiveFloat = 5e-4,
        layer_decay: Fraction = 0.75,
        weight_decay: NonNegativeFloat = 0.05,
        teacher_epochs: PositiveInt = 100,
        teacher_warmup_epochs: NonNegativeFloat = 5.0,
        teacher_lrs: Rates = (5e-4, 1e-3),
        teacher_resnet_lrs: Rates = (0.005, 0.01, 0.02, 0.05, 0.1),
        folds: Annotated[int, Range(min=2, max=1000)] = 5,
        precision: FineTunePrecision = "auto",
        seed: Seed = 0,
    ) -> None:
        if not 0 < fraction <= 1 or not 0 <= alpha <= 1:
            raise ValueError(f"fraction {fraction} must be in (0, 1] and alpha {alpha} in [0, 1]")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature {temperature} must be above 0")
        if not teacher_lrs or not teacher_resnet_lrs or folds < 2:
            raise ValueError(f"each kind of teacher_lrs needs a value, and folds must be at least 2, not {folds}")
        self.fraction = fraction
        self.subset = subset
        self.teacher = teacher
        self.student = student
        self.temperature = temperature
        self.alpha = alpha
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.batch_size = batch_size
        self.lr = lr
        self.layer_decay = layer_decay
        self.weight_decay = weight_decay
        self.teacher_epochs = teacher_epochs
        self.teacher_warmup_epochs = teacher_warmup_epochs
        self.teacher_lrs = teacher_lrs
        self.teacher_resnet_lrs = teacher_resnet_lrs
        self.folds = folds
        self.precision = precision
        self.seed = seed
        self._recipe(pretrained=True)
        self._teachers(resnet=False), self._teachers(resnet=True)

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Pair]:
        assert train.pool is validation.pool, "one pool holds both"
        splits = train, validation
        everyone, labels = np.concatenate([split.rows for split in splits]), concatenated_labels(splits)
        classes = int(labels.max()) + 1
        if self.teacher is not None and self.alpha == 1:
            known = np.arange(0)  # nobody learns from labels here
        else:
            known = self._labelled(splits)
        subset = LabelledSubset(train, everyone[known], classes)
        recipes = self._teachers(backbone.network.is_resnet)
        recipe, accuracies, taken = recipes[0], list[float](), dict[str, list[float]]()
        teacher: nn.Module
        feature_types: tuple[str, ...] = ()
        if self.teacher is not None:
            teacher = Recorded(Path(self.teacher), classes, backbone)
        else:
            seed = derive(self.seed, 0, 1)
            recipe, accuracies = choose_recipe(recipes, backbone, subset, "encoder", self.folds, seed)
            teacher, taken = fine_tune(recipe, backbone, subset.train(), classes, "encoder")
            feature_types = tuple(
                feature_type for feature_type in (teacher.feature_type,) if feature_type in backbone.feature_types
            )
        student = FineTuneModel(self._student(backbone), classes, "avg", 0.0, self.seed)
        own = self._recipe(pretrained=self.student is None and not backbone.network.is_resnet)
        mask = np.isin(np.arange(len(everyone)), known)
        batches = Batches(TrainSplit(train.pool, everyone), own, classes, backbone, mask)
        temperature = self.temperature or (0.1 if self.student is None and self.teacher is None else 1.0)

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            with torch.no_grad(), autocast(own, backbone.device):
                wanted = teacher(batch.images).float()
            imitated = imitation(logits, wanted, temperature)
            return (1 - self.alpha) * cross_entropy(logits, batch) + self.alpha * imitated

        curve = {f"teacher {name}": series for name, series in taken.items()}
        curve |= tune(student, batches, own, loss=loss, what="distillation")
        if not accuracies:
            return Fit(Pair(teacher, student), feature_types, curve=curve)
        grid = [r.lr for r in recipes]
        edge = recipe.lr in (min(grid), max(grid))
        curve["teacher accuracy"] = accuracies
        chosen = {"teacher lr": recipe.lr}
        return Fit(Pair(teacher, student), feature_types, chosen, {"teacher lr": grid}, edge, curve, chosen_on="train")

    def predict(self, backbone: FeatureExtractor, fit: Fit[Pair], test: TestImages) -> list[Prediction]:
        models = {"student": fit.state.student, "teacher": fit.state.teacher}
        return [Prediction(name, logits_of(model, backbone, test).argmax(1)) for name, model in models.items()]

    def _labelled(self, splits: Sequence[LabelledSplit]) -> np.ndarray:
        """(n,) rising rows, among the images of all splits, of the labelled ones."""
        if self.fraction == 1 and self.subset is None:
            return np.arange(sum(map(len, splits)))
        return labelled_subsets(splits, self.fraction, self.subset, [derive(self.seed, 0)])[0]

    def _student(self, backbone: FeatureExtractor) -> Backbone:
        if self.student is None:
            return backbone.trainable()
        with drawing(derive(self.seed)):
            built = Backbone(BackboneOptions(name=self.student, img_size=backbone.img_size))
        return built.to(backbone.device)

    def _recipe(self, pretrained: bool) -> Recipe:
        """The student's."""
        return replace(
            crops_only_recipe(self.epochs, self.batch_size, self.precision, self.seed),
            warmup_epochs=self.warmup_epochs,
            optimizer="adamw",
            lr=self.lr,
            layer_decay=self.layer_decay if pretrained else 1.0,
            weight_decay=self.weight_decay,
        )

    def _teachers(self, resnet: bool) -> list[Recipe]:
        """One for each rate."""
        batch_size = min(self.batch_size, 256)
        light = crops_only_recipe(self.teacher_epochs, batch_size, self.precision, self.seed)
        if resnet:
            return [replace(light, lr=lr) for lr in self.teacher_resnet_lrs]
        full = Recipe(
            self.teacher_epochs,
            self.teacher_warmup_epochs,
            batch_size,
            layer_decay=0.75,
            precision=self.precision,
            seed=self.seed,
        )
        return [replace(full, lr=lr) for lr in self.teacher_lrs]


def imitation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over images of the cross entropy of both (B, K) logits' softmaxes at a temperature."""
    wanted = (teacher / temperature).softmax(1)
    return -(wanted * (student / temperature).log_softmax(1)).sum(1).mean()
