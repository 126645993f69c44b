"""SimMIM: hide large cells of an image behind a mask token, predict their raw pixels with one linear layer.

Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022.
Paper: https://arxiv.org/abs/2111.09886. Reference code: https://github.com/microsoft/SimMIM.

Shapes: B images of H x W pixels; N embedded patches of p x p; M output tokens of s x s (s = p for a ViT), K of them
decoded; C mask cells of c x c.

As the code has it: weights of a ViT are cut at one standard deviation; a ViT's mask token decays and its class token
and positions do not, a Swin's mask token does not; relative positions decay with both. (The code means to spare a
Swin's but looks for a name that none has.) Its ViT is `beit_base_patch16_224` with one table of relative positions for
all blocks; absolute positions, or a table per block, work as well. Rates here are per 256 images, there per 512.
The published runs of 800 epochs divide the rate by ten at epoch 700 (`schedule: steps_simmim`); those of 100 epochs,
which the defaults are, follow a cosine. Exact saving: only tokens with hidden pixels are decoded.
"""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import Fraction, OpenUnitInterval, PositiveInt
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.patches import patchify, unpatchify
from ssl_bench.pretraining.masks import require_patches
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.reconstruction import Reconstruction


class SimMIM(Method):
    """Masked image modelling: all patches are encoded, some as mask tokens, and one layer predicts what those hide.

    Args:
        backbone: A ViT, BEiT or Swin.
        mask_ratio: Part of the cells that is hidden, rounded up to whole cells.
        mask_cell: Pixels of a side of a mask cell; when not given, about 32, or a quarter of an image below 96 px.
        crop_scale: Smallest part of the image's area in the view.
        optim: AdamW, 1e-4 per 256 images, 10 epochs of warm-up, gradients clipped at 5.
    """

    kind = "masked image modelling"
    families = ("ViT", "BEiT", "Swin")

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: OpenUnitInterval = 0.6,
        mask_cell: PositiveInt | None = None,
        crop_scale: Fraction = 0.67,
        optim: Optim = Optim(
            "adamw",
            base_lr=1e-4,
            weight_decay=0.05,
            schedule="cosine_simmim",
            warmup_epochs=10,
            warmup_lr=5e-7,
            min_lr=5e-6,
            clip=5.0,
        ),
    ) -> None:
        super().__init__(backbone, optim)
        if not (backbone.is_vit or backbone.is_swin):
            raise UserError("simmim needs a ViT or Swin, whose patches can be masked; for others: simclr, byol, dino")
        size, stride = backbone.img_size, backbone.stride
        if size % stride:
            rule = f"is no multiple of an output token's {stride} px"
            raise UserError(f"--backbone.img_size {size} {rule}: try {math.ceil(size / stride) * stride}")
        require_patches(backbone, "simmim")
        if not 0 < mask_ratio < 1:
            raise UserError(f"--method.mask_ratio {mask_ratio} must lie between 0 and 1")
        self.mask_cell = fitting_cell(backbone, mask_cell)
        self.cells = (size // self.mask_cell) ** 2
        self.hidden_cells = math.ceil(self.cells * mask_ratio)
        if self.hidden_cells == self.cells:
            raise UserError(f"--method.mask_ratio {mask_ratio} leaves none of {self.cells} cells visible: try 0.6")
        # tokens that a cell can touch along a side, at worst where it begins in the last pixels of one
        reach = math.ceil((self.mask_cell - math.gcd(self.mask_cell, stride)) / stride) + 1
        self.decoded_tokens = min((size // stride) ** 2, self.hidden_cells * reach**2)
        self.crop_scale = crop_scale
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.embed_dim))
        self.decoder = nn.Linear(backbone.dim, stride**2 * backbone.channels)  # the code's 1 x 1 convolution
        self._initialize()
        spared = ("cls_token", "pos_embed") if backbone.is_vit else ("absolute_pos_embed",)
        names = {f"backbone.model.{name}" for name in spared} | (set() if backbone.is_vit else {"mask_token"})
        self.no_weight_decay = names & {name for name, _ in self.named_parameters()}

    def views(self) -> Views:
        return [View(self.backbone.img_size, scale=(self.crop_scale, 1.0), interpolation="bilinear")]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Mean absolute error over hidden pixels.

        ``noise``, (B, C), may be given: the cells with the highest are hidden. Or any ``mask``, (B, N).
        """
        images, mask, decoded = views[0], drawn.get("mask"), self.backbone.grid**2
        if mask is None:
            mask, decoded = self.draw_mask(len(images), drawn.get("noise")), self.decoded_tokens
        hidden = self.hidden_pixels(mask)  # (B, M, ss)
        where = hidden.any(2).int().argsort(dim=1, descending=True, stable=True)[:, :decoded, None]  # (B, K, 1)
        predicted = self.reconstruct(images, mask, where).float()  # (B, K, 3ss)
        target = patchify(images.float(), self.backbone.stride, "channel first").take_along_dim(where, 1)
        error = (predicted - target).abs().reshape(*where.shape[:2], 3, -1)  # (B, K, 3, ss)
        error = (error * hidden.take_along_dim(where, 1)[:, :, None]).sum()
        return error / (hidden.sum() + 1e-5) / 3

    def draw_mask(self, batch: int, noise: Tensor | None = None) -> Tensor:
        """(B, N), True for the patches of each image's ceil(C * ratio) hidden cells."""
        if noise is None:
            noise = torch.rand(batch, self.cells, device=self.mask_token.device)
        side, patches = math.isqrt(self.cells), self.mask_cell // self.backbone.patch_size
        cells = torch.zeros_like(noise, dtype=torch.bool).scatter(1, noise.topk(self.hidden_cells).indices, True)
        mask = cells.view(batch, side, side)
        return mask.repeat_interleave(patches, 1).repeat_interleave(patches, 2).flatten(1)

    def hidden_pixels(self, mask: Tensor) -> Tensor:
        """(B, N) -> (B, M, ss), True for the hidden ones among the pixels of each output token."""
        grid, patch = self.backbone.grid, self.backbone.patch_size
        pixels = mask.reshape(-1, 1, grid, grid).repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        return patchify(pixels, self.backbone.stride, "channel first")

    def reconstruct(self, images: Tensor, mask: Tensor, where: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, K, 3ss): pixels in (channel, row, column) order, as a pixel shuffle reads them."""
        tokens = self.backbone.tokens(images, mask=mask, mask_token=self.mask_token)[:, self.backbone.prefix :]
        return self.decoder(tokens.take_along_dim(where, 1))

    def masks(self, batch: int) -> Tensor:
        return self.draw_mask(batch)[None]

    @torch.no_grad()
    def reconstruction(self, images: Tensor, **drawn: Any) -> Reconstruction:
        mask = drawn["mask"] if "mask" in drawn else self.draw_mask(len(images), drawn.get("noise"))  # (B, N)
        everywhere = torch.arange((images.shape[-1] // self.backbone.stride) ** 2, device=images.device)
        predicted = self.reconstruct(images, mask, everywhere.expand(len(images), -1)[..., None])  # (B, M, 3ss)
        return Reconstruction(images, mask, unpatchify(predicted.float(), self.backbone.stride, "channel first"))

    @torch.no_grad()
    def _initialize(self) -> None:
        """Normal, 0.02: of a ViT everything, cut at one deviation, residual branches smaller with depth; of a Swin not
        its patch projection. The decoder stays PyTorch's."""
        model, is_vit = self.backbone.model, self.backbone.is_vit
        cut = 0.02 if is_vit else 2.0
        normal = partial(nn.init.trunc_normal_, std=0.02, a=-cut, b=cut)
        normal(self.mask_token)
        for module in model.modules():
            if isinstance(module, nn.Linear) or (is_vit and isinstance(module, nn.Conv2d)):
                normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        drawn = ("cls_token", "pos_embed") if is_vit else ("absolute_pos_embed", "relative_position_bias_table")
        for name, parameter in model.named_parameters():
            if name.endswith(drawn):
                normal(parameter)
        for depth, block in enumerate(model.blocks if is_vit else (), start=1):
            block.attn.proj.weight /= math.sqrt(2 * depth)
            block.mlp.fc2.weight /= math.sqrt(2 * depth)


def fitting_cell(backbone: Backbone, wanted: int | None) -> int:
    """Pixels of a side of a mask cell: whole patches, a whole number of them along the image."""
    size, patch = backbone.img_size, backbone.patch_size
    fitting = [cell for cell in range(patch, size, patch) if size % cell == 0]
    target = wanted if wanted is not None else 32 if size >= 96 else size // 4
    nearest = min(fitting, key=lambda cell: abs(cell - target))
    if wanted not in (None, nearest):
        rule = f"must be a multiple of the patch's {patch} px and divide the image's {size} px"
        raise UserError(f"--method.mask_cell {wanted} {rule}: try {nearest}")
    return nearest
