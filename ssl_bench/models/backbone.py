"""One interface to every network: features, tokens, masks and positions.

One class, a little longer than others: what each family does differently stands in one branch, beside the other's.

Shapes: B images, 3 x H x W pixels, N patches, P prefix tokens, D features.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.layers.pos_embed_sincos import apply_keep_indices_nlc
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.creation import NATIVE, create_network
from ssl_bench.models.module_backbone import evaluated, feature_size
from ssl_bench.models.patches import patchify, resample_positions, sincos_positions
from ssl_bench.models.selective_kernel import plain_stem, select_kernels


@final
class Backbone(nn.Module):
    """A network giving features; ViTs and Swins give tokens as well, ViTs also those of a part of the image.

    Args:
        options: Which network; `img_size` is needed unless the name implies it.

    Raises:
        UserError: The name is unknown, or an option does not apply to the network.
    """

    baseline = ""  # what stands in the place of a network, in words
    model: Any  # timm's; what its attributes are depends on the family

    def __init__(self, options: BackboneOptions) -> None:
        super().__init__()
        self.options = options
        self.channels = options.channels or 3  # of an image
        created = create_network(options)
        self.model, self.architecture, self.args = created.model, created.architecture, created.args
        self.own = created.family == "own"  # a class of the user's, whatever it is derived from
        self.timm_can_build = not self.own  # whether `timm.create_model(architecture, **args)` gives it
        family = nn.Module if self.own else type(self.model)
        if issubclass(family, Beit):
            self.img_size: int = self.model.patch_embed.img_size[0]
            self.patch_size: int = self.model.patch_embed.patch_size[0]
            self.dim: int = self.model.embed_dim
            if self.dim % (heads := self.model.blocks[0].attn.num_heads):  # timm finds out in the forward
                raise UserError(f"--backbone.width {self.dim} is no multiple of {options.name}'s {heads} heads")
        elif issubclass(family, SwinTransformer | SwinTransformerV2):
            self.img_size = self.model.patch_embed.img_size[0]
            self.patch_size = self.model.patch_embed.patch_size[0]
            self.dim = self.model.num_features
            for attention in (stage.blocks[0].attn for stage in self.model.layers):
                if attention.proj.in_features != attention.dim and "head_dim" not in self.args:  # timm rounds down
                    heads = f"{attention.dim} channels are no multiple of {attention.num_heads} heads"
                    raise UserError(f"backbone {options.name}: a stage's {heads}: choose another --backbone.width")
            if options.absolute_positions:
                positions = torch.zeros(1, self.grid**2, self.embed_dim)
                self.timm_can_build = False
                self.model.absolute_pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=0.02))
        elif self.is_vit:
            self.img_size = self.model.patch_embed.img_size[0]
            self.patch_size = self.model.patch_embed.patch_size[0]
            self.dim = self.model.embed_dim
            if self.img_size < self.patch_size:
                rule = f"is smaller than a patch of {options.name}: try {self.patch_size}"
                raise UserError(f"--backbone.img_size {self.img_size} {rule}")
        elif issubclass(family, ResNet):
            self.img_size = options.img_size or 224
            self.dim = self.model.num_features
            self.small_stem = options.small_stem if options.small_stem is not None else self.img_size <= 64
            if options.selective_kernel:
                select_kernels(self.model, options.name)
                self.timm_can_build = False
            elif created.stem is nn.Conv2d and isinstance(self.model.conv1, nn.Sequential):
                plain_stem(self.model)
                self.timm_can_build = False
            if self.small_stem:
                self.timm_can_build = False
                width = self.model.bn1.num_features
                self.model.conv1 = nn.Conv2d(self.channels, width, 3, stride=1, padding=1, bias=False)
                nn.init.kaiming_normal_(self.model.conv1.weight, mode="fan_out", nonlinearity="relu")
                self.model.maxpool = nn.Identity()
            self.memory_format = _memory_format(self.model)
            self.model.to(memory_format=self.memory_format)
        else:
            for option in ("small_stem", "selective_kernel"):
                if getattr(options, option):
                    raise UserError(f"--backbone.{option} is for ResNets: {options.name} is not one")
            native = _native_size(self.model)
            self.img_size = options.img_size or native or NATIVE
            self.memory_format = torch.contiguous_format
            meta = any(parameter.is_meta for parameter in self.parameters())  # then only shapes are wanted
            made_for = f"; it was made for {native}: --backbone.img_size {native}" if native else ""
            remedy = "" if native == self.img_size else made_for
            name = f"backbone {options.name}"
            self.dim = 0 if meta else feature_size(self.model, name, self.img_size, self.channels, remedy)

    @property
    def is_vit(self) -> bool:
        """Whether the network has one token per patch from first to last: a plain ViT, BEiT or EVA."""
        if self.own or isinstance(self.model, Beit | Eva):
            return not self.own
        plain = isinstance(self.model, VisionTransformer) and isinstance(self.model.patch_embed, PatchEmbed)
        return plain and type(self.model)._pos_embed is VisionTransformer._pos_embed

    @property
    def is_resnet(self) -> bool:
        """Whether the network is a ResNet, which has no patches."""
        return isinstance(self.model, ResNet) and not self.own

    @property
    def is_swin(self) -> bool:
        """Whether the network embeds patches, which can be masked, and merges them later."""
        return isinstance(self.model, SwinTransformer | SwinTransformerV2) and not self.own

    @property
    def is_pooled(self) -> bool:
        """Whether the network is known by its pooled features alone: any other of timm's, or a class of the user's."""
        return not (self.is_vit or self.is_resnet or self.is_swin)

    def takes(self, size: int) -> bool:
        """Whether images of this size can be its input as well."""
        if not self.is_pooled:
            flexible = self.is_swin and not self.model.patch_embed.strict_img_size  # its positions are a window's
            return size == self.img_size or flexible or not self.has_relative_positions
        try:
            evaluated(self.model, self.model, size, self.channels)
        except Exception:  # whatever a network says of images that it was not made for
            return False
        return True

    @property
    def has_relative_positions(self) -> bool:
        """Whether attention depends on where patches lie to each other, so that none can be left out."""
        return self.is_swin or getattr(self.model, "rel_pos_bias", None) is not None or self._relative_blocks

    @property
    def _relative_blocks(self) -> bool:
        return issubclass(type(self.model), Beit) and self.model.blocks[0].attn.relative_position_bias_table is not None

    @property
    def grid(self) -> int:
        """Patches along a side of the native image; N is its square."""
        return self.img_size // self.patch_size

    @property
    def stride(self) -> int:
        """Pixels along a side of what one token of the output stands for."""
        return self.patch_size * 2 ** (len(self.model.layers) - 1) if self.is_swin else self.patch_size

    @property
    def embed_dim(self) -> int:
        """Channels of an embedded patch, and so of a mask token: D of a ViT, E of a Swin."""
        return int(self.model.embed_dim)

    @property
    def prefix(self) -> int:
        """P, tokens before those of the patches."""
        return 0 if self.is_swin else int(self.model.num_prefix_tokens)

    @property
    def spec(self) -> dict[str, Any]:
        """What builds this network again, plain types only."""
        return {"architecture": self.architecture, "args": self.args, "options": asdict(self.options)}

    @property
    def feature_types(self) -> tuple[str, ...]:
        """Names of the features that `features` can give; evaluations.md's terms."""
        if self.is_swin:
            return ("avg",)
        if not self.is_vit:
            return ("gap",) if self.is_resnet else ("pooled",)
        has_class = self.model.cls_token is not None
        return ("cls", "avg", "cls+avg", "cls_4", "cls_raw", "avg_raw") if has_class else ("avg", "avg_raw")

    @property
    def primary_feature_type(self) -> str:
        """The feature that stands for the network where one must be picked beforehand."""
        return self.feature_types[0]

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, D): class token after the final norm, mean token where there is none, or pooled map."""
        return self.features(images, (self.primary_feature_type,))[self.primary_feature_type]

    def features(self, images: Tensor, feature_types: Sequence[str]) -> dict[str, Tensor]:
        """All asked feature types of (B, D) features in one pass over (B, 3, H, W) images."""
        if self.is_swin:
            tokens = self.tokens(images)  # (B, M, D)
            return {feature_type: {"avg": tokens.mean(1)}[feature_type] for feature_type in feature_types}
        if not self.is_vit:
            images = images.contiguous(memory_format=self.memory_format)
            only = self.feature_types[0]
            return {feature_type: {only: self.model}[feature_type](images) for feature_type in feature_types}
        classes: list[Tensor] = []  # (B, D) after each block
        embedded, shared = self._embed(images, None, None, None), self.block_arguments(self._grid_of(images))
        raw = self._trunk(embedded, shared, classes if "cls_4" in feature_types else None)  # (B, P + N, D)
        tokens = self.model.norm(raw)
        prefix = self.prefix
        compute = {
            "cls": lambda: tokens[:, 0],
            "avg": lambda: tokens[:, prefix:].mean(1),
            "cls+avg": lambda: torch.cat([tokens[:, 0], tokens[:, prefix:].mean(1)], dim=1),  # (B, 2D)
            "cls_4": lambda: torch.cat([self.model.norm(token) for token in classes[-4:]], dim=1),  # (B, 4D)
            "cls_raw": lambda: raw[:, 0],
            "avg_raw": lambda: raw[:, prefix:].mean(1),
        }
        return {feature_type: compute[feature_type]() for feature_type in feature_types}

    def tokens(
        self, images: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, mask_token: Tensor | None = None
    ) -> Tensor:
        """Tokens after the final norm, the P prefix tokens first.

        Args:
            images: (B, 3, H, W).
            keep: (B, K) patches to embed and process; the others are never touched (MAE, CAE).
            mask: (B, N) bool, True for patches whose embedding becomes `mask_token` before positions (SimMIM, iBOT).
            mask_token: (D,), or any shape of D elements.

        Returns:
            (B, P + N, D), or (B, P + K, D) with `keep`; (B, M, D) of a Swin, row by row.
        """
        assert self.is_vit or self.is_swin, "a network without patches has no tokens"
        if self.is_swin:
            assert keep is None, "a Swin's windows need all patches"
            embedded = self.model.patch_embed(images)  # (B, h, w, E), after its norm
            patches = embedded.flatten(1, 2)  # (B, N, E)
            if mask is not None:
                patches = _masked(patches, mask, mask_token)
            if self.options.absolute_positions:
                patches = patches + self.model.absolute_pos_embed
            return self.model.norm(self.model.layers(patches.view_as(embedded))).flatten(1, 2)
        assert keep is None or not self.has_relative_positions, "relative positions need all patches"
        shared = self.block_arguments(self._grid_of(images), keep)
        return self.model.norm(self._trunk(self._embed(images, keep, mask, mask_token), shared))

    def token_grid(self, images: Tensor) -> Tensor:
        """(B, T, D) of all that a network says of an image's places: a ViT's tokens, prefix first, or a final map.

        Raises:
            UserError: It says nothing of places.
        """
        if self.is_vit or self.is_swin:
            return self.tokens(images)
        images = images.contiguous(memory_format=self.memory_format)
        found = self.model.forward_features(images) if hasattr(self.model, "forward_features") else None
        if isinstance(found, Tensor) and found.ndim == 3:
            return found
        if not isinstance(found, Tensor) or found.ndim != 4:
            raise UserError(f"backbone {self.options.name} has no map or tokens beside its pooled features")
        channels_last = str(getattr(self.model, "output_fmt", "")) == "NHWC"
        return found.flatten(1, 2) if channels_last else found.flatten(2).transpose(1, 2)  # (B, h * w, D)

    def patch_map(self, images: Tensor, layers: int = 1) -> Tensor:
        """(B, h, w, D) features of an image's places: patches after the final norm, or a network's final map.

        Of a ViT, the last ``layers`` blocks side by side, the last one's last: (B, h, w, layers D).
        """
        if not self.is_vit:
            assert layers == 1, "only ViTs have the same places in every block"
            tokens = self.token_grid(images)
            side = math.isqrt(tokens.shape[1])
            return tokens.unflatten(1, (side, side))
        blocks: list[Tensor] = []
        shared = self.block_arguments(self._grid_of(images))
        self._trunk(self._embed(images, None, None, None), shared, blocks, patches=True)
        maps = torch.cat([self.model.norm(tokens)[:, self.prefix :] for tokens in blocks[-layers:]], dim=2)
        return maps.unflatten(1, (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size))

    def _embed(self, images: Tensor, keep: Tensor | None, mask: Tensor | None, mask_token: Tensor | None) -> Tensor:
        """(B, 3, H, W) -> (B, P + N or K, D): patches, positions, prefix; timm's order and weights."""
        vit = self.model
        projection = vit.patch_embed.proj
        grid = self._grid_of(images)
        if keep is None:
            patches = projection(images).flatten(2).transpose(1, 2)  # (B, N, D)
        else:  # a convolution with stride p is one matrix product per patch: do it for the kept ones alone
            cells = patchify(images, self.patch_size, "channel first")  # (B, N, 3pp)
            pixels = cells.take_along_dim(keep[..., None], 1)  # (B, K, 3pp)
            patches = F.linear(pixels, projection.weight.flatten(1), projection.bias)  # (B, K, D)
        patches = vit.patch_embed.norm(patches)
        if mask is not None:
            patches = _masked(patches, mask, mask_token)
        own_tokens = (vit.cls_token, getattr(vit, "reg_token", None))
        prefix = [t.expand(len(images), -1, -1) for t in own_tokens if t is not None]
        positions = self._positions(grid)  # (1, P + N, D), (1, N, D) if the prefix has none, or None
        if positions is not None:
            own = positions[:, : positions.shape[1] - grid[0] * grid[1]]  # the prefix's
            positions = positions[:, own.shape[1] :]
            patches = patches + (positions if keep is None else positions[0][keep])
            if own.shape[1]:
                prefix = [torch.cat(prefix, 1) + own]
        tokens = vit.pos_drop(torch.cat([*(t.to(patches.dtype) for t in prefix), patches], dim=1))
        return tokens if isinstance(vit, Beit) else vit.norm_pre(tokens)

    def _grid_of(self, images: Tensor) -> tuple[int, int]:
        """Patches along the height and width of images."""
        return images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size

    def block_arguments(self, grid: tuple[int, int], keep: Tensor | None = None) -> list[dict[str, Tensor]]:
        """What each block of a ViT is given beside tokens: nothing, or relative or rotary positions.

        Args:
            grid: Patches along height and width.
            keep: (B, K) patches that there are; all where None.
        """
        blocks = self.model.blocks
        if isinstance(self.model, Eva):
            positions: Any = self.model.rope
            if positions is None:
                return [{}] * len(blocks)
            rope = positions.get_embed(shape=grid)  # (N, R), or of each block (L, heads, N, R)
            if keep is not None:
                rope = apply_keep_indices_nlc(keep, rope, keep)  # (B, K, R) or (B, L, heads, K, R)
                rope = rope.transpose(0, 1) if self.model.rope_mixed else rope.unsqueeze(1)
            return [{"rope": rope[at] if self.model.rope_mixed else rope} for at in range(len(blocks))]
        table = getattr(self.model, "rel_pos_bias", None)
        shared = {} if table is None else {"shared_rel_pos_bias": table()}  # (heads, P + N, P + N)
        return [shared] * len(blocks)

    def _trunk(
        self,
        tokens: Tensor,
        shared: list[dict[str, Tensor]],
        classes: list[Tensor] | None = None,
        patches: bool = False,
    ) -> Tensor:
        """(B, P + N, D) through all blocks; the (B, D) first token after each is appended to ``classes``.

        With ``patches``, all tokens are.
        """
        for block, given in zip(self.model.blocks, shared, strict=True):
            tokens = block(tokens, **given)
            if classes is not None:
                # A view of the first token would keep all others in memory.
                classes.append(tokens if patches else tokens[:, 0].clone())
        return tokens

    def _positions(self, grid: tuple[int, int]) -> Tensor | None:
        """Position embeddings, resampled as the options say when the grid is not the native one."""
        positions: Tensor | None = self.model.pos_embed
        if positions is None or grid == (self.grid, self.grid):
            return positions
        own, patches = positions.split([positions.shape[1] - self.grid**2, self.grid**2], dim=1)
        offset, antialias = self.options.interpolate_offset, bool(self.options.interpolate_antialias)
        resampled = resample_positions(patches, grid, 0.1 if offset is None else offset, antialias)
        return torch.cat([own, resampled], dim=1)

    def fix_positions(self, layout: Literal["mae", "moco"]) -> None:
        """Replace position embeddings by fixed sine-cosine ones (MAE's layout, or MoCo v3's and CAE's)."""
        table = sincos_positions(self.dim, self.grid, layout)  # (N, D)
        prefix = self.model.pos_embed.shape[1] - len(table)
        self.model.pos_embed.data = torch.cat([table.new_zeros(prefix, self.dim), table])[None]
        self.model.pos_embed.requires_grad_(False)


def _native_size(model: Any) -> int | None:
    """Pixels that a network of timm's was made for."""
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return int(size[-1]) if size else None


def _memory_format(resnet: nn.Module) -> torch.memory_format:
    """Channels last, the fastest for convolutions, but for very narrow networks.

    There oneDNN writes past the gradient of the weights of a 1 x 1 convolution with stride and fewer than 16 input
    channels (torch 2.13 on AVX-512; the process dies of it, here or later).
    """
    convolutions = [module for module in resnet.modules() if isinstance(module, nn.Conv2d)]
    narrow = any(c.in_channels < 16 and c.kernel_size == (1, 1) and c.stride != (1, 1) for c in convolutions)
    return torch.contiguous_format if narrow else torch.channels_last


def _masked(patches: Tensor, mask: Tensor, mask_token: Tensor | None) -> Tensor:
    """(B, N, E) with the token where (B, N) `mask` is True."""
    assert mask_token is not None
    return torch.where(mask[..., None], mask_token.reshape(1, 1, -1).to(patches.dtype), patches)
