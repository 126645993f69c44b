"""Attentive probe: the accuracy of a head that attends to all tokens of a frozen backbone, not to one vector.

Two kinds of heads, each with several learning rates, all trained at once on the same tokens of a frozen backbone:
- cae: the cross-attention of Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", IJCV 2024
  (https://arxiv.org/abs/2202.03026, https://github.com/lxtGH/CAE).
- ep: efficient probing, Psomas et al., ICLR 2026 (https://arxiv.org/abs/2506.10178,
  https://github.com/billpsomas/efficient-probing).
Both by SGD with momentum and no weight decay on MAE's random crops, a ninth of the steps warm-up and then half a cosine
to 0, with a batch norm without affine parameters in front of the classifier.

Ours, and why:
- All tokens after the final norm are used, of every network: class token and patches; a ResNet's or Swin's final map.
  Efficient probing leaves the class token out for some methods and not for others, which decides who wins.
- Kind and learning rate are chosen on the validation split, not on the test images; heads are those of the last step.
- At test the batch norm has exact statistics of the training images, as they are, under the final weights. CAE's code
  calls its norm in train mode there, so that a prediction depends on the other images of the test batch.
- CAE's rates are a quarter of its 0.4 for 8192 images to sixteen times that, here as all rates for 256 images.
- Efficient probing learns by SGD too. LARS's steps are a set share of each weight's length: over the few thousand steps
  that a laptop can take, the queries hardly leave where they began.
- The crops are `views` fixed ones of each image, the same for every network, used in turn: their tokens are computed
  once where they fit in memory.
- Tokens are divided by one number, their root mean square over some training images: rates then suit every network.

With several processes each trains the same heads on all images: the same result, in the same time.

Shapes: N images, B of a batch, T tokens, D features, H heads of a kind, one per learning rate.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, final

import torch
from torch import Tensor, nn

from ssl_bench.config.constraints import NonNegativeInt, PositiveInt, Range, Rates, Seed
from ssl_bench.data.splits import TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.cost import progress
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.attention_heads import (
    AttentiveHeads,
    CrossAttentionPool,
    HeadOptimizer,
    QueryPool,
    exact_statistics,
)
from ssl_bench.evaluation.token_bank import TokenBank
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.schedules import warmup_cosine
from ssl_bench.runtime.precision import full_precision
from ssl_bench.runtime.seeds import derive

MEMORY = 2**31  # bytes of tokens that are kept in it


@dataclass(frozen=True)
class Head:
    """A trained head and how it fared on the validation split.

    Args:
        kind: cae or ep.
        heads: The head, alone.
        lr: Its learning rate, for 256 images.
        accuracy: On the validation split.
        loss: Likewise.
        curve: Its accuracy there after each of some steps.
        tried: Rates of its kind that did not diverge, and the accuracy with each.
    """

    kind: str
    heads: AttentiveHeads
    lr: float
    accuracy: float
    loss: float
    curve: list[float]
    tried: list[tuple[float, float]]

    @property
    def order(self) -> tuple[float, float, float]:
        """Sorts from best to worst."""
        return -self.accuracy, self.loss, self.lr


@dataclass(frozen=True)
class Trained:
    """What `predict` needs.

    Args:
        unit: What tokens are divided by.
        best: The chosen head, then the best of each kind.
    """

    unit: float
    best: list[Head]


@final
class Attentive(Evaluation[Trained]):
    """Heads that attend to the tokens of a frozen backbone; kind and learning rate are chosen on the validation split.

    Args:
        iterations: Steps of training.
        batch_size: Images per step; all training images if there are fewer.
        cae_lrs: Learning rates that CAE's head is chosen from, for 256 images: each is multiplied by batch size / 256.
        ep_lrs: Those of efficient probing, likewise.
        views: Random crops of each training image, one per epoch in turn; 0 for the images as they are.
        queries: Of efficient probing; fewer if the features' number is no multiple.
        points: How often accuracy on the validation split is taken along the way.
        seed: Of the first weights and of the order of images.
    """

    def __init__(
        self,
        iterations: PositiveInt = 2500,
        batch_size: Annotated[int, Range(min=2)] = 256,
        cae_lrs: Rates = (0.003125, 0.0125, 0.05, 0.2),
        ep_lrs: Rates = (0.1, 0.4, 1.6, 6.4),
        views: NonNegativeInt = 4,
        queries: PositiveInt = 32,
        points: PositiveInt = 10,
        seed: Seed = 0,
    ) -> None:
        if min(iterations, queries, points, len(cae_lrs), len(ep_lrs)) < 1 or views < 0:
            raise ValueError("iterations, queries, points and the numbers of rates must be at least 1, views 0")
        if batch_size < 2:
            raise ValueError(f"batch_size is {batch_size}: a batch norm needs at least 2 images")
        self.iterations = iterations
        self.batch_size = batch_size
        self.cae_lrs = cae_lrs
        self.ep_lrs = ep_lrs
        self.views = views
        self.queries = queries
        self.points = points
        self.seed = seed

    def refusal(self, backbone: FeatureExtractor) -> str | None:
        if backbone.baseline:
            return f"{backbone.baseline} have no tokens of a network to attend to"
        if not isinstance(backbone.network, Backbone):
            return "it gives one feature per image: there is nothing to attend to"
        try:
            _width(backbone)
        except UserError as error:  # of a network that is known by its pooled features alone
            return str(error)
        return None

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[Trained]:
        if len(validation) == 0:
            raise UserError("the validation split, on which attentive chooses, is empty: raise data.val_fraction")
        tokens, everyone = TokenBank(backbone, MEMORY), torch.arange(len(train))
        with full_precision():
            tokens.unit = self._unit(tokens, train)
            kinds = self._heads(backbone, int(train.labels.max()) + 1)
            curves = self._train(kinds, tokens, train, validation)
            exact_statistics(list(kinds.values()), tokens.batches(train, None, everyone, self.batch_size))
            per_kind = [self._best(k, heads, tokens, validation, curves[k]) for k, heads in kinds.items()]
        best = min(per_kind, key=lambda head: head.order)
        return Fit(
            Trained(tokens.unit, [best, *per_kind]),
            chosen={"head": best.kind} | {f"lr {head.kind}": head.lr for head in per_kind},
            grid={"head": list(kinds)} | {f"lr {kind}": list(lrs) for kind, lrs in self._lrs.items()},
            at_grid_boundary=len(grid := self._lrs[best.kind]) > 1 and best.lr in (min(grid), max(grid)),
            curve={"step": [float(step) for step in self._watched()], "validation accuracy": best.curve}
            | {f"lr of {head.kind}": [lr for lr, _ in head.tried] for head in per_kind}
            | {f"validation accuracy of {head.kind}": [accuracy for _, accuracy in head.tried] for head in per_kind},
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[Trained], test: TestImages) -> list[Prediction]:
        tokens = TokenBank(backbone, 0, fit.state.unit)
        best, *per_kind = fit.state.best
        found: dict[str, list[Tensor]] = {head.kind: [] for head in per_kind}
        with full_precision(), torch.no_grad():
            for batch in tokens.batches(test, None, torch.arange(len(test)), backbone.batch_size):
                for head in per_kind:
                    found[head.kind].append(head.heads(batch)[:, 0].argmax(1).cpu())
        labels = {kind: torch.cat(parts) for kind, parts in found.items()}
        return [Prediction("chosen", labels[best.kind]), *(Prediction(*item) for item in labels.items())]

    @property
    def _lrs(self) -> dict[str, tuple[float, ...]]:
        """Kind of head -> its learning rates."""
        return {"cae": self.cae_lrs, "ep": self.ep_lrs}

    def _unit(self, tokens: TokenBank, train: TrainSplit) -> float:
        """Root mean square of the tokens of some training images."""
        generator = torch.Generator().manual_seed(derive(self.seed, 2))
        some = torch.randperm(len(train), generator=generator)[: self.batch_size]
        unit = float(next(tokens.batches(train, None, some, self.batch_size)).double().square().mean().sqrt())
        if not math.isfinite(unit):
            raise UserError("the backbone's tokens are not finite: its pretraining has diverged")
        return unit or 1.0

    def _heads(self, backbone: FeatureExtractor, classes: int) -> dict[str, AttentiveHeads]:
        """The heads of each kind, one per learning rate."""
        network = backbone.network
        assert isinstance(network, Backbone)
        dim = _width(backbone)
        if network.is_resnet or network.is_pooled:
            num_heads = divisor(dim, max(1, dim // 64))
        else:
            last = network.model.blocks[-1] if network.is_vit else network.model.layers[-1].blocks[-1]
            num_heads = last.attn.num_heads
        heads, generator = len(self.cae_lrs), torch.Generator().manual_seed(derive(self.seed, 0, 0))
        pool: nn.Module = CrossAttentionPool(heads, dim, num_heads, generator)
        cae = AttentiveHeads(pool, heads, dim, classes, 1e-5, generator)
        heads, generator = len(self.ep_lrs), torch.Generator().manual_seed(derive(self.seed, 0, 1))
        pool = QueryPool(heads, dim, divisor(dim, self.queries), generator)
        ep = AttentiveHeads(pool, heads, dim, classes, 1e-6, generator)
        return {"cae": cae.to(backbone.device), "ep": ep.to(backbone.device)}

    def _train(
        self, kinds: dict[str, AttentiveHeads], tokens: TokenBank, train: TrainSplit, validation: ValidationSplit
    ) -> dict[str, list[Tensor]]:
        """All steps of all heads; kind -> (H,) accuracies on the validation split at each watched step but the last.

        The batch norms have running statistics then: of the crops, and of weights that were still moving.
        """
        labels = torch.as_tensor(train.labels).to(tokens.backbone.device)
        batch_size = min(self.batch_size, len(train))
        optimizers = {
            kind: HeadOptimizer(heads, [lr * batch_size / 256 for lr in self._lrs[kind]])
            for kind, heads in kinds.items()
        }
        watched, curves = set(self._watched()[:-1]), {kind: list[Tensor]() for kind in kinds}
        with progress("attentive heads", self.iterations, "steps") as bar:
            for step, (batch, indices) in enumerate(self._batches(tokens, train, batch_size)):
                schedule = warmup_cosine(step, self.iterations, self.iterations // 9, 1.0)
                for kind, heads in kinds.items():
                    optimizers[kind].step(heads.train().loss(batch, labels[indices]), schedule)
                if step + 1 in watched:
                    for kind, heads in kinds.items():
                        curves[kind].append(heads.score(self._labelled(tokens, validation))[0])
                bar.update()
        return curves

    def _batches(self, tokens: TokenBank, train: TrainSplit, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, T, D) tokens and the (B,) indices of their images, step after step.

        Each epoch is a new permutation and the next view; images that fill no batch are left out of that epoch.
        """
        per_epoch = len(train) // batch_size
        epochs = math.ceil(self.iterations / per_epoch)
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed(derive(self.seed, 1, epoch))
            steps = min(per_epoch, self.iterations - epoch * per_epoch)
            order = torch.randperm(len(train), generator=generator)[: steps * batch_size]
            view = epoch % self.views if self.views else None
            found = tokens.batches(train, view, order, batch_size, again=epochs > max(1, self.views))
            yield from zip(found, order.to(tokens.backbone.device).split(batch_size), strict=True)

    def _labelled(self, tokens: TokenBank, validation: ValidationSplit) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, T, D) tokens of the validation split and their (B,) classes."""
        everyone = torch.arange(len(validation))
        found = tokens.batches(validation, None, everyone, self.batch_size, again=self.points > 1)
        labels = torch.as_tensor(validation.labels).to(tokens.backbone.device)
        return zip(found, labels.split(self.batch_size), strict=True)

    def _best(
        self,
        kind: str,
        heads: AttentiveHeads,
        tokens: TokenBank,
        validation: ValidationSplit,
        curve: list[Tensor],
    ) -> Head:
        """The best head of a kind on the validation split, after the last step."""
        accuracy, loss = heads.score(self._labelled(tokens, validation))
        curves = torch.stack([*curve, accuracy], 1).tolist()
        scores = zip(self._lrs[kind], accuracy.tolist(), loss.tolist(), curves, strict=True)
        finite = [(h, score) for h, score in enumerate(scores) if math.isfinite(score[2])]
        tried = [(lr, found) for _, (lr, found, _, _) in finite]
        candidates = [Head(kind, heads.pick(h), *score, tried) for h, score in finite]
        if not candidates:
            raise UserError(f"every {kind} head diverged: give smaller {kind}_lrs than {min(self._lrs[kind])}")
        return min(candidates, key=lambda head: head.order)

    def _watched(self) -> list[int]:
        """Steps, counted from 1, after which validation accuracy is taken; the last is among them."""
        return sorted({max(1, round(self.iterations * point / self.points)) for point in range(1, self.points + 1)})


def divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most ``most``."""
    return next(d for d in range(min(number, most), 0, -1) if number % d == 0)


def _width(backbone: FeatureExtractor) -> int:
    """D of the tokens or of the last map, which may have other channels than the pooled features."""
    return int(backbone.tokens(torch.zeros(1, backbone.channels, backbone.img_size, backbone.img_size)).shape[2])
