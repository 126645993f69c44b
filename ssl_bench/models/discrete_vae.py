"""A small discrete VAE: the tokenizer that `ssl-bench fit --method dvae` trains.

Shapes: B images of H x W pixels, g x g visual tokens, V of them in the vocabulary, s pixels of a token's side.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.models.tokenizer import Tokenizer


@final
class DiscreteVAE(Tokenizer):
    """A small discrete VAE: convolutions to logits over visual tokens, a codebook, and convolutions back to pixels.

    Args:
        vocabulary: V.
        dim: Width of a visual token's embedding.
        hidden_dim: Channels of the convolutions.
        layers: Convolutions of stride 2 on either side: s = 2 ** layers.
        blocks: Residual blocks on either side.
    """

    def __init__(self, vocabulary: int, dim: int, hidden_dim: int, layers: int, blocks: int) -> None:
        super().__init__()
        self.spec = {"vocabulary": vocabulary, "dim": dim, "hidden_dim": hidden_dim, "layers": layers, "blocks": blocks}
        hidden = hidden_dim
        self.vocabulary, self.stride = vocabulary, 2**layers
        down: list[nn.Module] = []
        up: list[nn.Module] = [nn.Conv2d(dim, hidden, 1), *(_Residual(hidden) for _ in range(blocks))]
        for layer in range(layers):
            down += [nn.Conv2d(hidden if layer else 3, hidden, 4, stride=2, padding=1), nn.ReLU()]
            up += [nn.ConvTranspose2d(hidden, hidden, 4, stride=2, padding=1), nn.ReLU()]
        down += [*(_Residual(hidden) for _ in range(blocks)), nn.Conv2d(hidden, vocabulary, 1)]
        self.encoder = nn.Sequential(*down)
        self.codebook = nn.Embedding(vocabulary, dim)
        self.decoder = nn.Sequential(*up, nn.Conv2d(hidden, 3, 1))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, V, H / s, W / s)."""
        return self.encoder(2 * images - 1)  # type: ignore[no-any-return]

    def decode(self, weights: Tensor) -> Tensor:
        """(B, V, h, w) weights of the visual tokens at each place -> (B, 3, h * s, w * s), about [0, 1]."""
        embedded = torch.einsum("bvhw,vd->bdhw", weights, self.codebook.weight.to(weights.dtype))
        return (self.decoder(embedded) + 1) / 2  # type: ignore[no-any-return]

    def visual_tokens(self, images: Tensor) -> Tensor:
        return self.logits(images).argmax(1)

    def pictures(self, visual_tokens: Tensor) -> Tensor:
        return self.decode(F.one_hot(visual_tokens, self.vocabulary).movedim(-1, 1).to(self.codebook.weight.dtype))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(width, width, k, padding=k // 2) for k in (3, 3, 1)]
        self.layers = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]
