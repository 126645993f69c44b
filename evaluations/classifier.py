"""Classifier: the accuracy of the classifier that a run trained itself, from labels or from a run that had them.

Nothing is trained and nothing is chosen: fine-tuning and distillation (`simclrv2-finetune`, `simclrv2-distill`) leave
their classifier beside the backbone, and this counts how often it is right. Other runs have none and are left out.

Shapes: N images, D features, K classes.
"""

from typing import final

import torch

from ssl_bench.data.splits import TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.runtime.precision import full_precision

ROWS = 8192  # at a time


@final
class Classifier(Evaluation[None]):
    """Accuracy of the classifier that was trained with the backbone."""

    def __init__(self) -> None:
        pass

    def refusal(self, backbone: FeatureExtractor) -> str | None:
        if backbone.classifier is not None:
            return None
        return "this network has no classifier for these images; simclrv2-finetune --init trains one"

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[None]:
        refusal = self.refusal(backbone)
        if refusal is not None:
            raise UserError(f"--protocols classifier: {refusal}")
        return Fit(None, features=(backbone.primary_feature_type,))

    def predict(self, backbone: FeatureExtractor, fit: Fit[None], test: TestImages) -> list[Prediction]:
        assert backbone.classifier is not None
        parts = []
        for at in range(0, len(test), ROWS):
            features = backbone.features(test, backbone.primary_feature_type, slice(at, at + ROWS))  # (N, D)
            with full_precision():
                parts.append(backbone.classifier(features).argmax(1).cpu())
        return [Prediction("own", torch.cat(parts))]
