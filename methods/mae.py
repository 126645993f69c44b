"""MAE: hide three quarters of an image's patches, encode the rest, reconstruct the hidden pixels.

He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022.
Paper: https://arxiv.org/abs/2111.06377. Reference code: https://github.com/facebookresearch/mae.

Shapes: B images, N patches of p x p pixels, K visible, M = N - K hidden, D encoder and E decoder width.

Where the two disagree, this is the code with the README's options, which made the published models: base rate 1.5e-4,
normalised pixels as target. Exact savings: only visible patches are embedded, only hidden ones predicted.
`mask_sampling` and `encoder_mask_tokens` are the paper's ablations (table 1, f and c).
"""

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import Depth, Fraction, OpenUnitInterval, PositiveInt, Width
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.patches import patchify, sincos_positions
from ssl_bench.pretraining.masks import block_masks, hidden_mask, require_patches
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.reconstruction import Reconstruction, of_pixels


class MAE(Method):
    """Masked autoencoder: a ViT on the visible patches, a light decoder for the hidden ones.

    Args:
        backbone: A ViT with a class token; its positions become fixed sine-cosine ones.
        mask_ratio: Part of the patches that is hidden.
        decoder_dim: E, the decoder's width.
        decoder_depth: Its blocks.
        decoder_heads: Its attention heads.
        norm_pix: Predict each patch's pixels relative to that patch's mean and deviation.
        crop_scale: Smallest part of the image's area in the view.
        mask_sampling: Hidden anywhere, as rectangles of BEiT's sizes, or all but one of every four in a regular grid.
        encoder_mask_tokens: Show the encoder a token in place of each hidden patch, rather than nothing.
        optim: AdamW with betas 0.9 and 0.95, 1.5e-4 per 256 images, 40 epochs of warm-up.
    """

    kind = "masked image modelling"
    families = ("ViT",)

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: OpenUnitInterval = 0.75,
        decoder_dim: Width = 512,
        decoder_depth: Depth = 8,
        decoder_heads: PositiveInt = 16,
        norm_pix: bool = True,
        crop_scale: Fraction = 0.2,
        mask_sampling: Literal["random", "block", "grid"] = "random",
        encoder_mask_tokens: bool = False,
        optim: Optim = Optim("adamw", base_lr=1.5e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=40),
    ) -> None:
        super().__init__(backbone, optim)
        if not backbone.is_vit:
            raise UserError("mae needs a ViT, whose patches can be left out; otherwise: simclr, byol, dino")
        if backbone.has_relative_positions or backbone.model.cls_token is None or backbone.model.pos_embed is None:
            name = backbone.options.name
            raise UserError(f"mae needs a class token and absolute positions; for {name}: simmim, simclr")
        require_patches(backbone, "mae")
        if not 0 < mask_ratio < 1:
            raise UserError(f"--method.mask_ratio {mask_ratio} must lie between 0 and 1")
        if min(decoder_dim, decoder_heads) < 1 or decoder_dim % decoder_heads:
            raise UserError(f"--method.decoder_dim {decoder_dim} is no multiple of decoder_heads {decoder_heads}")
        if int(backbone.grid**2 * (1 - mask_ratio)) < 1:
            raise UserError(f"--method.mask_ratio {mask_ratio} leaves none of {backbone.grid**2} patches visible")
        if mask_sampling == "grid" and (mask_ratio != 0.75 or backbone.grid % 2):
            raise UserError("--method.mask_sampling grid: mask_ratio 0.75 and an even number of patches along a side")
        self.mask_ratio, self.norm_pix, self.crop_scale = mask_ratio, norm_pix, crop_scale
        self.mask_sampling, self.encoder_mask_tokens = mask_sampling, encoder_mask_tokens
        layer_norm: Any = partial(nn.LayerNorm, eps=1e-6)
        mlp_ratio = backbone.args.get("mlp_ratio", 4.0)  # one for encoder and decoder
        backbone.fix_positions("mae")
        positions = sincos_positions(decoder_dim, backbone.grid, "mae")  # (N, E)
        positions = torch.cat([positions.new_zeros(1, decoder_dim), positions])[None]  # (1, 1 + N, E)
        self.decoder_embed = nn.Linear(backbone.dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.dim if encoder_mask_tokens else decoder_dim))
        self.decoder_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.decoder_blocks = nn.Sequential(
            *(
                Block(decoder_dim, decoder_heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=layer_norm)
                for _ in range(decoder_depth)
            )
        )
        self.decoder_norm = layer_norm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, backbone.patch_size**2 * backbone.channels)
        self._initialize()

    def views(self) -> Views:
        return [View(self.backbone.img_size, scale=(self.crop_scale, 1.0))]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Mean squared error over hidden patches; ``noise``, (B, N), may be given: the lowest stay visible."""
        images = views[0]
        keep, hidden = self.split_patches(len(images), drawn.get("noise"))  # (B, K), (B, M)
        predicted = self.reconstruct(images, keep, hidden).float()  # (B, M, 3pp)
        return masked_patches(predicted, images, hidden, self.backbone.patch_size, self.norm_pix)

    def split_patches(self, batch: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Random visible (B, K) and hidden (B, M) patches of each image, K = int(N * (1 - ratio))."""
        grid = self.backbone.grid
        kept = int(grid**2 * (1 - self.mask_ratio))
        if noise is None:
            noise = torch.rand(batch, grid**2, device=self.mask_token.device)
            if self.mask_sampling == "block":  # 16 patches at least, as in BEiT
                noise = noise + block_masks(batch, grid, grid**2 - kept, 16, exact=True).to(noise.device)
            elif self.mask_sampling == "grid":
                odd = torch.arange(grid, device=noise.device) % 2 == 1
                noise = noise + (odd[:, None] | odd).flatten()
        order = noise.argsort(dim=1)
        return order[:, :kept], order[:, kept:]

    def reconstruct(self, images: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, M, 3pp), the decoder's prediction of the hidden patches from the visible ones."""
        if self.encoder_mask_tokens:
            mask = hidden_mask(hidden, self.backbone.grid**2)
            tokens = self.backbone.tokens(images, mask=mask, mask_token=self.mask_token)  # (B, P + N, D)
            encoded = self.decoder_embed(tokens)  # (B, P + N, E)
            full = encoded[:, self.backbone.prefix :]
        else:
            encoded = self.decoder_embed(self.backbone.tokens(images, keep=keep))  # (B, P + K, E)
            visible = encoded[:, self.backbone.prefix :]
            where = keep[..., None].expand(-1, -1, visible.shape[2])
            full = self.mask_token.to(visible.dtype).repeat(len(images), self.backbone.grid**2, 1)  # (B, N, E)
            full = full.scatter(1, where, visible)
        full = torch.cat([encoded[:, :1], full], dim=1) + self.decoder_pos_embed  # (B, 1 + N, E)
        decoded = self.decoder_blocks(full)[:, 1:].take_along_dim(hidden[..., None], 1)  # (B, M, E)
        return self.decoder_pred(self.decoder_norm(decoded))

    def masks(self, batch: int) -> Tensor:
        return hidden_mask(self.split_patches(batch)[1], self.backbone.grid**2)[None]

    @torch.no_grad()
    def reconstruction(self, images: Tensor, **drawn: Any) -> Reconstruction:
        keep, hidden = self.split_patches(len(images), drawn.get("noise"))
        predicted = self.reconstruct(images, keep, hidden)
        return of_pixels(images, hidden, predicted, self.backbone.patch_size, self.norm_pix)

    def _initialize(self) -> None:
        """Xavier for every Linear (fused qkv as one matrix) and the patch projection, N(0, 0.02) for the two tokens."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.backbone.model.patch_embed.proj.weight.data.flatten(1))
        nn.init.normal_(self.backbone.model.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)


def masked_patches(predicted: Tensor, images: Tensor, hidden: Tensor, patch_size: int, norm_pix: bool = True) -> Tensor:
    """Mean squared error of what is predicted of hidden patches.

    Args:
        predicted: (B, M, 3pp), pixels in (row, column, channel) order.
        images: (B, 3, H, W).
        hidden: (B, M) numbers of the hidden patches, row by row.
        patch_size: p, pixels of a patch's side.
        norm_pix: The pixels of each patch are standardised.
    """
    target = patch_pixels(images, patch_size, norm_pix).take_along_dim(hidden[..., None], 1)  # (B, M, 3pp)
    return F.mse_loss(predicted, target)


def patch_pixels(images: Tensor, patch_size: int, norm_pix: bool) -> Tensor:
    """(B, 3, H, W) -> (B, N, 3pp): pixels in (row, column, channel) order, standardised per patch if so wished."""
    target = patchify(images.float(), patch_size, "channel last")
    if norm_pix:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)  # unbiased
        target = (target - mean) / (variance + 1e-6).sqrt()
    return target
