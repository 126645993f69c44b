"""CAE: from an image's visible patches predict the representation of the hidden ones, and from that what they show.

Chen et al., "Context Autoencoder for Self-Supervised Representation Learning", IJCV 2023.
Paper: https://arxiv.org/abs/2202.03026. Reference code: https://github.com/lxtGH/CAE.

Shapes: B images, N patches of p x p pixels, K visible, M = N - K hidden, D encoder and E neck width, V visual tokens.

Where the two disagree, this is the code (an absolute rate, betas of 0.9 and 0.999), except that hidden patches are
encoded with the current weights, as in the paper; the code's are one step old (`stale_target`). In both, the encoder
drops paths there too. The published visual tokens are DALL-E's, of a Lanczos crop of the photograph; here its input is
a bicubic copy of the view. Without any tokenizer, pixels normalised per patch are regressed as in MAE, which is ours.

Longer than most methods, as two networks beside the encoder, two losses and three kinds of targets are its own.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import (
    Depth,
    Fraction,
    NonNegativeFloat,
    OpenUnitInterval,
    PathText,
    PositiveInt,
    Width,
)
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.cae_regressor import PretextNeck, RegressorBlock
from ssl_bench.models.patches import patchify, sincos_positions
from ssl_bench.models.tokenizers import PatchTokens, load_tokenizer
from ssl_bench.pretraining.masks import block_masks, hidden_mask, require_patches
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.reconstruction import Reconstruction, of_pixels

CAPTION = (
    "Predicted are the hidden patches' visual tokens: the tokenizer's decoder draws them, "
    "beside the visible patches' own."
)
IDENTITY = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class CAE(Method):
    """Context autoencoder: encoder on visible patches, regressor to hidden ones, decoder to their visual tokens.

    Args:
        backbone: A ViT, or a BEiT with absolute positions (the paper's), with a class token.
        tokenizer: What the decoder predicts: `pixels`; visual tokens of the dvae run in this folder, of DALL-E's
            encoder in this file (.pth, .safetensors; the paper's), or of a class package.module:Class.
        mask_ratio: Part of the patches that is hidden, in blocks of at least 16 of 196.
        decoder_dim: E, width of regressor and decoder.
        regressor_depth: Blocks in which hidden patches look at visible ones.
        decoder_depth: Blocks in which hidden patches look at each other.
        decoder_heads: Attention heads of both.
        layer_scale: Initial scale of each branch of both; 0 for none. 1e-5 for a ViT-L.
        align_weight: Of the distance between predicted and encoded hidden patches.
        stale_target: Encode hidden patches with the weights before the last step, as the official code.
        fix_init: Initialise as BEiT, deep layers smaller, rather than by Xavier; meant for a ViT-L.
        crop_scale: Smallest part of the image's area in the view.
        statistics: Mean and deviation that views are normalised with; a tokenizer sees pixels.
        optim: AdamW, 1.5e-3 whatever the batch (2048 published), 20 epochs of warm-up, gradients clipped to 3.
    """

    kind = "masked image modelling"
    families = ("ViT",)

    positions: Tensor  # (N, E)

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: PathText = "pixels",
        mask_ratio: OpenUnitInterval = 0.5,
        decoder_dim: Width = 768,
        regressor_depth: Depth = 4,
        decoder_depth: Depth = 4,
        decoder_heads: PositiveInt = 12,
        layer_scale: NonNegativeFloat = 0.1,
        align_weight: NonNegativeFloat = 2.0,
        stale_target: bool = False,
        fix_init: bool = False,
        crop_scale: Fraction = 0.08,
        statistics: tuple[tuple[float, ...], tuple[float, ...]] = IDENTITY,
        optim: Optim = Optim("adamw", 1.5e-3, "none", schedule="cosine_dino", warmup_epochs=20, min_lr=1e-5, clip=3.0),
    ) -> None:
        super().__init__(backbone, optim)
        if not backbone.is_vit:
            raise UserError("cae needs a ViT, whose patches can be left out; otherwise: simclr, byol, dino")
        if backbone.has_relative_positions or backbone.model.cls_token is None or backbone.model.pos_embed is None:
            name = backbone.options.name
            raise UserError(f"cae needs a class token and absolute positions; for {name}: simmim, simclr")
        require_patches(backbone, "cae")
        patches = backbone.grid**2
        self.hidden = round(patches * mask_ratio)  # M
        if not 0 < self.hidden < patches:
            raise UserError(f"--method.mask_ratio {mask_ratio} must hide some of {patches} patches and leave some")
        if min(decoder_dim, decoder_heads) < 1 or decoder_dim % decoder_heads:
            raise UserError(f"--method.decoder_dim {decoder_dim} is no multiple of decoder_heads {decoder_heads}")
        self.align_weight, self.fix_init, self.crop_scale = align_weight, fix_init, crop_scale
        backbone.fix_positions("moco")
        self.register_buffer("positions", sincos_positions(decoder_dim, backbone.grid, "moco"), persistent=False)
        self.tokenizer: PatchTokens | None = None
        if tokenizer != "pixels":
            self.tokenizer = PatchTokens(load_tokenizer(tokenizer), backbone.grid, *statistics)
        outputs = self.tokenizer.vocabulary if self.tokenizer else backbone.channels * backbone.patch_size**2
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        if decoder_dim != backbone.dim:
            self.encoder_to_decoder = nn.Linear(backbone.dim, decoder_dim)
            self.encoder_to_decoder_norm = LayerNorm(decoder_dim)
        mlp_ratio, drop_path = backbone.args.get("mlp_ratio", 4.0), backbone.options.drop_path
        depths = regressor_depth, decoder_depth
        self.pretext_neck = PretextNeck(
            decoder_dim, outputs, *depths, decoder_heads, mlp_ratio, layer_scale=layer_scale, drop_path=drop_path
        )
        self._initialize()
        self.teacher = copy.deepcopy(backbone).requires_grad_(False) if stale_target else None

    def views(self) -> Views:
        return [View(self.backbone.img_size, scale=(self.crop_scale, 1.0))]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Distances from visual tokens (or pixels) and from encoded hidden patches.

        ``mask``, (B, N), the same number of True in each row, and ``visual tokens``, (B, N), may be given.
        """
        images = views[0]
        keep, hidden = self.split_patches(len(images), drawn.get("mask"))  # (B, K), (B, M), row by row
        latent, predicted = self.predict(images, keep, hidden)  # (B, M, E), (B, M, V or 3pp)
        target = self.encode_hidden(images, hidden)  # (B, M, E)
        align = F.mse_loss(latent.float(), target.float())
        return self.pretext(predicted.float(), images, hidden, drawn.get("visual_tokens")) + self.align_weight * align

    def split_patches(self, batch: int, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Visible (B, K) and hidden (B, M) patches of each image, both in the image's order."""
        count = self.hidden
        if mask is None:
            grid = self.backbone.grid
            mask = block_masks(batch, grid, count, min_area=max(1, round(16 * grid**2 / 196)), exact=True)
            mask = mask.to(self.mask_token.device, non_blocking=True)
        else:
            count = int(mask[0].sum())
        order = mask.byte().argsort(dim=1, stable=True)
        return order[:, :-count], order[:, -count:]

    def predict(self, images: Tensor, keep: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, M, E) representations of the hidden patches and (B, M, V) logits, or pixels, from the visible ones."""
        visible = self._encode(self.backbone, images, keep)  # (B, K, E)
        where = self.positions[keep], self.positions[hidden]
        return self.pretext_neck(self.mask_token, visible, *where)  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode_hidden(self, images: Tensor, hidden: Tensor) -> Tensor:
        """(B, M, E), the encoder's own representations of the hidden patches, which see no visible ones."""
        return self._encode(self.teacher if self.teacher is not None else self.backbone, images, hidden)

    def _encode(self, backbone: Backbone, images: Tensor, patches: Tensor) -> Tensor:
        tokens = backbone.tokens(images, keep=patches)[:, backbone.prefix :]
        if tokens.shape[2] != self.mask_token.shape[2]:
            tokens = self.encoder_to_decoder_norm(self.encoder_to_decoder(tokens))
        return tokens

    def pretext(self, predicted: Tensor, images: Tensor, hidden: Tensor, visual_tokens: Tensor | None = None) -> Tensor:
        """Cross-entropy of (B, M, V) logits with visual tokens; or squared error of pixels normalised per patch."""
        if visual_tokens is None and self.tokenizer is not None:
            visual_tokens = self.tokenizer(images)
        if visual_tokens is not None:
            return F.cross_entropy(predicted.flatten(0, 1), visual_tokens.gather(1, hidden).flatten())
        target = patchify(images.float(), self.backbone.patch_size, "channel last")  # (B, N, 3pp)
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
        return F.mse_loss(predicted, target.take_along_dim(hidden[..., None], 1))

    def masks(self, batch: int) -> Tensor:
        return hidden_mask(self.split_patches(batch)[1], self.backbone.grid**2)[None]

    @torch.no_grad()
    def reconstruction(self, images: Tensor, **drawn: Any) -> Reconstruction:
        keep, hidden = self.split_patches(len(images), drawn.get("mask"))
        predicted = self.predict(images, keep, hidden)[1].float()  # (B, M, V or 3pp)
        if self.tokenizer is None:
            return of_pixels(images, hidden, predicted, self.backbone.patch_size, normalised=True)
        visual_tokens = self.tokenizer(images).scatter(
            1, hidden, predicted.argmax(2)
        )  # (B, N), the visible patches' own
        shown = self.tokenizer.images(visual_tokens, images.shape[-1])
        return Reconstruction(images, hidden_mask(hidden, visual_tokens.shape[1]), shown, CAPTION)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.teacher is not None:  # the next step's targets are then one step old
            self.teacher.load_state_dict(self.backbone.state_dict())

    def _initialize(self) -> None:
        """Xavier for each Linear, fused qkv as one matrix; the rest, or all by `fix_init`, N(0, 0.02) cut at 0.02.

        `fix_init` also divides what ends each branch of a block by the root of twice the block's number, in encoder,
        regressor and decoder; as in the official code, it leaves `encoder_to_decoder` at PyTorch's initialisation.
        """
        left = {self.encoder_to_decoder} if self.fix_init and hasattr(self, "encoder_to_decoder") else set()
        for module in self.modules():
            if module in left:
                continue
            if isinstance(module, nn.Linear | nn.Conv2d):
                if isinstance(module, nn.Linear) and not self.fix_init:
                    nn.init.xavier_uniform_(module.weight)
                else:
                    _truncated(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        _truncated(self.backbone.model.cls_token)
        _truncated(self.mask_token)
        if self.fix_init:
            neck = self.pretext_neck
            for blocks in (self.backbone.model.blocks, neck.regressor_blocks, neck.decoder_blocks):
                for number, block in enumerate(blocks, 1):
                    regresses = isinstance(block, RegressorBlock)
                    attention, mlp = (block.cross_attn, block.mlp_cross) if regresses else (block.attn, block.mlp)
                    attention.proj.weight.data /= math.sqrt(2 * number)
                    mlp.fc2.weight.data /= math.sqrt(2 * number)


def _truncated(tensor: Tensor) -> None:
    nn.init.trunc_normal_(tensor, std=0.02, a=-0.02, b=0.02)
