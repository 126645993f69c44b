"""Accuracy on corrupted copies of the test images: what the evaluations of robustness share.

Shapes: B images of a batch, 3 x s x s pixels, N test images, K classes.
"""

from abc import abstractmethod
from itertools import chain
from typing import TypeVar, final

import torch
from torch import Tensor

from ssl_bench.data.splits import TestImages
from ssl_bench.evaluation.corruptions import CORRUPTIONS, SEVERITIES, corrupted, image_seeds
from ssl_bench.evaluation.cost import Cost, progress
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.runtime.distributed import all_reduce_sum
from ssl_bench.runtime.precision import full_precision

Fitted = TypeVar("Fitted")


def needs_colours(backbone: FeatureExtractor) -> str | None:
    """Why corruptions, which are of colours, cannot be made of these images; None where they can."""
    return (
        None
        if backbone.channels == 3
        else f"corruptions are of RGB images, and these have {backbone.channels} channels"
    )


class CorruptedTest(Evaluation[Fitted]):
    """Fitted on images as they are; the test images are predicted as they are, and corrupted in 50 ways.

    Variants: `mean` over all kinds and severities, the protocol's number; `clean`; each kind, its five severities as
    conditions. Copies are made from a batch at the size that the network sees, classified, and forgotten.
    """

    @abstractmethod
    def logits(self, backbone: FeatureExtractor, state: Fitted, images: Tensor) -> Tensor:
        """(B, 3, s, s) images in [0, 1], on the backbone's device -> (B, K), each image's by itself; no gradients."""

    def refusal(self, backbone: FeatureExtractor) -> str | None:
        return needs_colours(backbone)

    @final
    def predict(self, backbone: FeatureExtractor, fit: Fit[Fitted], test: TestImages) -> list[Prediction]:
        seeds = {kind: image_seeds(test.ids, kind) for kind in CORRUPTIONS}  # (N,) each
        passes = 1 + SEVERITIES * len(CORRUPTIONS)
        found = torch.zeros(passes, len(test), dtype=torch.int64, device=backbone.device)
        with torch.inference_mode(), full_precision(), progress("corrupted images", passes * len(test)) as bar:
            for images, indices in backbone.batches(test):
                images, there = images.to(backbone.device), indices.to(backbone.device)
                copies = (copy for kind in CORRUPTIONS for copy in corrupted(images, kind, seeds[kind][indices]))
                for row, copy in enumerate(chain([images], copies)):
                    found[row, there] = self.logits(backbone, fit.state, copy).argmax(1)
                    bar.update(len(there))
        clean, *rest = torch.split(all_reduce_sum(found).cpu(), [1, *[SEVERITIES] * len(CORRUPTIONS)])
        backbone.used["corrupted test"] = Cost(found.numel(), found.numel() * backbone.flops_per_image)
        return [
            Prediction("mean", torch.cat(rest), "conditions"),
            Prediction("clean", clean[0]),
            *(Prediction(kind, labels, "conditions") for kind, labels in zip(CORRUPTIONS, rest, strict=True)),
        ]
