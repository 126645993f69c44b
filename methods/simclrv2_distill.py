"""SimCLRv2's third stage: a network learns the predictions of a fine-tuned one for unlabelled images.

Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020.
Paper: https://arxiv.org/abs/2006.10029. Reference code: https://github.com/google-research/simclr (colabs/
distillation_self_training.ipynb).

`ssl-bench fit --method simclrv2-distill --method.teacher RUN --backbone resnet50`, where RUN is the folder of a
simclrv2-finetune run, or of a distilled one. The student starts from random weights; `--init RUN` starts it elsewhere.

Shapes: B images per device, H x W pixels, D backbone features, K classes.

The loss is the notebook's, times temperature squared; the paper's formula, without, is an option. Views are crops and
flips alone. EMATeacher and student see the same view; the teacher's is normalised as its own training had it.
LARS scales and decays the classifier as every layer: plain steps at pretraining's rate make it diverge.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import Fraction, PathText, PositiveFloat, Range, UnitInterval
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import Classifier, load_classifier
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.pretraining.ema_teacher import evaluated_backbone
from ssl_bench.pretraining.method import Method


class SimCLRv2Distill(Method):
    """Third stage: cross-entropy with a frozen teacher's softened predictions.

    Args:
        backbone: The student; the teacher's network or a smaller one.
        teacher: Folder of the run whose network and classifier are imitated.
        temperature: Of both softmaxes; the paper has 1.0 for a smaller student and 0.1 for one like the teacher.
        squared: Multiply by the temperature squared, which keeps gradients of one size (the notebook); or not (paper).
        alpha: Weight of the teacher; the rest is cross-entropy with the labels of `--data.label_fraction`.
        head_layers: Hidden layers of the student's classifier; the paper's students have none.
        crop_scale: Smallest part of the image's area in a view.
        optim: As in pretraining: LARS with the rate inside the momentum, 0.1 x sqrt(images per step), 5 % of warm-up.
    """

    kind = "later stage"

    standardize = False
    unlabelled_too = True

    def __init__(
        self,
        backbone: Backbone,
        teacher: PathText = "",
        temperature: PositiveFloat = 1.0,
        squared: bool = True,
        alpha: UnitInterval = 1.0,
        head_layers: Annotated[int, Range(min=0, max=100)] = 0,
        crop_scale: Fraction = 0.08,
        optim: Optim = Optim("lars_tf", base_lr=0.1, scaling="sqrt", weight_decay=1e-4, warmup_epochs=20),
    ) -> None:
        super().__init__(backbone, optim)
        if not teacher:
            raise UserError("simclrv2-distill needs --method.teacher RUN, the folder of a simclrv2-finetune run")
        if not temperature > 0 or not 0 <= alpha <= 1 or head_layers < 0:
            raise UserError("--method.temperature must be above 0, alpha within 0 and 1, head_layers 0 or more")
        self.temperature, self.squared, self.alpha, self.crop_scale = temperature, squared, alpha, crop_scale
        self.needs_labels = alpha < 1
        self.teacher = Frozen(Path(teacher))
        known = self.teacher.classifier
        self.head = Classifier(backbone.dim, known.linear.out_features, head_layers, known.names)
        nn.init.normal_(self.head.linear.weight, std=0.01)  # at 0 LARS's step would be unscaled

    def views(self) -> Views:
        return [View(self.backbone.img_size, scale=(self.crop_scale, 1.0))]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """The teacher's part; of (B,) ``labels``, the mean over those that are not -1."""
        images = views[0]
        logits = self.head(self.backbone(images)).float()  # (B, K)
        loss = self.alpha * self.imitation(logits, self.teacher(images).float())
        if self.needs_labels:
            labels = drawn["labels"]
            supervised = F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
            loss = loss + (1 - self.alpha) * supervised / (labels >= 0).sum().clamp(min=1)
        return loss

    def imitation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean over images of the cross-entropy of both (B, K) logits' softmaxes."""
        wanted = (teacher / self.temperature).softmax(1)
        loss = -(wanted * (student / self.temperature).log_softmax(1)).sum(1).mean()
        return loss * self.temperature**2 if self.squared else loss

    @property
    def evaluated_classifier(self) -> Classifier:
        return self.head

    def starting_weights(self, earlier: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The backbone's, and of a classifier like this one's (self-distillation) its own; the teacher stays."""
        own = self.state_dict()
        weights = evaluated_backbone(earlier)
        head = {name: value for name, value in own.items() if name.startswith("head.")}
        theirs = {name: value for name, value in earlier.items() if name.startswith("head.")}
        alike = {n: v.shape for n, v in head.items()} == {n: v.shape for n, v in theirs.items()}
        weights |= theirs if alike else head
        return weights | {name: value for name, value in own.items() if name.startswith("teacher.")}


@final
class Frozen(nn.Module):
    """A run's network and classifier, which run in evaluation mode whatever mode they are in.

    Args:
        run: Its folder.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.backbone, *statistics = load_backbone(run)
        classifier = load_classifier(run)
        if classifier is None:
            raise UserError(f"--method.teacher {run} has no classifier: fine-tune it first (simclrv2-finetune --init)")
        self.classifier = classifier
        for name, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K)."""
        self.eval()  # the trainer has called train(), but its batch norms keep their statistics
        logits: Tensor = self.classifier(self.backbone((images - self.mean) / self.std))
        return logits
