"""Classifiers that attend to an image's tokens: several heads of one kind at once, which share nothing but the tokens.

Both kinds ask G queries of the tokens, take the mean of the tokens that each query finds (softmax over the tokens), and
let 1 / G of a value projection's channels look at each mean. A projection of a mean is the mean of projections, so the
tokens themselves are never projected: G x D products per token and head rather than D x D, with the same result.

- CrossAttentionPool: Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", IJCV 2024
  (https://arxiv.org/abs/2202.03026, https://github.com/lxtGH/CAE, `models/modeling_finetune.py`).
- QueryPool: efficient probing, Psomas et al., ICLR 2026 (https://arxiv.org/abs/2506.10178,
  https://github.com/billpsomas/efficient-probing).

Shapes: H heads, B images, T tokens of an image, D features, G queries of a head, K classes.
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def attend(tokens: Tensor, queries: Tensor) -> Tensor:
    """(B, T, D) tokens and (H, G, D) queries -> (B, H, G, D) means of tokens, by softmax over T of tokens x query."""
    scores = (tokens.flatten(0, 1) @ queries.flatten(0, 1).T).unflatten(0, tokens.shape[:2])  # (B, T, HG)
    pooled: Tensor = scores.softmax(1).transpose(1, 2) @ tokens  # (B, HG, D)
    return pooled.unflatten(1, queries.shape[:2])


def by_group(pooled: Tensor, weight: Tensor) -> Tensor:
    """(B, H, G, D) -> (B, H, D): the first D / G rows of each (D, D) weight see the first query's mean, and so on."""
    groups = weight.unflatten(1, (pooled.shape[2], -1))  # (H, G, D / G, D)
    return torch.einsum("bhgd,hged->bhge", pooled, groups).flatten(2)


@final
class CrossAttentionPool(nn.Module):
    """CAE's: one learned query looks at all tokens by multi-head cross-attention; no residual connection, no MLP.

    A key's bias, its norm's included, adds the same to all scores of a query: neither is here, nor would it learn.

    Args:
        heads: H.
        dim: D.
        num_heads: G, attention heads.
        generator: Of the first weights.
    """

    def __init__(self, heads: int, dim: int, num_heads: int, generator: torch.Generator) -> None:
        super().__init__()
        assert dim % num_heads == 0, f"{dim} features are no multiple of {num_heads} attention heads"
        self.num_heads = num_heads
        self.query_token = nn.Parameter(torch.zeros(heads, dim))
        self.norm1_q_weight, self.norm1_k_weight, self.norm1_v_weight = (
            nn.Parameter(torch.ones(heads, dim)) for _ in range(3)
        )
        self.norm1_q_bias, self.norm1_v_bias, self.q_bias, self.v_bias, self.proj_bias = (
            nn.Parameter(torch.zeros(heads, dim)) for _ in range(5)
        )
        self.q, self.k, self.v, self.proj = (
            nn.Parameter(_same(heads, _truncated_normal(dim, dim, 0.02, generator))) for _ in range(4)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, D)."""
        dim, groups = tokens.shape[2:], (self.num_heads, -1)
        query = F.layer_norm(self.query_token, dim, eps=1e-6) * self.norm1_q_weight + self.norm1_q_bias  # (H, D)
        query = (self.q @ query[..., None]).squeeze(2) + self.q_bias  # (H, D)
        query = query.unflatten(1, groups) * (dim[0] // self.num_heads) ** -0.5  # (H, G, D / G)
        # (k x) . query = x . (k^T query): the query goes to where the tokens are.
        queries = (query[:, :, None] @ self.k.unflatten(1, groups)).squeeze(2) * self.norm1_k_weight[:, None]
        pooled = attend(F.layer_norm(tokens, dim, eps=1e-6), queries)  # (B, H, G, D)
        values = by_group(pooled * self.norm1_v_weight[:, None] + self.norm1_v_bias[:, None], self.v) + self.v_bias
        return torch.einsum("bhd,hed->bhe", values, self.proj) + self.proj_bias


@final
class QueryPool(nn.Module):
    """Efficient probing's: many learned queries, no projection of keys, a value projection whose channels they share.

    Args:
        heads: H.
        dim: D.
        num_queries: G.
        generator: Of the first weights.
    """

    def __init__(self, heads: int, dim: int, num_queries: int, generator: torch.Generator) -> None:
        super().__init__()
        assert dim % num_queries == 0, f"{dim} features are no multiple of {num_queries} queries"
        self.queries = nn.Parameter(_same(heads, 0.02 * torch.randn(num_queries, dim, generator=generator)))
        self.v = nn.Parameter(_same(heads, (2 * torch.rand(dim, dim, generator=generator) - 1) * dim**-0.5))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, D)."""
        return by_group(attend(tokens, self.queries * tokens.shape[2] ** -0.5), self.v)


@final
class AttentiveHeads(nn.Module):
    """H heads: what the pool found, a batch norm without affine parameters, a linear classifier.

    In train mode the norm takes the batch's statistics and follows them with its own. In eval mode it uses its own,
    never the batch's: an image's logits do not depend on its neighbours.

    Args:
        pool: (B, T, D) -> (B, H, D).
        heads: H.
        dim: D.
        classes: K.
        eps: Of the norm.
        generator: Of the first weights.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self, pool: nn.Module, heads: int, dim: int, classes: int, eps: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.pool, self.eps = pool, eps
        self.weight = nn.Parameter(_same(heads, _truncated_normal(classes, dim, 0.01, generator)))
        self.bias = nn.Parameter(torch.zeros(heads, classes))
        self.register_buffer("mean", torch.zeros(heads, dim))
        self.register_buffer("variance", torch.ones(heads, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, K)."""
        pooled = self.pool(tokens)  # (B, H, D)
        statistics = self.mean.view(-1), self.variance.view(-1)
        normed = F.batch_norm(pooled.flatten(1), *statistics, training=self.training, momentum=0.1, eps=self.eps)
        return torch.einsum("bhd,hkd->bhk", normed.view_as(pooled), self.weight) + self.bias

    def loss(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """Sum over heads of each one's mean cross entropy: its gradient with respect to a head is that head's own."""
        logits = self(tokens)  # (B, H, K)
        each = F.cross_entropy(logits.transpose(1, 2), labels[:, None].expand(logits.shape[:2]), reduction="none")
        return each.mean(0).sum()

    @torch.no_grad()
    def score(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """(H,) accuracies and mean losses, in eval mode; not numbers for a head that has diverged.

        Args:
            batches: (B, T, D) tokens and (B,) classes.
        """
        self.eval()
        right, loss = (self.bias.new_zeros(len(self.bias), dtype=torch.float64) for _ in range(2))
        count = 0
        for tokens, labels in batches:
            logits = self(tokens)  # (B, H, K)
            right += (logits.argmax(2) == labels[:, None]).sum(0)
            chosen = logits.take_along_dim(labels[:, None, None], 2).squeeze(2)  # (B, H)
            loss += (logits.logsumexp(2) - chosen).sum(0)
            count += len(labels)
        return torch.where(loss.isfinite(), right / count, torch.nan), loss / count

    def pick(self, head: int) -> Self:
        """One of the heads alone, H = 1: a copy in eval mode that takes no gradients."""
        alone = copy.deepcopy(self).requires_grad_(False).eval()
        for tensor in (*alone.parameters(), *alone.buffers()):
            tensor.data = tensor.data[head : head + 1].clone()
        return alone


@torch.no_grad()
def exact_statistics(several: Sequence[AttentiveHeads], batches: Iterable[Tensor]) -> None:
    """Give the heads' norms mean and (biased) variance over all images, whatever the batches: one pass for all.

    Args:
        several: The heads.
        batches: (B, T, D) tokens.
    """
    count = 0
    means = [torch.zeros_like(heads.mean, dtype=torch.float64) for heads in several]
    squares = [torch.zeros_like(mean) for mean in means]  # (H, D) each, sums of squared deviations from the mean
    for tokens in batches:
        new, count = len(tokens), count + len(tokens)
        for heads, mean, square in zip(several, means, squares, strict=True):
            pooled = heads.pool(tokens).double()  # (B, H, D)
            deviation = pooled.mean(0) - mean
            square += (pooled - pooled.mean(0)).square().sum(0) + deviation.square() * (new * (count - new) / count)
            mean += deviation * (new / count)
    for heads, mean, square in zip(several, means, squares, strict=True):
        heads.mean.copy_(mean)
        heads.variance.copy_(square / count)


@final
class HeadOptimizer:
    """SGD with momentum, each head with its own learning rate: it multiplies the step, not what enters the momentum.

    Args:
        heads: All of whose parameters learn; in each, the heads come first.
        lrs: H learning rates.
        momentum: Of the update buffer.
    """

    def __init__(self, heads: AttentiveHeads, lrs: Sequence[float], momentum: float = 0.9) -> None:
        self.parameters = list(heads.parameters())
        self.buffers = [torch.zeros_like(p) for p in self.parameters]
        self.lrs, self.momentum = heads.bias.new_tensor(lrs), momentum

    def step(self, loss: Tensor, schedule: float) -> None:
        """Down the gradient of a loss, all learning rates multiplied by ``schedule``."""
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for parameter, buffer, gradient in zip(self.parameters, self.buffers, gradients, strict=True):
                buffer.mul_(self.momentum).add_(gradient)
                parameter.addcmul_(buffer, self.lrs.view(-1, *[1] * (parameter.ndim - 1)), value=-schedule)


def _same(heads: int, start: Tensor) -> Tensor:
    """(H, ...): every head starts from the same weights."""
    return start.repeat(heads, *[1] * start.ndim)


def _truncated_normal(rows: int, columns: int, deviation: float, generator: torch.Generator) -> Tensor:
    return nn.init.trunc_normal_(torch.empty(rows, columns), std=deviation, generator=generator)
