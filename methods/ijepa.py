"""I-JEPA: from one visible block of an image, predict a moving average's features of several other blocks of it.

Assran et al., "Self-Supervised Learning from Images with a Joint-Embedding Predictive Architecture", CVPR 2023.
Paper: https://arxiv.org/abs/2301.08243. Reference code: https://github.com/facebookresearch/ijepa.

Shapes: B images, N patches on a g x g grid, K of them context, L target blocks of M patches, D encoder and E predictor
width.

Where the two disagree, this is the code with the configuration of its ViT-H/14: smooth L1 rather than squared distance,
and blocks as it draws them. One number decides both area and aspect of a target block, which is the same for the whole
batch; no block is as wide as the image or reaches its last row and column, so that a context of 0.85 to 1 of the area
always is the upper left corner (`whole_grid` for blocks anywhere). Contexts are cut to the shortest of the batch, from
below. Rate and weight decay are a step ahead of the update; the rate does not scale with the batch.
A loss that rises after the first epochs is normal: targets gain in spread. A loss near 0 is collapse.
Here and not there: sizes of blocks depend on the step alone, positions on the seed, too.
"""

import math
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_bench.augment.views import View, Views
from ssl_bench.config.constraints import (
    Ascending,
    Depth,
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    ScaleRange,
    UnitInterval,
    Width,
)
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.patches import sincos_positions
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.masks import hidden_mask
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.precision import float32_at_least

TRIES = 20  # at a context, before the last target block counts as visible


class IJEPA(Method):
    """Prediction in feature space between blocks of one image; what is evaluated is the teacher.

    Args:
        backbone: A ViT without class token; its positions become fixed sine-cosine ones.
        predictor_dim: E, the predictor's width.
        predictor_depth: Its blocks.
        predictor_heads: Its attention heads; the encoder's when not given.
        target_blocks: L, predicted blocks of an image; they may overlap.
        target_scale: Part of the image's area that one covers.
        target_aspect: Its height over its width.
        context_scale: Part of the area of the visible block, a square, before the targets are taken out of it.
        min_keep: A block has more patches than that; 10 is for 14 x 14 patches or more, 4 for 8 x 8.
        whole_grid: Blocks may reach the last row and column of patches, and be as wide as the image.
        momentum: Of the teacher in the first step; a line leads to 1.
        crop_scale: Smallest part of the image's area in the view.
        optim: AdamW, 1e-3 whatever the batch, weight decay from 0.04 to 0.4, 40 epochs of warm-up.
    """

    kind = "joint-embedding prediction"
    families = ("ViT",)

    def __init__(
        self,
        backbone: Backbone,
        predictor_dim: Width = 384,
        predictor_depth: Depth = 12,
        predictor_heads: PositiveInt | None = None,
        target_blocks: Annotated[int, Range(min=1, max=100)] = 4,
        target_scale: ScaleRange = (0.15, 0.2),
        target_aspect: Annotated[tuple[PositiveFloat, PositiveFloat], Ascending()] = (0.75, 1.5),
        context_scale: ScaleRange = (0.85, 1.0),
        min_keep: NonNegativeInt = 10,
        whole_grid: bool = False,
        momentum: UnitInterval = 0.996,
        crop_scale: Fraction = 0.3,
        optim: Optim = Optim(
            "adamw",
            base_lr=1e-3,
            scaling="none",
            weight_decay=0.04,
            weight_decay_end=0.4,
            schedule="cosine_ahead",
            warmup_epochs=40,
            warmup_lr=2e-4,
            min_lr=1e-6,
        ),
    ) -> None:
        super().__init__(backbone, optim)
        if not backbone.is_vit or backbone.has_relative_positions or backbone.model.pos_embed is None:
            raise UserError("ijepa needs a ViT with absolute positions, so that patches can be left out: simclr, byol")
        if backbone.prefix:
            remedy = "--backbone.timm_args '{class_token: false, global_pool: avg}'"
            raise UserError(f"ijepa needs a ViT without class token and registers: {remedy}; with them: mae, ibot")
        heads = predictor_heads or backbone.model.blocks[0].attn.num_heads
        if predictor_dim % heads:
            raise UserError(f"--method.predictor_dim {predictor_dim} is no multiple of its {heads} heads")
        self.target_blocks, self.min_keep, self.whole_grid = target_blocks, min_keep, whole_grid
        self.target_scale, self.target_aspect, self.context_scale = target_scale, target_aspect, context_scale
        self.crop_scale = crop_scale
        for name, scale, aspect in (("target", target_scale, target_aspect), ("context", context_scale, (1.0, 1.0))):
            smallest = min(math.prod(self.block_size(i / 1000, scale, aspect)) for i in range(1001))
            if smallest <= min_keep:
                patches = f"of {backbone.grid}x{backbone.grid} patches can have {smallest}, which must be above"
                raise UserError(f"--method.{name}_scale {tuple(scale)}: a block {patches} min_keep {min_keep}")
        layer_norm: Any = partial(nn.LayerNorm, eps=1e-6)
        backbone.fix_positions("mae")
        positions = sincos_positions(predictor_dim, backbone.grid, "mae")[None]  # (1, N, E)
        self.predictor_embed = nn.Linear(backbone.dim, predictor_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, predictor_dim))
        self.predictor_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.predictor_blocks = nn.Sequential(
            *(Block(predictor_dim, heads, qkv_bias=True, norm_layer=layer_norm) for _ in range(predictor_depth))
        )
        self.predictor_norm = layer_norm(predictor_dim)
        self.predictor_proj = nn.Linear(predictor_dim, backbone.dim)
        self._initialize()
        self.teacher = EMATeacher(backbone, momentum, linear=True)

    @property
    def evaluated(self) -> nn.Module:
        return self.teacher.module

    def views(self) -> Views:
        return [View(self.backbone.img_size, scale=(self.crop_scale, 1.0), interpolation="bilinear", flip=0.0)]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Smooth L1, mean over everything; ``context``, (B, K), and ``targets``, (B, L, M), may be given as indices."""
        images = views[0]
        context, targets = (drawn["context"], drawn["targets"]) if "context" in drawn else self.draw_blocks(len(images))
        context, targets = (where.to(images.device, non_blocking=True) for where in (context, targets))
        predicted = self.predict(self.backbone.tokens(images, keep=context), context, targets)  # (B, L, M, D)
        wanted = self.wanted(images).take_along_dim(targets.flatten(1)[..., None], 1)  # (B, LM, D)
        return F.smooth_l1_loss(float32_at_least(predicted).flatten(1, 2), wanted)

    @torch.no_grad()
    def wanted(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D): the teacher's tokens of the whole image, each normalised once more."""
        network: Any = self.teacher.module
        tokens = float32_at_least(network.tokens(images))
        with torch.autocast(images.device.type, enabled=False):
            return F.layer_norm(tokens, tokens.shape[-1:])

    def predict(self, encoded: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """(B, K, D) of the context -> (B, L, M, D) of the target blocks, each block on its own."""
        positions = self.predictor_pos_embed[0]  # (N, E)
        visible = self.predictor_embed(encoded) + positions[context]  # (B, K, E)
        asked = self.mask_token + positions[targets]  # (B, L, M, E)
        visible = visible[:, None].expand(-1, targets.shape[1], -1, -1)  # (B, L, K, E)
        tokens = torch.cat([visible, asked.to(visible.dtype)], dim=2)  # (B, L, K + M, E)
        tokens = self.predictor_blocks(tokens.flatten(0, 1)).unflatten(0, targets.shape[:2])
        return self.predictor_proj(self.predictor_norm(tokens[:, :, context.shape[1] :]))  # type: ignore[no-any-return]

    def draw_blocks(self, batch: int) -> tuple[Tensor, Tensor]:
        """(B, K) and (B, L, M) patches of context and target blocks, in order, on the host."""
        sizes = torch.rand(2, generator=torch.Generator().manual_seed(self.global_step)).tolist()
        target = self.block_size(sizes[0], self.target_scale, self.target_aspect)
        block = self.block_size(sizes[1], self.context_scale, (1.0, 1.0))
        targets = self.draw_places((batch, self.target_blocks), target)  # (B, L, N)
        context = torch.zeros(batch, targets.shape[2], dtype=torch.bool)
        left = torch.arange(batch)  # images without a context
        for spared in range(self.target_blocks + 1):  # so many of the last target blocks may be visible
            free = ~targets[left, : self.target_blocks - spared].any(1, keepdim=True)  # (A, 1, N)
            tries = self.draw_places((len(left), TRIES), block) & free  # (A, T, N)
            fits = tries.sum(2) > self.min_keep
            found, chosen = fits.any(1), fits.int().argmax(1)
            context[left[found]] = tries[found, chosen[found]]
            left = left[~found]
            if not len(left):
                break
        shortest = int(context.sum(1).min())
        first = [mask.int().argsort(dim=-1, descending=True, stable=True) for mask in (context, targets)]
        return first[0][:, :shortest], first[1][..., : math.prod(target)]

    def block_size(self, drawn: float, scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        """Height and width in patches, of one number in [0, 1] for both area and aspect."""
        grid = self.backbone.grid
        area = int(grid**2 * (scale[0] + drawn * (scale[1] - scale[0])))
        ratio = aspect[0] + drawn * (aspect[1] - aspect[0])
        largest = grid if self.whole_grid else grid - 1
        return min(round(math.sqrt(area * ratio)), largest), min(round(math.sqrt(area / ratio)), largest)

    def draw_places(self, shape: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """(..., N) bool, True inside blocks of a size at random places."""
        grid = self.backbone.grid
        inside = []
        for side in size:
            start = torch.randint(grid - side + self.whole_grid, (*shape, 1))
            inside.append((torch.arange(grid) >= start) & (torch.arange(grid) < start + side))  # (..., g)
        return (inside[0][..., :, None] & inside[1][..., None, :]).flatten(-2)

    def masks(self, batch: int) -> Tensor:
        return ~hidden_mask(self.draw_blocks(batch)[0], self.backbone.grid**2)[None]

    def _initialize(self) -> None:
        """N(0, 0.02) for every weight of encoder and predictor and the mask token; biases 0."""
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
