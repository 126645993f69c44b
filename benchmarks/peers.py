"""Other implementations of the methods, with which ours are compared in speed and in training.

SimCLR, BYOL, DINO, iBOT, MAE and SimMIM are put together from lightly 1.6's modules and losses, as its examples do;
SimCLRv2 and CAE, which lightly does not have, are written here from their papers, in plain float32. Options have our
names, and losses our scale, which is the official code's: lightly halves those of SimCLR and BYOL.

Shapes: B images, N patches, K visible, M hidden, D features.
"""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss, IBOTPatchLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import MAEDecoderTIMM, MaskedVisionTransformerTIMM
from lightly.models.modules.heads import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    SimCLRProjectionHead,
)
from lightly.models.utils import (
    deactivate_requires_grad,
    get_at_index,
    patchify,
    random_block_mask,
    random_token_mask,
    repeat_token,
    set_at_index,
    update_momentum,
)
from timm.models.beit import Block
from torch import Tensor, nn

from ssl_bench.models.backbone import Backbone


class Peer(nn.Module):
    """A method around a timm network: `forward` gives the loss, `follow` moves a teacher.

    Args:
        backbone: Ours, whose timm network is trained.
    """

    source = "lightly"

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vit: Any = backbone.model
        self.dim, self.patch, self.grid = backbone.dim, backbone.patch_size, backbone.grid
        self.tokens = backbone.grid**2 + 1

    def follow(self, momentum: float) -> None:
        """Move the teacher, where there is one."""

    def networks(self) -> dict[str, nn.Module]:
        """Branch -> its timm network."""
        return {"encoder": self.vit}


class Distilled(Peer):
    """One whose network has a teacher."""

    teacher: nn.Module

    def networks(self) -> dict[str, nn.Module]:
        return {"student": self.vit, "teacher": self.teacher}


class SimCLR(Peer):
    """lightly's head and NT-Xent."""

    def __init__(self, backbone: Backbone, temperature: float = 0.1, projection_dim: int = 128, **_: Any) -> None:
        super().__init__(backbone)
        self.head = SimCLRProjectionHead(self.dim, self.dim, projection_dim)
        self.criterion = NTXentLoss(temperature=temperature)

    def forward(self, views: list[Tensor]) -> Tensor:
        return 2 * self.criterion(*self.head(self.vit(torch.cat(views))).chunk(2))


class BYOL(Distilled):
    """lightly's heads and cosine, a copy that follows."""

    def __init__(self, backbone: Backbone, hidden_dim: int = 4096, projection_dim: int = 256, **_: Any) -> None:
        super().__init__(backbone)
        self.projector = BYOLProjectionHead(self.dim, hidden_dim, projection_dim)
        self.predictor = BYOLPredictionHead(projection_dim, hidden_dim, projection_dim)
        self.teacher, self.teacher_head = copy.deepcopy(self.vit), copy.deepcopy(self.projector)
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        p0, p1 = (self.predictor(self.projector(self.vit(view))) for view in views)
        with torch.no_grad():
            z0, z1 = (self.teacher_head(self.teacher(view)) for view in views)
        return 4 + 2 * (self.criterion(p0, z1) + self.criterion(p1, z0))  # squared distances of unit vectors

    def follow(self, momentum: float) -> None:
        update_momentum(self.vit, self.teacher, momentum)
        update_momentum(self.projector, self.teacher_head, momentum)


class DINO(Distilled):
    """lightly's head and loss; local crops through timm's own resizing of positions."""

    def __init__(
        self,
        backbone: Backbone,
        prototypes: int = 4096,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        teacher_temp: float = 0.04,
        norm_last_layer: bool = True,
        **_: Any,
    ) -> None:
        super().__init__(backbone)
        self.vit.dynamic_img_size = self.vit.patch_embed.dynamic_img_pad = True
        self.vit.patch_embed.strict_img_size, self.vit.patch_embed.flatten = False, False
        self.vit.patch_embed.output_fmt = "NHWC"
        sizes = self.dim, hidden_dim, bottleneck_dim, prototypes
        self.head, self.teacher_head = (DINOProjectionHead(*sizes, norm_last_layer=norm_last_layer) for _ in range(2))
        self.teacher_head.load_state_dict(self.head.state_dict())  # its weight norm cannot be copied
        self.teacher = copy.deepcopy(self.vit)
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(prototypes, teacher_temp=teacher_temp)

    def forward(self, views: list[Tensor]) -> Tensor:
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher(torch.cat(views[:2]))).chunk(2)
        student = [*self.head(self.vit(torch.cat(views[:2]))).chunk(2)]
        if local := views[2:]:
            student += self.head(self.vit(torch.cat(local))).chunk(len(local))
        return self.criterion(list(teacher), student)

    def follow(self, momentum: float) -> None:
        update_momentum(self.vit, self.teacher, momentum)
        update_momentum(self.head, self.teacher_head, momentum)


class IBOT(Distilled):
    """lightly's masked ViT, head and losses; patches are centred on all of them, as in the paper."""

    def __init__(
        self,
        backbone: Backbone,
        prototypes: int = 4096,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        teacher_temp: float = 0.04,
        norm_last_layer: bool = True,
        **_: Any,
    ) -> None:
        super().__init__(backbone)
        kept = {"weight_initialization": "skip", "pos_embed_initialization": "skip"}
        self.masked = MaskedVisionTransformerTIMM(self.vit, **kept)
        self.masked_teacher = MaskedVisionTransformerTIMM(copy.deepcopy(self.vit), **kept)
        self.teacher = self.masked_teacher.vit
        sizes = self.dim, hidden_dim, bottleneck_dim, prototypes
        self.head, self.teacher_head = (DINOProjectionHead(*sizes, norm_last_layer=norm_last_layer) for _ in range(2))
        self.teacher_head.load_state_dict(self.head.state_dict())
        deactivate_requires_grad(self.masked_teacher)
        deactivate_requires_grad(self.teacher_head)
        self.on_class = DINOLoss(prototypes, teacher_temp=teacher_temp)
        self.on_patches = IBOTPatchLoss(prototypes, teacher_temp=teacher_temp)

    def forward(self, views: list[Tensor], mask: Tensor | None = None) -> Tensor:
        """Loss of views, (B, 3, H, W) each; ``mask``, (2B, N) bool, hides patches of the global ones."""
        images = torch.cat(views[:2])
        if mask is None:
            mask = random_block_mask((len(images), self.grid, self.grid)).flatten(1)
        with torch.no_grad():
            tokens = self.masked_teacher.encode(images)
            on_class = self.teacher_head(tokens[:, 0])
            everywhere = self.teacher_head(tokens[:, 1:].flatten(0, 1))
        hidden = torch.cat([mask.new_zeros(len(images), 1), mask], dim=1)
        own = self.masked.encode(images, mask=hidden)
        student = [*self.head(own[:, 0]).chunk(2)]
        if local := views[2:]:
            student += self.head(self.vit(torch.cat(local))).chunk(len(local))
        loss = self.on_class(list(on_class.chunk(2)), student)
        centre, blocks = self.on_patches.center, mask.unflatten(1, (self.grid, self.grid))
        before = centre.value
        loss = loss + self.on_patches(everywhere[mask.flatten()], self.head(own[hidden]), mask=blocks)
        centre.center = before  # lightly's loss moves it by the hidden patches alone
        centre.update(everywhere)
        return loss

    def follow(self, momentum: float) -> None:
        update_momentum(self.masked, self.masked_teacher, momentum)
        update_momentum(self.head, self.teacher_head, momentum)


class MAE(Peer):
    """lightly's masked ViT and decoder."""

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: float = 0.75,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        **_: Any,
    ) -> None:
        super().__init__(backbone)
        self.mask_ratio = mask_ratio
        self.encoder = MaskedVisionTransformerTIMM(self.vit)
        self.decoder = MAEDecoderTIMM(
            num_patches=self.tokens - 1,
            patch_size=self.patch,
            embed_dim=self.dim,
            decoder_embed_dim=decoder_dim,
            decoder_depth=decoder_depth,
            decoder_num_heads=decoder_heads,
        )

    def forward(self, views: list[Tensor]) -> Tensor:
        images = views[0]
        size = len(images), self.tokens
        keep, hidden = random_token_mask(size, mask_ratio=self.mask_ratio, device=images.device)
        encoded = self.decoder.embed(self.encoder.encode(images, idx_keep=keep))
        full = repeat_token(self.decoder.mask_token, size)
        decoded = self.decoder.decode(set_at_index(full, keep, encoded.type_as(full)))
        predicted = self.decoder.predict(get_at_index(decoded, hidden))
        target = get_at_index(patchify(images, self.patch), hidden - 1)
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        return F.mse_loss(predicted, (target - mean) / (variance + 1e-6).sqrt())


class SimMIM(Peer):
    """lightly's masked ViT and one layer; cells are single patches."""

    def __init__(self, backbone: Backbone, mask_ratio: float = 0.6, **_: Any) -> None:
        super().__init__(backbone)
        self.mask_ratio = mask_ratio
        self.encoder = MaskedVisionTransformerTIMM(
            self.vit, weight_initialization="skip", pos_embed_initialization="skip"
        )
        self.decoder = nn.Linear(self.dim, self.patch**2 * 3)

    def forward(self, views: list[Tensor]) -> Tensor:
        images = views[0]
        size = len(images), self.tokens
        _, hidden = random_token_mask(size, mask_ratio=self.mask_ratio, device=images.device)
        predicted = self.decoder(get_at_index(self.encoder.encode(images, idx_mask=hidden), hidden))
        return F.l1_loss(predicted, get_at_index(patchify(images, self.patch), hidden - 1))


class SimCLRv2(Peer):
    """Written from the paper: three layers of the input's width, each with batch norm, and NT-Xent pair by pair."""

    source = "from the paper"

    def __init__(self, backbone: Backbone, temperature: float = 0.1, projection_dim: int = 128, **_: Any) -> None:
        super().__init__(backbone)
        self.temperature = temperature
        widths = [self.dim, self.dim, self.dim, projection_dim]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(zip(widths, widths[1:], strict=False), 1):
            layers += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after)]
            layers += [nn.ReLU()] if number < 3 else []
        self.head = nn.Sequential(*layers)

    def forward(self, views: list[Tensor]) -> Tensor:
        z = F.normalize(self.head(self.vit(torch.cat(views))), dim=1)  # (2B, P)
        similarity = torch.exp(z @ z.T / self.temperature)  # (2B, 2B)
        images = len(z) // 2
        positive = torch.cat([similarity.diagonal(images), similarity.diagonal(-images)])  # (2B,)
        return 2 * (-torch.log(positive / (similarity.sum(1) - similarity.diagonal()))).mean()


class CAE(Peer):
    """Written from the paper: encoder, latent contextual regressor, decoder, alignment; pixels as targets."""

    source = "from the paper"

    def __init__(
        self,
        backbone: Backbone,
        mask_ratio: float = 0.5,
        decoder_dim: int = 768,
        regressor_depth: int = 4,
        decoder_depth: int = 4,
        decoder_heads: int = 12,
        align_weight: float = 2.0,
        **_: Any,
    ) -> None:
        super().__init__(backbone)
        assert decoder_dim == self.dim, "the paper's regressor is as wide as its encoder"
        self.align_weight = align_weight
        self.regressor = nn.ModuleList(_Regressor(self.dim, decoder_heads) for _ in range(regressor_depth))
        self.decoder = nn.ModuleList(
            Block(self.dim, decoder_heads, qkv_bias=True, init_values=0.1) for _ in range(decoder_depth)
        )
        self.after_regressor, self.after_decoder = nn.LayerNorm(self.dim, 1e-6), nn.LayerNorm(self.dim, 1e-6)
        self.query = nn.Parameter(torch.empty(1, 1, self.dim))
        self.head = nn.Linear(self.dim, 3 * self.patch**2)
        nn.init.trunc_normal_(self.query, std=0.02, a=-0.02, b=0.02)
        for part in (self.regressor, self.decoder, self.head):
            part.apply(_xavier)

    def forward(self, views: list[Tensor], mask: Tensor) -> Tensor:
        """Loss of images (B, 3, H, W) whose patches are hidden by ``mask``, (B, N) bool, as many in each."""
        images, batch = views[0], len(views[0])
        positions = self.vit.pos_embed[:, 1:].expand(batch, -1, -1)  # (B, N, D)
        where, shown = positions[mask].view(batch, -1, self.dim), positions[~mask].view(batch, -1, self.dim)
        visible = self.encode(images, ~mask)  # (B, K, D)
        x = self.query.expand(batch, where.shape[1], -1)
        for block in self.regressor:
            x = block(x, where, visible, shown)
        latent = self.after_regressor(x)  # (B, M, D)
        with torch.no_grad():
            target = self.encode(images, mask)
        x = latent + where
        for block in self.decoder:
            x = block(x)
        pixels = patchify(images, self.patch)[mask].view(batch, where.shape[1], -1)
        mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
        predicted = self.head(self.after_decoder(x))
        loss = F.mse_loss(predicted, (pixels - mean) / (variance + 1e-6).sqrt())
        return loss + self.align_weight * F.mse_loss(latent, target)

    def encode(self, images: Tensor, some: Tensor) -> Tensor:
        """(B, 3, H, W) -> representations of some of the patches, which see no others."""
        patches = self.vit.patch_embed(images) + self.vit.pos_embed[:, 1:]  # (B, N, D)
        summary = (self.vit.cls_token + self.vit.pos_embed[:, :1]).expand(len(images), -1, -1)
        tokens = torch.cat([summary, patches[some].view(len(images), -1, self.dim)], dim=1)
        for block in self.vit.blocks:
            tokens = block(tokens)
        return self.vit.norm(tokens)[:, 1:]


class _Regressor(nn.Module):
    """Queries of hidden patches attend to visible ones and to themselves; values have no positions."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(dim, 1e-6) for _ in range(4))
        self.q, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.k, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.scales = nn.ParameterList(torch.full((dim,), 0.1) for _ in range(2))

    def forward(self, x: Tensor, where: Tensor, visible: Tensor, shown: Tensor) -> Tensor:
        context = torch.cat([visible, x], dim=1)
        q = self._heads(self.q(self.norms[0](x + where)))
        k = self._heads(self.k(self.norms[1](context + torch.cat([shown, where], dim=1))))
        v = self._heads(self.v(self.norms[2](context)))
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).softmax(-1)
        x = x + self.scales[0] * self.out((weights @ v).transpose(1, 2).flatten(2))
        x = self.norms[3](x)
        return x + self.scales[1] * self.mlp(x)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def _xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


PEERS: dict[str, type[Peer]] = {
    "simclr": SimCLR,
    "simclrv2": SimCLRv2,
    "byol": BYOL,
    "dino": DINO,
    "ibot": IBOT,
    "mae": MAE,
    "simmim": SimMIM,
    "cae": CAE,
}
