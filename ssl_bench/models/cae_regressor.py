"""CAE's neck: hidden patches are represented by looking at visible ones, then decoded by looking at each other.

Shapes: B images, K visible and M hidden patches, E features, V outputs of each hidden patch.
"""

from typing import final

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm, Mlp
from timm.models.beit import Block
from torch import Tensor, nn


@final
class PretextNeck(nn.Module):
    """Latent contextual regressor and decoder, with the official names of their weights.

    Args:
        dim: E.
        outputs: V.
        regressor_depth: Blocks of cross-attention.
        decoder_depth: Blocks of self-attention.
        num_heads: Attention heads of both.
        mlp_ratio: Width of an MLP's inner layer over E.
        layer_scale: Initial scale of each branch; 0 for none.
        drop_path: Stochastic depth at the last block of each, growing linearly from 0.
    """

    def __init__(
        self,
        dim: int,
        outputs: int,
        regressor_depth: int,
        decoder_depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        layer_scale: float = 0.1,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        rates = [
            torch.linspace(0, drop_path, depth, device="cpu").tolist() for depth in (regressor_depth, decoder_depth)
        ]
        self.regressor_blocks = nn.ModuleList(
            RegressorBlock(dim, num_heads, mlp_ratio, layer_scale, rate) for rate in rates[0]
        )
        self.norm = LayerNorm(dim)
        self.decoder_blocks = nn.ModuleList(
            Block(dim, num_heads, qkv_bias=True, mlp_ratio=mlp_ratio, init_values=layer_scale, drop_path=rate)
            for rate in rates[1]
        )
        self.norm2 = LayerNorm(dim)
        self.head = nn.Linear(dim, outputs)

    def forward(
        self, mask_token: Tensor, visible: Tensor, visible_positions: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Representations (B, M, E) and outputs (B, M, V) of hidden patches.

        Args:
            mask_token: (1, 1, E).
            visible: (B, K, E).
            visible_positions: (B, K, E).
            positions: (B, M, E), of the hidden patches.
        """
        x = mask_token.expand(*positions.shape[:2], -1)  # (B, M, E)
        for block in self.regressor_blocks:
            x = block(x, visible, positions, visible_positions)
        latent = self.norm(x)
        x = latent + positions
        for block in self.decoder_blocks:
            x = block(x)
        return latent, self.head(self.norm2(x))


@final
class RegressorBlock(nn.Module):
    """Hidden patches attend to visible ones and to themselves; visible ones stay as they are.

    Positions enter queries and keys, not values, and the MLP's residual connection starts after its norm.

    Args:
        dim: E.
        num_heads: Attention heads.
        mlp_ratio: Width of the MLP's inner layer over E.
        layer_scale: Initial scale of each branch; 0 for none.
        drop_path: Rate of stochastic depth.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = LayerNorm(dim), LayerNorm(dim), LayerNorm(dim)
        self.cross_attn = CrossAttention(dim, num_heads)
        self.norm2_cross = LayerNorm(dim)
        self.mlp_cross = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        scale = torch.full((dim,), layer_scale or 1.0)
        self.gamma_1_cross = nn.Parameter(scale, requires_grad=layer_scale > 0)
        self.gamma_2_cross = nn.Parameter(scale.clone(), requires_grad=layer_scale > 0)

    def forward(self, x: Tensor, visible: Tensor, positions: Tensor, visible_positions: Tensor) -> Tensor:
        """(B, M, E) hidden patches, from themselves, (B, K, E) visible ones and the positions of both."""
        context = torch.cat([visible, x], dim=1)  # (B, K + M, E)
        keys = self.norm1_k(context + torch.cat([visible_positions, positions], dim=1))
        attended = self.cross_attn(self.norm1_q(x + positions), keys, self.norm1_v(context))
        x = self.norm2_cross(x + self.drop_path(self.gamma_1_cross * attended))
        return x + self.drop_path(self.gamma_2_cross * self.mlp_cross(x))  # type: ignore[no-any-return]


@final
class CrossAttention(nn.Module):
    """Attention with projections of its own for queries, keys (which have no bias) and values.

    Args:
        dim: E.
        num_heads: Attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.fused_attn = num_heads, True
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """(B, M, E) from (B, M, E) queries, and keys and values of (B, K + M, E)."""
        q, k, v = (
            projected.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, M or K + M, E / heads)
            for projected in (
                F.linear(queries, self.q.weight, self.q_bias),
                self.k(keys),
                F.linear(values, self.v.weight, self.v_bias),
            )
        )
        if self.fused_attn:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = (q * q.shape[3] ** -0.5 @ k.transpose(2, 3)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]
