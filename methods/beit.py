"""BEiT: hide blocks of an image's patches and predict which visual tokens a frozen tokenizer has for them.

Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022.
Paper: https://arxiv.org/abs/2106.08254. Reference code: https://github.com/microsoft/unilm/tree/master/beit.

Shapes: B images, N patches of p x p pixels, M hidden patches in the whole batch, D features, V visual tokens.

Where the two disagree, this is the code with the options of its commands: betas of 0.9 and 0.999, a rate of 1.5e-3
whatever the batch, weight decay on the mask token and on tables of relative positions, the mean over all hidden
patches of a device's batch, of which an image has as many as its blocks left. The paper's network is
`beit_base_patch16_224` with one table of relative positions for all blocks; a table per block, absolute positions
(released as pt1k_800ep, without LayerScale) and plain ViTs work as well.
The last layer knows visual tokens rather than things: linear probes are best in the middle of the network.
Published visual tokens are DALL-E's, of a Lanczos copy of the crop; here its input is a bicubic copy of the view, which
is cropped before its colours change. Without a tokenizer, pixels normalised per patch are regressed: the paper's
ablation. Exact saving: only hidden patches are decoded.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import Fraction, Hue, NonNegativeFloat, OpenUnitInterval, PathText, PositiveInt
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.patches import patchify, unpatchify
from ssl_bench.models.tokenizers import PatchTokens, load_tokenizer
from ssl_bench.pretraining.masks import block_masks, require_patches
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.reconstruction import NORMALISED, Reconstruction

CAPTION = (
    "Predicted are the hidden patches' visual tokens: the tokenizer's decoder draws them, "
    "beside the visible patches' own."
)
IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class BEiT(Method):
    """Masked image modelling with visual tokens as targets; all patches are encoded, hidden ones as a mask token.

    Args:
        backbone: A BEiT (the paper's) or ViT.
        tokenizer: What is predicted: `pixels`; visual tokens of the dvae run in this folder, of DALL-E's encoder in
            this file (.pth, .safetensors; the paper's), or of a class package.module:Class.
        mask_ratio: Part of the patches to hide, of which blocks may fall short: 75 of 196, 25 of 64.
        min_block: Patches of the smallest block; when not given, 16 of 196, and in proportion.
        crop_scale: Smallest part of the image's area in the view.
        jitter: Strengths of brightness, contrast, saturation and hue, in every view.
        statistics: Mean and deviation that views are normalised with; a tokenizer sees pixels.
        optim: AdamW, 1.5e-3 whatever the batch (2048 published), 10 epochs of warm-up, gradients clipped to 3.
    """

    kind = "masked image modelling"
    families = ("ViT", "BEiT")

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: PathText = "pixels",
        mask_ratio: OpenUnitInterval = 0.383,
        min_block: PositiveInt | None = None,
        crop_scale: Fraction = 0.08,
        jitter: tuple[NonNegativeFloat, NonNegativeFloat, NonNegativeFloat, Hue] = (0.4, 0.4, 0.4, 0.0),
        statistics: tuple[tuple[float, ...], tuple[float, ...]] = IDENTITY,
        optim: Optim = Optim(
            "adamw",
            base_lr=1.5e-3,
            scaling="none",
            weight_decay=0.05,
            schedule="cosine_dino",
            warmup_epochs=10,
            warmup_lr=1e-6,
            min_lr=1e-5,
            clip=3.0,
        ),
    ) -> None:
        super().__init__(backbone, optim)
        if not backbone.is_vit:
            raise UserError(
                "beit needs a BEiT or ViT, whose patches can be hidden; for a Swin: simmim, for any: simclr"
            )
        require_patches(backbone, "beit")
        patches = backbone.grid**2
        self.hidden = round(patches * mask_ratio)  # at most, of an image
        if not 0 < self.hidden < patches:
            raise UserError(f"--method.mask_ratio {mask_ratio} must hide some of {patches} patches and leave some")
        self.min_block = min_block if min_block is not None else max(1, round(16 * patches / 196))
        if self.min_block > self.hidden:
            raise UserError(f"--method.min_block {self.min_block} is more than the {self.hidden} patches to hide")
        self.crop_scale, self.jitter = crop_scale, jitter
        self.tokenizer: PatchTokens | None = None
        if tokenizer != "pixels":
            self.tokenizer = PatchTokens(load_tokenizer(tokenizer), backbone.grid, *statistics)
        outputs = self.tokenizer.vocabulary if self.tokenizer else backbone.channels * backbone.patch_size**2
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.dim))
        self.lm_head = nn.Linear(backbone.dim, outputs)
        self._initialize()
        spared = {"backbone.model.cls_token", "backbone.model.pos_embed"}
        self.no_weight_decay = spared & {name for name, p in self.named_parameters() if p.requires_grad}

    def views(self) -> Views:
        brightness, contrast, saturation, hue = self.jitter
        jitter = brightness, contrast, saturation, hue
        return [View(self.backbone.img_size, scale=(self.crop_scale, 1.0), jitter=jitter, jitter_p=1.0)]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Cross-entropy with the hidden patches' visual tokens, or squared error of their normalised pixels.

        ``mask``, (B, N), and ``visual_tokens``, (B, N), may be given.
        """
        images = views[0]
        mask = drawn["mask"] if "mask" in drawn else self.draw_mask(len(images))  # (B, N), on the host
        where = mask.flatten().nonzero()[:, 0]  # (M,); counted where masks are drawn, so no device is waited for
        mask, where = (values.to(images.device, non_blocking=True) for values in (mask, where))
        predicted = self.predict(images, mask).flatten(0, 1)[where]  # (M, D)
        predicted = self.lm_head(predicted).float()  # (M, V or 3pp)
        visual_tokens = drawn.get("visual_tokens")
        if visual_tokens is None and self.tokenizer is not None:
            visual_tokens = self.tokenizer(images)
        if visual_tokens is not None:
            return F.cross_entropy(predicted, visual_tokens.flatten()[where])
        cells = patchify(images.float(), self.backbone.patch_size, "channel last").flatten(0, 1)[where]  # (M, 3pp)
        variance, mean = torch.var_mean(cells, dim=-1, keepdim=True)
        return F.mse_loss(predicted, (cells - mean) / (variance + 1e-6).sqrt())

    def draw_mask(self, batch: int) -> Tensor:
        """(B, N) masks of blocks, True where hidden, on the host."""
        return block_masks(batch, self.backbone.grid, self.hidden, min_area=self.min_block)

    def predict(self, images: Tensor, mask: Tensor) -> Tensor:
        """(B, N, D) of all patches, some of which are hidden."""
        tokens = self.backbone.tokens(images, mask=mask, mask_token=self.mask_token)
        return tokens[:, self.backbone.prefix :]

    def masks(self, batch: int) -> Tensor:
        return self.draw_mask(batch)[None]

    @torch.no_grad()
    def reconstruction(self, images: Tensor, **drawn: Any) -> Reconstruction:
        mask = (drawn["mask"] if "mask" in drawn else self.draw_mask(len(images))).to(images.device)
        predicted = self.lm_head(self.predict(images, mask)).float()  # (B, N, V or 3pp)
        if self.tokenizer is not None:
            visual_tokens = torch.where(mask, predicted.argmax(2), self.tokenizer(images))
            return Reconstruction(images, mask, self.tokenizer.images(visual_tokens, images.shape[-1]), CAPTION)
        cells = patchify(images.float(), self.backbone.patch_size, "channel last")  # (B, N, 3pp)
        variance, mean = torch.var_mean(cells, dim=-1, keepdim=True)
        cells = torch.where(mask[..., None], predicted * (variance + 1e-6).sqrt() + mean, cells)
        return Reconstruction(images, mask, unpatchify(cells, self.backbone.patch_size, "channel last"), NORMALISED)

    @torch.no_grad()
    def _initialize(self) -> None:
        """Normal, 0.02, cut at one deviation; the last layer of each branch is the smaller the deeper it is."""
        model = self.backbone.model
        normal = partial(nn.init.trunc_normal_, std=0.02, a=-0.02, b=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for token in (self.mask_token, model.cls_token, model.pos_embed):
            if token is not None:
                normal(token)
        for depth, block in enumerate(model.blocks, start=1):
            block.attn.proj.weight /= math.sqrt(2 * depth)
            block.mlp.fc2.weight /= math.sqrt(2 * depth)
