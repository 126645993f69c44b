"""DINOv2: DINO on images, iBOT on hidden patches under heads of their own, and features that keep their distance.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024; registers: Darcet et al.,
"Vision Transformers Need Registers", ICLR 2024.
Papers: https://arxiv.org/abs/2304.07193, https://arxiv.org/abs/2309.16588.
Reference code: https://github.com/facebookresearch/dinov2.

Shapes: B images, V crops of each (2 global, then local ones), N patches in a global one, M hidden patches in the whole
batch, P prefix tokens, D features, K prototypes for images and for patches.

Where the two disagree, this is the code. Defaults are those of its ImageNet-1k configuration: one head for images and
patches, centred targets, rates that decay from layer to layer; `configs/methods/dinov2.yaml` has the options of the
ImageNet-22k runs, too. LayerScale, registers and SwiGLU are the network's: `--backbone.timm_args '{init_values: 1e-5,
reg_tokens: 4}'`, `--backbone.name vit_giant_patch14_reg4_dinov2`. Blurs have the probabilities with which the models
were made: the code hands the opposites of the paper's to its augmentation (1, 0.1 and 0.5 are the paper's).
Rates go with the square root of the batch; the smallest does not in the code, and `min_lr` is that of 1024 images.
Here and not there: the centre moves after each batch rather than before the next, so that a checkpoint lacks none; the
paths that are dropped are computed first; neighbours are found in float32 in any precision (in the code's half
precision two equal images give infinity); a true Gaussian blurs, with 9 taps.

The longest of the methods, since none of its pieces serves another: KoLeo, stochastic depth by samples, registers
without positions, and rates by layer.
"""

from collections import OrderedDict
from dataclasses import replace
from typing import Annotated, Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import Views, multi_crop
from ssl_bench.config.constraints import (
    Fraction,
    ImageSize,
    NonNegativeFloat,
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
from ssl_bench.models.dino_head import Centre, DINOHead, crop_cross_entropy
from ssl_bench.models.sinkhorn import sinkhorn
from ssl_bench.optim.schedules import warmed_up
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.local_views import checked_local_size
from ssl_bench.pretraining.masks import block_masks, require_patches
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.precision import float32_at_least


class DINOv2(Method):
    """Self-distillation of images and of their hidden patches; what is evaluated is the teacher.

    Args:
        backbone: A ViT with a class token; one tied to a single image size needs `local_views` 0.
        prototypes: K, the outputs that student and teacher compare; 131072 for ImageNet-22k.
        separate_head: Patches have a head and prototypes of their own, rather than those of images.
        patch_prototypes: K of the patches' own head; as many as for images when not given.
        hidden_dim: Width of the heads.
        bottleneck_dim: Their output, which prototypes are compared with; 384 for ImageNet-22k.
        patch_bottleneck_dim: The same of the patches' own head, 256 for ImageNet-22k; as for images when not given.
        targets: How the teacher's answers become targets: less their moving average and sharpened (centering), or
            assigned so that a batch uses all prototypes equally (sinkhorn), which wants many more rows than prototypes.
        sinkhorn_iterations: Of the latter.
        cls_weight: Of the loss of images.
        patch_weight: Of the loss of hidden patches.
        koleo_weight: Of the term that moves each image's features away from its nearest neighbour in the batch.
        masked_views: Part of the global views in which patches are hidden.
        mask_ratio: Smallest and largest part of the patches that is hidden in those, in blocks of at least four.
        student_temp: Temperature of the student's softmax.
        teacher_temp: Of the teacher's, once warmed up.
        warmup_teacher_temp: Of the teacher's in the first step.
        warmup_teacher_temp_epochs: Epochs from the one to the other.
        center_momentum: Of the averages that are taken off the teacher's outputs.
        momentum: Of the teacher in the first step, 0.994 for ImageNet-22k; a cosine leads to 1.
        freeze_last_layer: Epochs in which the prototypes stay as they are.
        layer_decay: Factor on the rate from each block to the one before it; 1 for ImageNet-22k.
        patch_lr: Another factor on that of the patch projection.
        global_scale: Part of the image's area in the two global views.
        local_scale: The same of local views.
        local_views: How many of them.
        local_size: Their pixels; when not given, 96 for an image of 224, and in proportion.
        blur: Probability in the first global view, the second, and a local one; 0 0 0 for CIFAR-10.
        solarize: Probability in the second global view.
        optim: AdamW, 0.004 for 1024 images, weight decay from 0.04 to 0.4, gradients of each part clipped to 3.
    """

    kind = "self-distillation"
    families = ("ViT",)

    min_images = 2  # of one there is no neighbour

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Annotated[int, Range(min=1, max=10_000_000)] = 65536,
        separate_head: bool = False,
        patch_prototypes: Annotated[int, Range(min=1, max=10_000_000)] | None = None,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        patch_bottleneck_dim: Width | None = None,
        targets: Literal["centering", "sinkhorn"] = "centering",
        sinkhorn_iterations: PositiveInt = 3,
        cls_weight: NonNegativeFloat = 1.0,
        patch_weight: NonNegativeFloat = 1.0,
        koleo_weight: NonNegativeFloat = 0.1,
        masked_views: UnitInterval = 0.5,
        mask_ratio: ScaleRange = (0.1, 0.5),
        student_temp: PositiveFloat = 0.1,
        teacher_temp: PositiveFloat = 0.07,
        warmup_teacher_temp: PositiveFloat = 0.04,
        warmup_teacher_temp_epochs: NonNegativeInt = 30,
        center_momentum: UnitInterval = 0.9,
        momentum: UnitInterval = 0.992,
        freeze_last_layer: NonNegativeInt = 1,
        layer_decay: Fraction = 0.9,
        patch_lr: Fraction = 0.2,
        global_scale: ScaleRange = (0.32, 1.0),
        local_scale: ScaleRange = (0.05, 0.32),
        local_views: Annotated[int, Range(min=0, max=100)] = 8,
        local_size: ImageSize | None = None,
        blur: tuple[UnitInterval, UnitInterval, UnitInterval] = (0.0, 0.9, 0.5),
        solarize: UnitInterval = 0.2,
        optim: Optim = Optim(
            "adamw",
            base_lr=0.004 / 32,  # the square root of 1024
            scaling="sqrt",
            weight_decay=0.04,
            weight_decay_end=0.4,
            schedule="cosine_dino",
            warmup_epochs=10,
            min_lr=1e-6 / 32,
            clip=3.0,
        ),
    ) -> None:
        super().__init__(backbone, optim)
        if not backbone.is_vit or backbone.model.cls_token is None:
            raise UserError("dinov2 needs a ViT with a class token; for a Swin: ibot, for a ResNet: dino, swav, byol")
        require_patches(backbone, "dinov2")
        for option, given in (("patch_prototypes", patch_prototypes), ("patch_bottleneck_dim", patch_bottleneck_dim)):
            if given is not None and not separate_head:
                raise UserError(f"--method.{option} is for a head of the patches' own: --method.separate_head true")
        self.targets, self.sinkhorn_iterations, self.student_temp = targets, sinkhorn_iterations, student_temp
        self.cls_weight, self.patch_weight, self.koleo_weight = cls_weight, patch_weight, koleo_weight
        self.masked_views, self.mask_ratio = masked_views, mask_ratio
        self.teacher_temp, self.warmup_teacher_temp = teacher_temp, warmup_teacher_temp
        self.warmup_teacher_temp_epochs, self.freeze_last_layer = warmup_teacher_temp_epochs, freeze_last_layer
        self.layer_decay, self.patch_lr = layer_decay, patch_lr
        self.global_scale, self.local_scale = (global_scale[0], global_scale[1]), (local_scale[0], local_scale[1])
        self.blur, self.solarize = blur, solarize
        self.local_views, self.local_size = local_views, checked_local_size(backbone, local_views, local_size)
        keep_registers_without_positions(backbone)
        for block in backbone.model.blocks if backbone.options.drop_path else ():  # the same rate at any depth
            block.drop_path1, block.drop_path2 = (DropSamples(backbone.options.drop_path) for _ in range(2))
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.dim))  # the student's alone
        self.head = DINOHead(backbone.dim, hidden_dim, bottleneck_dim, prototypes, norm_last_layer=False)
        student = OrderedDict[str, nn.Module]([("backbone", backbone), ("head", self.head)])
        if separate_head:
            prototypes = prototypes if patch_prototypes is None else patch_prototypes
            bottleneck_dim = bottleneck_dim if patch_bottleneck_dim is None else patch_bottleneck_dim
            self.patch_head = DINOHead(backbone.dim, hidden_dim, bottleneck_dim, prototypes, norm_last_layer=False)
            student["patch_head"] = self.patch_head
        self.teacher = EMATeacher(nn.Sequential(student), momentum)
        self.centre = Centre(len(self.head.last_layer.weight_g), center_momentum)
        self.centre2 = Centre(prototypes, center_momentum)

    @property
    def evaluated(self) -> nn.Module:
        return self.teacher.module.get_submodule("backbone")

    def views(self) -> Views:
        sizes = self.backbone.img_size, self.local_size
        crops = multi_crop(sizes, self.local_views, self.global_scale, self.local_scale, self.blur, self.solarize)
        return [replace(crop, blur_kernel=min(9, crop.taps)) for crop in crops]

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Of images, of hidden patches and of neighbours; then moves the centres.

        ``mask`` may be given: (2B, N) bool, True for the hidden patches of the first global views, then the second.
        """
        images = torch.cat(views[:2])  # (2B, 3, H, W)
        mask = drawn["mask"] if "mask" in drawn else self.draw_masks(len(images))  # (2B, N)
        where = mask.flatten().nonzero()[:, 0]  # (M,); counted where masks are drawn, so no device is waited for
        share = (1.0 / mask.sum(1))[where // mask.shape[1]]  # (M,), of one patch among those hidden in its image
        mask, where, share = (values.to(images.device, non_blocking=True) for values in (mask, where, share))
        teacher, teacher_hidden = self.teach(images, where)  # (2B, K), (M, K)
        student, student_hidden, features = self.learn(images, views[2:], mask, where)
        with torch.autocast(images.device.type, enabled=False):
            targets = self.soft_targets(teacher, self.centre).unflatten(0, (2, -1))  # (2, B, K)
            loss = self.cls_weight * crop_cross_entropy(student, targets, self.student_temp)
            targets = self.soft_targets(teacher_hidden, self.centre2)  # (M, K)
            logits = float32_at_least(student_hidden) / self.student_temp
            terms = F.cross_entropy(logits, targets, reduction="none")  # (M,)
            # Images with nothing hidden count in the mean, as 0.
            loss = loss + self.patch_weight * (terms * share).sum() / len(images)
            loss = loss + self.koleo_weight * sum(koleo(rows) for rows in features.chunk(2))
        if self.targets == "centering":
            self.centre.update(teacher)
            # Of as many devices, however many patches each has hidden; one with none leaves the centre where it is.
            self.centre2.update(teacher_hidden if len(teacher_hidden) else self.centre2.center)
        return loss

    def draw_masks(self, count: int) -> Tensor:
        """(count, N) masks, True where hidden, on the host: some of the views, with parts spread over the range."""
        grid, masked = self.backbone.grid, int(self.masked_views * count)
        edges = torch.linspace(*self.mask_ratio, masked + 1, dtype=torch.float64)
        parts = edges[:-1] + edges.diff() * torch.rand(masked, dtype=torch.float64)  # one of each bin
        target = torch.zeros(count, dtype=torch.float64)
        target[:masked] = (parts * grid**2).floor()
        most = grid // 2 * grid  # as the code rounds half of them
        return block_masks(count, grid, target, min_area=4, max_area=most)[torch.randperm(count)]

    def masks(self, batch: int) -> Tensor:
        return self.draw_masks(2 * batch).unflatten(0, (2, batch))  # type: ignore[no-any-return]

    @torch.no_grad()
    def teach(self, images: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Whole global views -> (2B, K) logits of images and (M, K) of hidden patches."""
        network: Any = self.teacher.module
        tokens = network.backbone.tokens(images)  # (2B, P + N, D)
        patches = tokens[:, self.backbone.prefix :].flatten(0, 1)[where]  # (M, D)
        return network.head(tokens[:, 0]), getattr(network, "patch_head", network.head)(patches)

    def learn(self, images: Tensor, local: list[Tensor], mask: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Masked global views and whole local ones -> (V, B, K), (M, K) logits, (2B, D) features of global views."""
        tokens = self.backbone.tokens(images, mask=mask, mask_token=self.mask_token)  # (2B, P + N, D)
        patches = tokens[:, self.backbone.prefix :].flatten(0, 1)[where]  # (M, D)
        features = [tokens[:, 0], *([self.backbone.tokens(torch.cat(local))[:, 0]] if local else [])]
        student = self.head(torch.cat(features)).unflatten(0, (2 + len(local), -1))
        return student, getattr(self, "patch_head", self.head)(patches), features[0]

    def soft_targets(self, logits: Tensor, centre: Centre) -> Tensor:
        """(rows, K) of the teacher -> probabilities, each row's sum 1."""
        temperature = self.current_teacher_temp()
        if self.targets == "sinkhorn":
            return sinkhorn(float32_at_least(logits) / temperature, self.sinkhorn_iterations)
        return F.softmax((float32_at_least(logits) - centre.center) / temperature, dim=-1)

    def current_teacher_temp(self) -> float:
        """This step's: a line that has its last value in the last step of the warm-up."""
        step, warmup = 0, self.warmup_teacher_temp_epochs
        if self._trainer is not None:
            step, warmup = self.global_step, round(warmup * self.schedule.steps_per_epoch)
        return warmed_up(step, warmup, self.warmup_teacher_temp, self.teacher_temp)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """By rate, by whether they decay, and by part of the network, whose gradients are clipped together."""
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        depth = len(self.backbone.model.blocks)
        for name, parameter in self.named_parameters():
            if not parameter.requires_grad:
                continue
            part = name.partition(".")[0].replace("mask_token", "backbone")
            decay = not (parameter.ndim < 2 or name.endswith(".bias") or "norm" in name or "gamma" in name)
            scale = self.layer_decay ** layers_above(name, depth) * (self.patch_lr if "patch_embed" in name else 1.0)
            last = ".last_layer." in name
            group = {"params": [], "decay": decay, "lr_scale": scale, "part": part, "last_layer": last}
            group |= {} if decay else {"weight_decay": 0.0}
            groups.setdefault((scale, decay, part, last), group)["params"].append(parameter)
        return list(groups.values())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.current_epoch < self.freeze_last_layer:
            for group in optimizer.param_groups:
                if group["last_layer"]:
                    group["lr"] = 0.0  # the optimiser's moments go on


@final
class DropSamples(nn.Module):
    """Stochastic depth in which always the same number of a batch's samples keep a branch, and at least one.

    Args:
        drop_prob: Part of the samples that lose it.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, branch: Tensor) -> Tensor:
        """(B, ...) with all but some samples 0, and those the larger."""
        if not self.training or not self.drop_prob:
            return branch
        kept = max(int(len(branch) * (1 - self.drop_prob)), 1)
        scales = branch.new_zeros(len(branch))
        scales[torch.randperm(len(branch), device=branch.device)[:kept]] = len(branch) / kept
        return branch * scales.view(-1, *[1] * (branch.ndim - 1))


def koleo(features: Tensor) -> Tensor:
    """KoLeo: less the mean logarithm of the distance of each of (B, D) directions from its nearest neighbour."""
    x = F.normalize(float32_at_least(features), eps=1e-8)
    with torch.no_grad():
        nearest = (x @ x.T).fill_diagonal_(-1).argmax(1)  # (B,)
    return -(F.pairwise_distance(x, x[nearest], eps=1e-8) + 1e-8).log().mean()


def layers_above(name: str, depth: int) -> int:
    """How many times a parameter's rate decays: never in the heads and the final norm, most often in the tokens."""
    parts = name.split(".")
    if "blocks" in parts:
        return depth - int(parts[parts.index("blocks") + 1])
    tokens = ("cls_token", "pos_embed", "reg_token", "mask_token", "patch_embed")
    return depth + 1 if any(token in parts for token in tokens) else 0


def keep_registers_without_positions(backbone: Backbone) -> None:
    """Where timm gives registers positions, these become 0 and stay so."""
    model: Any = backbone.model
    registers = getattr(model, "num_reg_tokens", 0)
    if not registers or model.pos_embed is None or model.pos_embed.shape[1] == backbone.grid**2:
        return
    with torch.no_grad():
        model.pos_embed[:, 1 : 1 + registers] = 0

    def without(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[:, 1 : 1 + registers] = 0
        return gradient

    model.pos_embed.register_hook(without)
