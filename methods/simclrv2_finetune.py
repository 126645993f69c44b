"""SimCLRv2's second stage: the whole network fine-tuned on few labels, from the head's first layer on.

Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020.
Paper: https://arxiv.org/abs/2006.10029. Reference code: https://github.com/google-research/simclr (tf2/).

`ssl-bench fit --method simclrv2-finetune --init RUN --data.label_fraction 0.01`, where RUN is a simclrv2 run's folder.
Another method's run does as well, from its features (`--method.head_layers 0`), and none: the supervised baseline.

Shapes: B images per device, H x W pixels, D backbone features, K classes.

Everything learns, batch norms included. As in the code LARS does not scale the classifier's steps, and the classifier's
weight decay, if there is any, is in the loss; it starts at 0. Views are crops and flips alone.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import torch.nn.functional as F
from torch import Tensor

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import Fraction, Range
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import Classifier
from ssl_bench.pretraining.ema_teacher import evaluated_backbone
from ssl_bench.pretraining.method import Method


class SimCLRv2Finetune(Method):
    """Second stage: backbone, first layer of the projection head and a linear classifier, on labelled images.

    Args:
        backbone: The network of the run it starts from.
        classes: K.
        head_layers: Layers of the projection head that are kept below the classifier; 0 to start from the features.
        crop_scale: Smallest part of the image's area in a view.
        standardize: Subtract the data's mean and divide by its deviation; as in the run it starts from.
        optim: LARS with the rate inside the momentum, 0.005 x sqrt(images per step), 0.002 for wider
            networks and selective kernels, neither decay nor warm-up.
    """

    kind = "later stage"

    needs_labels = True
    no_weight_decay = ("head.linear.weight",)

    def __init__(
        self,
        backbone: Backbone,
        classes: int,
        head_layers: Annotated[int, Range(min=0, max=100)] = 1,
        crop_scale: Fraction = 0.08,
        standardize: bool = False,
        optim: Optim = Optim("lars_tf", base_lr=0.005, scaling="sqrt", weight_decay=0.0, warmup_epochs=0),
    ) -> None:
        super().__init__(backbone, optim)
        if head_layers < 0:
            raise UserError(f"--method.head_layers {head_layers}: 0 or more, and fewer than the projection head has")
        self.crop_scale, self.standardize = crop_scale, standardize
        self.head = Classifier(backbone.dim, classes, head_layers)

    def views(self) -> Views:
        return [View(self.backbone.img_size, scale=(self.crop_scale, 1.0))]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Cross-entropy with the (B,) ``labels``."""
        logits = self.head(self.backbone(views[0])).float()  # (B, K)
        decay = self.optim.weight_decay * self.head.linear.weight.float().square().sum() / 2
        return F.cross_entropy(logits, drawn["labels"]) + decay

    @property
    def evaluated_classifier(self) -> Classifier:
        return self.head

    def starting_weights(self, earlier: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Backbone and first head layers, running statistics included, and a fresh classifier.

        Raises:
            UserError: The earlier run has no such layers.
        """
        if "head.linear.weight" in earlier:  # of this very stage, or a distilled student, whose teacher stays behind
            return {name: value for name, value in earlier.items() if not name.startswith("teacher.")}
        kept = len(self.head.hidden)
        weights = evaluated_backbone(earlier)
        for name in self.head.hidden.state_dict():
            if f"head.{name}" not in earlier or f"head.{kept}.weight" not in earlier:
                deeper = "--method.head_layers 0 starts from the backbone's features"
                raise UserError(f"--init: that run has no projection head of more than {kept // 3} layers: {deeper}")
            weights[f"head.hidden.{name}"] = earlier[f"head.{name}"]
        return weights | {f"head.linear.{name}": value for name, value in self.head.linear.state_dict().items()}
