"""iBOT: DINO on images with some patches hidden, with the same loss for each hidden patch as for the image.

Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022.
Paper: https://arxiv.org/abs/2111.07832. Reference code: https://github.com/bytedance/ibot.

Shapes: B images, V crops of each (2 global, then local ones), N patches of p x p pixels in a global one, M hidden
patches in the whole batch, D features, E bottleneck, K prototypes for images and for patches.

Where the two disagree, this is the code with the README's options, which made the published ViT-S/16 and are not its
defaults (no local views, crops from 0.14, only the teacher's heads shared, lengths of prototypes frozen, always three
tenths hidden, images' temperature 0.04 throughout). Its smallest learning rate, 1e-6, is not multiplied by the batch:
`min_lr` is that of 1024 images, per 256.
Here and not there: a true Gaussian blurs, not Pillow's boxes; a teacher whose heads are shared, unlike its student's,
starts from the student's head of images. Exact savings: the student's head sees class tokens and hidden patches alone,
the teacher's prototypes too: their mean answer to all patches is that to the mean patch.

Longer than most methods: half of it says what the options are and which exclude each other, and Swins, whose output has
fewer tokens than patches, need three functions.
"""

from collections import OrderedDict
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.augment.views import Views, multi_crop
from ssl_bench.config.constraints import (
    ImageSize,
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Range,
    ScaleRange,
    UnitInterval,
    Width,
)
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.dino_head import Centre, DINOHead, Prototypes, crop_cross_entropy
from ssl_bench.optim.schedules import warmed_up
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.local_views import checked_local_size
from ssl_bench.pretraining.masks import block_masks, mask_ratios, random_masks, require_patches
from ssl_bench.pretraining.method import Method


class IBOT(Method):
    """Self-distillation of images and of their hidden patches; what is evaluated is the teacher.

    Args:
        backbone: A ViT or Swin; one tied to a single image size needs `local_views` 0.
        prototypes: K, the outputs that student and teacher compare.
        patch_prototypes: The same for patches, where their heads are apart; as many when not given.
        shared_head: The student's patches are compared with the same prototypes as its images.
        shared_head_teacher: The same of the teacher; the code's own default has the teacher's shared alone.
        hidden_dim: Width of the head.
        bottleneck_dim: E, its output, which prototypes are compared with.
        norm_last_layer: Keep prototypes at length 1; steadier, and worse for ViT-S.
        mask_ratio: Parts of the patches to hide; each global view draws one of them, so that half of all stay whole.
        mask_spread: How far the part may be from each of them, either way.
        mask_shape: Rectangles (block), which may fall short of it, or single patches (rand).
        mask_start_epoch: Epochs before anything is hidden; the patches' temperature waits as long.
        cls_weight: Of the loss of images.
        patch_weight: Of the loss of hidden patches.
        student_temp: Temperature of the student's softmax.
        teacher_temp: Of the teacher's for images, once warmed up; above 0.07 it is unstable.
        warmup_teacher_temp: The same in the first epoch.
        teacher_patch_temp: Of the teacher's for patches, once warmed up.
        warmup_teacher_patch_temp: The same in the first epoch.
        warmup_teacher_temp_epochs: Epochs from the one to the other.
        center_momentum: Of the averages that are taken off the teacher's outputs.
        momentum: Of the teacher in the first step; a cosine leads to 1.
        freeze_last_layer: Epochs in which the prototypes stay as they are.
        global_scale: Part of the image's area in the two global views; from 0.14 if there are no local ones.
        local_scale: The same of local views.
        local_views: How many of them.
        local_size: Their pixels; when not given, 96 for an image of 224, and in proportion.
        blur: Probability in the first global view, the second, and a local one; 0 0 0 for CIFAR-10.
        solarize: Probability in the second global view.
        optim: AdamW, 5e-4 per 256 images, weight decay from 0.04 to 0.4, each tensor's gradient clipped to 3.
    """

    kind = "self-distillation"
    families = ("ViT",)

    def __init__(
        self,
        backbone: Backbone,
        prototypes: Annotated[int, Range(min=1, max=10_000_000)] = 8192,
        patch_prototypes: Annotated[int, Range(min=1, max=10_000_000)] | None = None,
        shared_head: bool = True,
        shared_head_teacher: bool = True,
        hidden_dim: Width = 2048,
        bottleneck_dim: Width = 256,
        norm_last_layer: bool = False,
        mask_ratio: Annotated[tuple[UnitInterval, ...], NonEmpty()] = (0.0, 0.3),
        mask_spread: tuple[UnitInterval, ...] = (0.0, 0.2),
        mask_shape: Literal["block", "rand"] = "block",
        mask_start_epoch: NonNegativeInt = 0,
        cls_weight: NonNegativeFloat = 1.0,
        patch_weight: NonNegativeFloat = 1.0,
        student_temp: PositiveFloat = 0.1,
        teacher_temp: PositiveFloat = 0.07,
        warmup_teacher_temp: PositiveFloat = 0.04,
        teacher_patch_temp: PositiveFloat = 0.07,
        warmup_teacher_patch_temp: PositiveFloat = 0.04,
        warmup_teacher_temp_epochs: NonNegativeInt = 30,
        center_momentum: UnitInterval = 0.9,
        momentum: UnitInterval = 0.996,
        freeze_last_layer: NonNegativeInt = 1,
        global_scale: ScaleRange = (0.25, 1.0),
        local_scale: ScaleRange = (0.05, 0.25),
        local_views: Annotated[int, Range(min=0, max=100)] = 10,
        local_size: ImageSize | None = None,
        blur: tuple[UnitInterval, UnitInterval, UnitInterval] = (1.0, 0.1, 0.5),
        solarize: UnitInterval = 0.2,
        optim: Optim = Optim(
            "adamw",
            base_lr=5e-4,
            weight_decay=0.04,
            weight_decay_end=0.4,
            schedule="cosine_dino",
            warmup_epochs=10,
            min_lr=2.5e-7,
            clip=3.0,
            clip_per="tensor",
        ),
    ) -> None:
        super().__init__(backbone, optim)
        if not (backbone.is_vit or backbone.is_swin):
            raise UserError("ibot needs a ViT or Swin, whose patches can be hidden; for a ResNet: dino, byol, simclr")
        require_patches(backbone, "ibot")
        if min(student_temp, teacher_temp, warmup_teacher_temp, teacher_patch_temp, warmup_teacher_patch_temp) <= 0:
            raise UserError("--method.student_temp and the teacher's temperatures must be above 0")
        if shared_head and not shared_head_teacher:
            raise UserError("--method.shared_head_teacher false needs shared_head false: there is nothing to follow")
        patch_prototypes = prototypes if patch_prototypes is None else patch_prototypes
        if shared_head_teacher and patch_prototypes != prototypes:
            raise UserError(
                f"--method.patch_prototypes {patch_prototypes} differs from prototypes {prototypes}:"
                " needs shared_head false and shared_head_teacher false"
            )
        if len(mask_ratio) != len(mask_spread) or not mask_ratio:
            raise UserError(f"--method.mask_spread {mask_spread} needs one number for each of mask_ratio {mask_ratio}")
        if any(not spread <= ratio <= 1 - spread for ratio, spread in zip(mask_ratio, mask_spread, strict=True)):
            raise UserError(f"--method.mask_ratio {mask_ratio} with mask_spread {mask_spread} must lie between 0 and 1")
        self.shared_head, self.shared_head_teacher = shared_head, shared_head_teacher
        self.mask_ratio, self.mask_spread, self.mask_shape = mask_ratio, mask_spread, mask_shape
        self.mask_start_epoch, self.cls_weight, self.patch_weight = mask_start_epoch, cls_weight, patch_weight
        self.student_temp, self.warmup_teacher_temp_epochs = student_temp, warmup_teacher_temp_epochs
        self.temps = warmup_teacher_temp, teacher_temp
        self.patch_temps = warmup_teacher_patch_temp, teacher_patch_temp
        self.freeze_last_layer = freeze_last_layer
        self.global_scale, self.local_scale = global_scale, local_scale
        self.blur, self.solarize = blur, solarize
        self.local_views, self.local_size = local_views, checked_local_size(backbone, local_views, local_size)
        if has_class_token(backbone):
            nn.init.trunc_normal_(backbone.model.cls_token, std=0.02)  # timm's starts at nearly 0
        self.mask_token = nn.Parameter(torch.zeros(1, backbone.embed_dim))  # the student's alone
        self.head = DINOHead(backbone.dim, hidden_dim, bottleneck_dim, prototypes, norm_last_layer=norm_last_layer)
        student = nn.Sequential(OrderedDict([("backbone", backbone), ("head", self.head)]))
        if not shared_head_teacher:
            self.head.last_layer2 = Prototypes(bottleneck_dim, patch_prototypes, norm_last_layer)
        self.teacher = EMATeacher(student, momentum)
        if shared_head_teacher and not shared_head:  # nothing of the teacher's follows it
            self.head.last_layer2 = Prototypes(bottleneck_dim, patch_prototypes, norm_last_layer)
        self.centre = Centre(prototypes, center_momentum)
        self.centre2 = Centre(patch_prototypes, center_momentum)

    @property
    def evaluated(self) -> nn.Module:
        return self.teacher.module.get_submodule("backbone")

    def views(self) -> Views:
        sizes = self.backbone.img_size, self.local_size
        return multi_crop(sizes, self.local_views, self.global_scale, self.local_scale, self.blur, self.solarize)

    def loss(self, views: list[Tensor], **drawn: Any) -> Tensor:
        """Of images and of hidden patches; then moves the centres.

        ``mask`` may be given: (2B, N) bool, True for the hidden patches of the first global views, then the second.
        """
        images = torch.cat(views[:2])  # (2B, 3, H, W)
        mask = drawn["mask"] if "mask" in drawn else self.draw_masks(len(images))  # (2B, N)
        where = mask.flatten().nonzero()[:, 0]  # (M,); counted where masks are drawn, so no device is waited for
        share = (1.0 / mask.sum(1))[where // mask.shape[1]]  # (M,), of one patch among those hidden in its image
        mask, where, share = (values.to(images.device, non_blocking=True) for values in (mask, where, share))
        teacher, teacher_hidden, teacher_mean = self.teach(images, where)
        student, student_hidden = self.learn(images, views[2:], mask, where)
        with torch.autocast(images.device.type, enabled=False):
            targets = self.soft_targets(teacher, self.centre, self.temps)
            loss = self.cls_weight * crop_cross_entropy(student, targets, self.student_temp)
            targets = self.soft_targets(teacher_hidden, self.centre2, self.patch_temps, self.mask_start_epoch)
            terms = F.cross_entropy(student_hidden.float() / self.student_temp, targets, reduction="none")  # (M,)
            # Images with nothing hidden count in the mean, as 0.
            loss = loss + self.patch_weight * (terms * share).sum() / len(images)
        self.centre.update(teacher)
        self.centre2.update(teacher_mean)
        return loss

    def draw_masks(self, count: int) -> Tensor:
        """(count, N) masks, True where hidden, on the host."""
        grid = self.backbone.img_size // self.backbone.stride
        if self.current_epoch < self.mask_start_epoch:
            return torch.zeros(count, grid**2, dtype=torch.bool)
        target = mask_ratios(count, self.mask_ratio, self.mask_spread) * grid**2
        if self.mask_shape == "rand":
            return random_masks(count, grid, target)
        return block_masks(count, grid, target, min_area=(grid // 3) ** 2)

    def masks(self, batch: int) -> Tensor:
        return self.draw_masks(2 * batch).unflatten(0, (2, batch))

    @torch.no_grad()
    def teach(self, images: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whole global views -> (2, B, K) logits of images, (M, K) of hidden patches, (1, K) mean of all patches."""
        network: Any = self.teacher.module
        summary, patches = split(network.backbone, network.backbone.tokens(images))
        patches = network.head.bottleneck(patches)  # (2B, N, E)
        compare = patch_layer(network.head)
        with torch.autocast(images.device.type, enabled=False):
            mean = patches.mean((0, 1), dtype=self.centre2.center.dtype)[None]  # (1, E)
            mean = compare(mean)  # linear, without bias: the mean may come first
        return network.head(summary).unflatten(0, (2, -1)), compare(patches.flatten(0, 1)[where]), mean

    def learn(self, images: Tensor, local: list[Tensor], mask: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Masked global views and whole local ones -> (V, B, K) logits of images, (M, K) of hidden patches."""
        tokens = self.backbone.tokens(images, mask=as_embedded(mask, self.backbone), mask_token=self.mask_token)
        summary, patches = split(self.backbone, tokens)
        summaries = [summary, *([split(self.backbone, self.backbone.tokens(torch.cat(local)))[0]] if local else [])]
        vectors = self.head.bottleneck(torch.cat([*summaries, patches.flatten(0, 1)[where]]))  # (VB + M, E)
        whole, hidden = torch.split(vectors, [len(vectors) - len(where), len(where)])
        return self.head.last_layer(whole).unflatten(0, (2 + len(local), -1)), patch_layer(self.head)(hidden)

    def soft_targets(self, logits: Tensor, centre: Centre, temps: tuple[float, float], delay: int = 0) -> Tensor:
        """(..., K) of the teacher -> probabilities, centred and sharpened."""
        return F.softmax((logits.float() - centre.center) / self.teacher_temp(temps, delay), dim=-1)

    def teacher_temp(self, temps: tuple[float, float], delay: int = 0) -> float:
        """This epoch's: ``delay`` epochs at the first, then a line that has the last in the warm-up's last epoch."""
        return warmed_up(max(0, self.current_epoch - delay), self.warmup_teacher_temp_epochs, *temps)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.current_epoch < self.freeze_last_layer:
            for layer in (self.head.last_layer, patch_layer(self.head)):
                for parameter in layer.parameters():
                    parameter.grad = None  # at 0 there would still be weight decay, and a state of the optimiser


def patch_layer(head: DINOHead) -> nn.Module:
    """The prototypes that patches are compared with: their own, or the images'."""
    return getattr(head, "last_layer2", head.last_layer)  # type: ignore[no-any-return]


def has_class_token(backbone: Backbone) -> bool:
    """Whether one token stands for the image; a Swin has none."""
    return getattr(backbone.model, "cls_token", None) is not None


def split(backbone: Backbone, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """(B, P + N, D) -> (B, D) class token, or mean patch where there is none, and (B, N, D) patches."""
    patches = tokens[:, backbone.prefix :]
    return tokens[:, 0] if has_class_token(backbone) else patches.mean(1), patches


def as_embedded(mask: Tensor, backbone: Backbone) -> Tensor:
    """(B, N) mask of the output's tokens -> that of the patches as embedded, of which a Swin merges many to one."""
    merged, grid = backbone.stride // backbone.patch_size, backbone.img_size // backbone.stride
    return mask.view(-1, grid, grid).repeat_interleave(merged, 1).repeat_interleave(merged, 2).flatten(1)
