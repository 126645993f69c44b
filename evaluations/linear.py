"""Linear probe: what a linear classifier on frozen features can tell apart.

The grid of Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024
(https://arxiv.org/abs/2304.07193, https://github.com/facebookresearch/dinov2): 13 learning rates for each kind of
features, SGD with momentum, 12,500 steps, all heads trained at once on the same batches. With the batch norm without
affine parameters of MAE's probe in front, so that one grid suits features of any scale.

Ours, and why:
- The head is chosen on the selection split, not on the test images, and is the one after the last step.
- It is not trained again on the selection images afterwards.
- Features are of the images as they are, without random crops: computed once, they make a probe a matter of seconds.
- Batch norm uses the exact mean and variance over the training images from the first step on; the backbone is frozen,
  so these are what running statistics approach, and an image's prediction does not depend on its neighbours.

Shapes: N images, B of a batch, D features, K classes, H heads, one per learning rate.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.data.splits import SelectionSplit, Split, TestSplit, TrainSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation import Evaluation, Fit, Prediction
from ssl_bench.features import FrozenBackbone, full_precision, progress
from ssl_bench.randomness import derive


@dataclass(frozen=True)
class Head:
    """A trained classifier and how it fared on the selection split.

    Args:
        kind: Of its features.
        mean: (D,) over the training images.
        deviation: (D,) likewise.
        weight: (K, D), for features less the mean, divided by the deviation.
        bias: (K,).
        lr: Its learning rate, for 256 images.
        accuracy: On the selection split.
        loss: Likewise.
        curve: Its accuracy there after each of some steps.
    """

    kind: str
    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor
    lr: float
    accuracy: float
    loss: float
    curve: list[float]

    @property
    def order(self) -> tuple[float, float, float]:
        """Sorts from best to worst."""
        return -self.accuracy, self.loss, self.lr

    def inputs(self, backbone: FrozenBackbone, split: Split, rows: slice = slice(None)) -> Tensor:
        """(N, D) features as the weight expects them."""
        return (backbone.features(split, self.kind, rows) - self.mean) / self.deviation


@final
class Linear(Evaluation[list[Head]]):
    """Softmax regression by SGD; learning rate and kind of features are chosen on the selection split.

    Args:
        iterations: Steps of SGD.
        batch_size: Images per step; all training images if there are fewer.
        lrs: Learning rates to choose from, for 256 images: each is multiplied by the batch size / 256. A cosine takes
            them to 0, step by step.
        momentum: Of SGD.
        kinds: Kinds of features to choose from; all after the final norm when not given.
        points: How often accuracy on the selection split is taken along the way.
        seed: Of the first weights and of the order of images.
    """

    def __init__(
        self,
        iterations: int = 12_500,
        batch_size: int = 1024,
        lrs: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1),
        momentum: float = 0.9,
        kinds: tuple[str, ...] | None = None,
        points: int = 20,
        seed: int = 0,
    ) -> None:
        if min(iterations, batch_size, points, len(lrs)) < 1:
            raise ValueError("iterations, batch_size, points and the number of lrs must all be at least 1")
        self.iterations = iterations
        self.batch_size = batch_size
        self.lrs = lrs
        self.momentum = momentum
        self.kinds = kinds
        self.points = points
        self.seed = seed

    def fit(self, backbone: FrozenBackbone, train: TrainSplit, selection: SelectionSplit) -> Fit[list[Head]]:
        if len(selection) == 0:
            raise UserError("the selection split, on which linear chooses, is empty: raise data.selection_fraction")
        kinds = self.kinds or tuple(kind for kind in backbone.kinds if not kind.endswith("_raw"))
        per_kind = [self._best(backbone, train, selection, kind) for kind in kinds]
        best = min(per_kind, key=lambda head: head.order)
        return Fit(
            [best, *per_kind],
            features=kinds,
            chosen={"lr": best.lr, "features": best.kind} | {f"lr {head.kind}": head.lr for head in per_kind},
            grid={"lr": list(self.lrs), "features": list(kinds)},
            on_edge=len(self.lrs) > 1 and best.lr in (min(self.lrs), max(self.lrs)),
            curve={"step": [float(step) for step in self._watched()], "selection accuracy": best.curve},
        )

    def predict(self, backbone: FrozenBackbone, fit: Fit[list[Head]], test: TestSplit) -> list[Prediction]:
        predictions = []
        for variant, head in zip(["chosen", *(head.kind for head in fit.state[1:])], fit.state, strict=True):
            with full_precision():
                logits = F.linear(head.inputs(backbone, test), head.weight, head.bias)  # (N, K)
            predictions.append(Prediction(variant, logits.argmax(1).cpu()))
        return predictions

    def _best(self, backbone: FrozenBackbone, train: TrainSplit, selection: SelectionSplit, kind: str) -> Head:
        """Train all heads on one kind of features; the best on the selection split."""
        mean, variance = backbone.moments([train], kind)
        mean, deviation = mean.float(), (variance + 1e-6).sqrt().float()
        inputs = backbone.features(train, kind).sub_(mean).div_(deviation)  # (N, D)
        held_out = backbone.features(selection, kind).sub_(mean).div_(deviation)
        labels, held_out_labels = (torch.as_tensor(s.labels).to(backbone.device) for s in (train, selection))
        batch_size, classes = min(self.batch_size, len(train)), int(labels.max()) + 1
        generator = torch.Generator().manual_seed(derive(self.seed))
        start = torch.randn(classes, inputs.shape[1], generator=generator).mul_(0.01).to(backbone.device)
        heads = Heads(start, [lr * batch_size / 256 for lr in self.lrs], self.momentum)
        watched, curves = set(self._watched()), []
        with full_precision(), progress(f"linear heads on {kind}", self.iterations, "steps") as bar:
            for step, batch in enumerate(order(len(train), batch_size, self.iterations, self.seed)):
                rows = batch.to(backbone.device)
                some = inputs.index_select(0, rows)  # (B, D), in a third of the time of inputs[rows]
                heads.step(some, labels[rows], 0.5 * (1 + math.cos(math.pi * step / self.iterations)))
                bar.update()
                if step + 1 in watched:
                    accuracy, loss = heads.score(held_out, held_out_labels)  # (H,) each
                    curves.append(accuracy)
        scores = zip(self.lrs, accuracy.tolist(), loss.tolist(), torch.stack(curves, 1).tolist(), strict=True)
        candidates = [
            Head(kind, mean, deviation, weight, bias, *score)
            for weight, bias, score in zip(*heads.alone(), scores, strict=True)
            if math.isfinite(score[2])
        ]
        if not candidates:
            raise UserError(f"every linear head on {kind!r} diverged: give smaller lrs than {min(self.lrs)}")
        return min(candidates, key=lambda head: head.order)

    def _watched(self) -> list[int]:
        """Steps, counted from 1, after which selection accuracy is taken; the last is among them."""
        return sorted({max(1, round(self.iterations * point / self.points)) for point in range(1, self.points + 1)})


class Heads:
    """H linear classifiers of the same images that share nothing but the matrix products.

    Gradients are written out: of the mean cross entropy it is (softmax - one-hot) / B. What becomes of one head, a
    diverging one included, touches no other, since each has its own columns of every product.

    Args:
        start: (K, D) first weights of each head.
        lrs: H learning rates as SGD uses them.
        momentum: Of SGD.
    """

    def __init__(self, start: Tensor, lrs: Sequence[float], momentum: float) -> None:
        self.weight = start[:, None].repeat(1, len(lrs), 1)  # (K, H, D), K first: softmax then runs along images
        self.bias = start.new_zeros(len(start), len(lrs))
        self.weight_buffer, self.bias_buffer = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.lrs = start.new_tensor(lrs)
        self.momentum = momentum

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, D) -> (K, H, B)."""
        flat = torch.addmm(self.bias.flatten()[:, None], self.weight.flatten(0, 1), inputs.T)  # (KH, B)
        return flat.view(*self.bias.shape, len(inputs))

    def step(self, inputs: Tensor, labels: Tensor, schedule: float) -> None:
        """One step of SGD on (B, D) inputs, all learning rates multiplied by ``schedule``."""
        share = 1 / len(inputs)
        gradient = self.logits(inputs)  # (K, H, B)
        gradient -= gradient.amax(0)
        gradient.exp_()
        gradient /= gradient.sum(0)
        target = labels.expand(1, *gradient.shape[1:])  # (1, H, B)
        gradient.scatter_add_(0, target, gradient.new_tensor(-1.0).expand(target.shape))
        self.weight_buffer.flatten(0, 1).addmm_(gradient.flatten(0, 1), inputs, beta=self.momentum, alpha=share)
        self.bias_buffer.mul_(self.momentum).add_(gradient.sum(2), alpha=share)
        self.weight.addcmul_(self.weight_buffer, self.lrs[:, None], value=-schedule)
        self.bias.addcmul_(self.bias_buffer, self.lrs, value=-schedule)

    def score(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(H,) accuracies and mean losses; not numbers for a head that has diverged."""
        right, loss = (torch.zeros(len(self.lrs), dtype=torch.float64, device=inputs.device) for _ in range(2))
        for at in range(0, len(inputs), 4096):
            target = labels[at : at + 4096]
            logits = self.logits(inputs[at : at + 4096])  # (K, H, B)
            right += (logits.argmax(0) == target).sum(1)
            chosen = logits.take_along_dim(target.expand(logits.shape[1:])[None], 0)[0]  # (H, B)
            loss += (logits.logsumexp(0) - chosen).sum(1)
        return torch.where(loss.isfinite(), right / len(inputs), torch.nan), loss / len(inputs)

    def alone(self) -> tuple[Tensor, Tensor]:
        """(H, K, D) weights and (H, K) biases."""
        return self.weight.transpose(0, 1).contiguous(), self.bias.T.contiguous()


def order(images: int, batch_size: int, batches: int, seed: int) -> Iterator[Tensor]:
    """(B,) rows, batch after batch: one random permutation of the images after another, without a break between."""
    left = torch.empty(0, dtype=torch.int64)
    epoch = 0
    for _ in range(batches):
        while len(left) < batch_size:
            generator = torch.Generator().manual_seed(derive(seed, 1, epoch))
            left = torch.cat([left, torch.randperm(images, generator=generator)])
            epoch += 1
        yield left[:batch_size]
        left = left[batch_size:]
