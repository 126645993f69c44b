"""Linear classifiers of frozen features: many trained at once on the same batches, each applied on its own.

Shapes: N images, B of a batch, D features, K classes, H heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.optim.optimizers import trust_ratios

EPSILON = 1e-6  # of the batch norm in MAE's probe
LOGITS = 2**25  # float32 values at once while heads are scored: 128 MiB


@final
@dataclass(frozen=True)
class Norm:
    """Batch norm without affine parameters whose statistics are exact: of all training images, not of a batch.

    The features are frozen, so these are what running statistics approach, and an image's output does not depend on
    its neighbours.

    Args:
        mean: (D,).
        deviation: (D,), the root of the variance plus epsilon.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, mean: Tensor, variance: Tensor) -> Self:
        """From the (D,) moments of the training images, the variance biased."""
        return cls(mean.float(), (variance + EPSILON).sqrt().float())

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return (features - self.mean) / self.deviation


@final
@dataclass(frozen=True)
class Head:
    """A trained classifier, for any images whose features are at hand.

    Args:
        feature_type: Of its features: `logits(backbone.features(split, feature_type))`, or
            `logits(side_by_side(embedded, feature_type))`.
        norm: In front of it.
        weight: (K, D).
        bias: (K,).
    """

    feature_type: str
    norm: Norm
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) features as the backbone gives them -> (N, K)."""
        return F.linear(self.norm(features), self.weight, self.bias)


def side_by_side(embedded: Mapping[str, Tensor], feature_type: str) -> Tensor:
    """(B, D) features of a type out of what `FeatureExtractor.embed` gives, where `a+b` is left to be composed."""
    return (
        embedded[feature_type]
        if feature_type in embedded
        else torch.cat([embedded[part] for part in feature_type.split("+")], dim=1)
    )


@final
class Heads:
    """H linear classifiers of the same images that share nothing but the matrix products.

    SGD with momentum, or LARS, which scales each head's step on its weights (not on its biases) by trust * |w| / |g|.
    The learning rate multiplies the step and not what enters the momentum, so no gradient is scaled by it.

    Gradients are written out: of the mean cross entropy it is (softmax - one-hot) / B. What becomes of one head, a
    diverging one included, touches no other, since each has its own rows of every product.

    Args:
        start: (H, K, D) first weights; biases begin at 0.
        lrs: H learning rates at their peak.
        momentum: Of the steps.
        trust: Of LARS, 0.001 in all papers; plain SGD when not given.
    """

    def __init__(self, start: Tensor, lrs: Sequence[float], momentum: float = 0.9, trust: float | None = None) -> None:
        assert len(start) == len(lrs)
        self.weight = start.transpose(0, 1).contiguous()  # (K, H, D), K first: softmax then runs along images
        self.bias = start.new_zeros(self.weight.shape[:2])  # (K, H)
        self.weight_buffer, self.bias_buffer = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.lrs = start.new_tensor(lrs)
        self.momentum, self.trust = momentum, trust

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, D) -> (K, H, B)."""
        flat = torch.addmm(self.bias.flatten()[:, None], self.weight.flatten(0, 1), inputs.T)  # (KH, B)
        return flat.view(*self.bias.shape, len(inputs))

    def step(self, inputs: Tensor, labels: Tensor, schedule: float) -> None:
        """One step on (B, D) inputs and (B,) labels, all learning rates multiplied by ``schedule``."""
        share = 1 / len(inputs)
        gradient = self.logits(inputs)  # (K, H, B)
        gradient -= gradient.amax(0)
        gradient.exp_()
        gradient *= share / gradient.sum(0)
        target = labels.expand(1, *gradient.shape[1:])  # (1, H, B)
        gradient.scatter_add_(0, target, gradient.new_tensor(-share).expand(target.shape))
        self.update((gradient.flatten(0, 1) @ inputs).view_as(self.weight), gradient.sum(2), schedule)

    def update(self, weight: Tensor, bias: Tensor, schedule: float) -> None:
        """One step along gradients of the weights (K, H, D), which are overwritten, and biases (K, H)."""
        if self.trust is not None:
            ratios = trust_ratios(list(self.weight.unbind(1)), list(weight.unbind(1)), self.trust)
            weight *= torch.stack(ratios)[:, None]
        self.weight_buffer.mul_(self.momentum).add_(weight)
        self.bias_buffer.mul_(self.momentum).add_(bias)
        self.weight.addcmul_(self.weight_buffer, self.lrs[:, None], value=-schedule)
        self.bias.addcmul_(self.bias_buffer, self.lrs, value=-schedule)

    def score(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(H,) float64 accuracies and mean losses on (N, D) inputs; not finite for a head that has diverged."""
        right, loss = (torch.zeros(len(self.lrs), dtype=torch.float64, device=inputs.device) for _ in range(2))
        images = max(1, LOGITS // self.bias.numel())
        for at in range(0, len(inputs), images):
            some, target = inputs[at : at + images], labels[at : at + images]
            logits = self.logits(some)  # (K, H, B)
            right += (logits.argmax(0) == target).sum(1)
            chosen = logits.take_along_dim(target.expand(logits.shape[1:])[None], 0)[0]  # (H, B)
            loss += (logits.logsumexp(0) - chosen).sum(1)
        return torch.where(loss.isfinite(), right / len(inputs), torch.nan), loss / len(inputs)

    def head(self, index: int, feature_type: str, norm: Norm) -> Head:
        """One of them, by itself."""
        return Head(feature_type, norm, self.weight[:, index].clone(), self.bias[:, index].clone())
