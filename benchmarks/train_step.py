"""A training step of each method: ours against lightly's building blocks, on the same network, batch and format.

    python benchmarks/train_step.py [--methods simclr mae] [--backbone vit_tiny_patch16_224] [--batch 128] [--compile]

Forward, backward, update and, where there is one, teacher; views are ready in memory. Ours is the method's own page
with the optimiser, teacher and attention that `ssl-bench fit` uses. Theirs is put together from lightly 1.6's modules
and losses as its examples do, with lightly's LARS or torch's AdamW and with clipped gradients where ours has them;
iBOT's patches are centred on all of them, as in the paper. The two
take turns, so that whatever else the machine does slows both; the ratio is the median over rounds, with its lowest and
highest. The peak is a large matrix product's, in the same format. The gain from bf16 and from `--compile`
(`trainer.compile`) is ours over ours in fp32 and uncompiled.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable

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
from lightly.utils.lars import LARS
from torch import Tensor, nn

from ssl_bench.config import registry
from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import build_optimizer, clip_gradients
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.run_record import training_flops
from ssl_bench.runtime.acceleration import compile_blocks, keep_freed_memory, write_out_attention

# The same sizes on both sides; a method that is not named here has its own defaults and, below, no rival.
SIZES: dict[str, dict[str, object]] = {
    "byol": {"hidden_dim": 4096},
    "dino": {"prototypes": 4096, "local_views": 6, "local_size": 16},
    "ibot": {"prototypes": 4096, "local_views": 0},
    "mae": {"decoder_dim": 512, "decoder_depth": 8, "decoder_heads": 16},
    "cae": {"decoder_dim": 192, "decoder_heads": 3},
}
METHODS = ("simclr", "simclrv2", "byol", "dino", "ibot", "mae", "simmim", "cae")
Step = Callable[[list[Tensor]], None]


class Lightly(nn.Module):
    """lightly's parts of a method around a timm ViT; `step` gives the loss, `follow` moves a teacher."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.vit = backbone.model
        self.dim, self.patch = backbone.dim, backbone.patch_size
        self.tokens = backbone.grid**2 + 1

    def follow(self) -> None: ...


class LightlySimCLR(Lightly):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.head = SimCLRProjectionHead(self.dim, self.dim, 128)
        self.criterion = NTXentLoss(temperature=0.1)

    def forward(self, views: list[Tensor]) -> Tensor:
        return self.criterion(*self.head(self.vit(torch.cat(views))).chunk(2))


class LightlyBYOL(Lightly):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.projector, self.predictor = BYOLProjectionHead(self.dim, 4096, 256), BYOLPredictionHead(256, 4096, 256)
        self.teacher, self.teacher_head = copy.deepcopy(self.vit), copy.deepcopy(self.projector)
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: list[Tensor]) -> Tensor:
        p0, p1 = (self.predictor(self.projector(self.vit(view))) for view in views)
        with torch.no_grad():
            z0, z1 = (self.teacher_head(self.teacher(view)) for view in views)
        return self.criterion(p0, z1) + self.criterion(p1, z0)

    def follow(self) -> None:
        update_momentum(self.vit, self.teacher, 0.99)
        update_momentum(self.projector, self.teacher_head, 0.99)


class LightlyDINO(Lightly):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.vit.dynamic_img_size = self.vit.patch_embed.dynamic_img_pad = True
        self.vit.patch_embed.strict_img_size, self.vit.patch_embed.flatten = False, False
        self.vit.patch_embed.output_fmt = "NHWC"
        self.head = DINOProjectionHead(self.dim, 2048, 256, 4096)
        self.teacher, self.teacher_head = copy.deepcopy(self.vit), DINOProjectionHead(self.dim, 2048, 256, 4096)
        self.teacher_head.load_state_dict(self.head.state_dict())  # its weight norm cannot be copied
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        self.criterion = DINOLoss(output_dim=4096)

    def forward(self, views: list[Tensor]) -> Tensor:
        with torch.no_grad():
            teacher = self.teacher_head(self.teacher(torch.cat(views[:2]))).chunk(2)
        student = [*self.head(self.vit(torch.cat(views[:2]))).chunk(2)]
        if local := views[2:]:
            student += self.head(self.vit(torch.cat(local))).chunk(len(local))
        return self.criterion(list(teacher), student, epoch=0)

    def follow(self) -> None:
        update_momentum(self.vit, self.teacher, 0.996)
        update_momentum(self.head, self.teacher_head, 0.996)


class LightlyIBOT(Lightly):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.masked = MaskedVisionTransformerTIMM(
            self.vit, weight_initialization="skip", pos_embed_initialization="skip"
        )
        self.head = DINOProjectionHead(self.dim, 2048, 256, 4096)
        self.teacher = MaskedVisionTransformerTIMM(
            copy.deepcopy(self.vit), weight_initialization="skip", pos_embed_initialization="skip"
        )
        self.teacher_head = DINOProjectionHead(self.dim, 2048, 256, 4096)
        self.teacher_head.load_state_dict(self.head.state_dict())
        deactivate_requires_grad(self.teacher)
        deactivate_requires_grad(self.teacher_head)
        self.on_class, self.on_patches = DINOLoss(output_dim=4096), IBOTPatchLoss(output_dim=4096)
        self.side = backbone.grid

    def forward(self, views: list[Tensor]) -> Tensor:
        images = torch.cat(views[:2])
        blocks = random_block_mask((len(images), self.side, self.side))
        mask = torch.cat([blocks.new_zeros(len(images), 1), blocks.flatten(1)], dim=1)
        with torch.no_grad():
            tokens = self.teacher.encode(images)
            on_class = self.teacher_head(tokens[:, 0])
            everywhere = self.teacher_head(tokens[:, 1:].flatten(0, 1))  # the paper's centre is of all patches
            on_patches = everywhere[blocks.flatten()]
        own = self.masked.encode(images, mask=mask)
        own_class, own_patches = self.head(own[:, 0]), self.head(own[mask])
        loss = self.on_class(list(on_class.chunk(2)), list(own_class.chunk(2)), epoch=0)
        loss = loss + self.on_patches(on_patches, own_patches, mask=blocks)
        self.on_patches.center.update(everywhere)
        return loss

    def follow(self) -> None:
        update_momentum(self.masked, self.teacher, 0.996)
        update_momentum(self.head, self.teacher_head, 0.996)


class LightlyMAE(Lightly):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.encoder = MaskedVisionTransformerTIMM(self.vit)
        self.decoder = MAEDecoderTIMM(
            num_patches=self.tokens - 1,
            patch_size=self.patch,
            embed_dim=self.dim,
            decoder_embed_dim=512,
            decoder_depth=8,
            decoder_num_heads=16,
        )

    def forward(self, views: list[Tensor]) -> Tensor:
        images = views[0]
        keep, hidden = random_token_mask((len(images), self.tokens), mask_ratio=0.75, device=images.device)
        encoded = self.decoder.embed(self.encoder.encode(images, idx_keep=keep))
        full = repeat_token(self.decoder.mask_token, (len(images), self.tokens))
        decoded = self.decoder.decode(set_at_index(full, keep, encoded.type_as(full)))
        predicted = self.decoder.predict(get_at_index(decoded, hidden))
        target = get_at_index(patchify(images, self.patch), hidden - 1)
        mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
        return F.mse_loss(predicted, (target - mean) / (variance + 1e-6).sqrt())


class LightlySimMIM(Lightly):
    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.encoder = MaskedVisionTransformerTIMM(self.vit)
        self.decoder = nn.Linear(self.dim, self.patch**2 * 3)

    def forward(self, views: list[Tensor]) -> Tensor:
        images = views[0]
        _, hidden = random_token_mask((len(images), self.tokens), mask_ratio=0.6, device=images.device)
        predicted = self.decoder(get_at_index(self.encoder.encode(images, idx_mask=hidden), hidden))
        return F.l1_loss(predicted, get_at_index(patchify(images, self.patch), hidden - 1))


RIVALS: dict[str, type[Lightly]] = {
    "simclr": LightlySimCLR,
    "byol": LightlyBYOL,
    "dino": LightlyDINO,
    "ibot": LightlyIBOT,
    "mae": LightlyMAE,
    "simmim": LightlySimMIM,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--img_size", type=int, default=32)
    parser.add_argument("--patch_size", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="ours once more, compiled")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(given.threads)
    torch.set_float32_matmul_precision("high")
    keep_freed_memory()
    peaks = {name: peak(name, device) for name in given.formats}
    print(f"{device}, {given.threads} threads, {given.backbone} at {given.img_size} px, batch {given.batch}; peak of a")
    print("matrix product: " + ", ".join(f"{name} {value / 1e9:,.0f} GFLOP/s" for name, value in peaks.items()))
    print(f"{'method':10}{'format':8}{'images/s':>10}{'of peak':>9}{'lightly':>10}   ratio            gain")
    options = BackboneOptions(given.backbone, img_size=given.img_size, patch_size=given.patch_size)
    for name in given.methods:
        plain = 0.0
        for number, form in enumerate(given.formats):
            for compiled in (False, True) if given.compile else (False,):
                ours, flops, views, recipe = our_step(name, options, form, compiled, given.batch, device)
                theirs = None if compiled or name not in RIVALS else their_step(name, options, form, device, recipe)
                rounds = compete([ours, *([theirs] if theirs else [])], views, given.rounds, device)
                rate = statistics.median(given.batch / seconds[0] for seconds in rounds)
                plain = plain or rate
                cells = f"{name:10}{form + ('+c' if compiled else ''):8}{rate:10,.1f}{rate * flops / peaks[form]:9.0%}"
                if theirs:
                    ratios = sorted(seconds[1] / seconds[0] for seconds in rounds)
                    rival = statistics.median(given.batch / seconds[1] for seconds in rounds)
                    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                    cells += f"{rival:10,.1f}   {spread:17}"
                else:
                    cells += f"{'':10}   {'':17}"
                print(cells + (f"{rate / plain:.2f}" if number or compiled else ""), flush=True)


def our_step(
    name: str, options: BackboneOptions, form: str, compiled: bool, batch: int, device: torch.device
) -> tuple[Step, float, list[Tensor], Optim]:
    """A step of the method's page, its FLOPs per image, views to take it with, and the optimiser's recipe."""
    torch.manual_seed(0)
    cls = registry.load(registry.find("methods", name))
    method: Method = cls(Backbone(options), **SIZES.get(name, {}))
    flops = training_flops(method)
    method.to(device).train()
    if device.type == "cpu" and form == "bf16":
        write_out_attention(method)
    if compiled:
        compile_blocks(method)
    optimizer = build_optimizer(method, method.optim, method.no_weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    views = [
        torch.randn(batch, 3, view.size, view.size, device=device) for view in method.views() for _ in range(view.count)
    ]

    def step(views: list[Tensor]) -> None:
        with autocast(form, device):
            loss = method.loss(views)
        loss.backward()
        clip_gradients(weights, method.optim.clip, method.optim.clip_per)
        optimizer.step()
        optimizer.zero_grad()
        for part in method.children():
            if isinstance(part, EMATeacher):
                part.update(0, 100)

    return step, flops, views, method.optim


def their_step(name: str, options: BackboneOptions, form: str, device: torch.device, recipe: Optim) -> Step:
    """A step of lightly's parts."""
    torch.manual_seed(0)
    model = RIVALS[name](Backbone(options)).to(device).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    kind = LARS if "lars" in recipe.name else torch.optim.AdamW
    optimizer = kind(weights, lr=1e-5, weight_decay=recipe.weight_decay)

    def step(views: list[Tensor]) -> None:
        model.follow()
        with autocast(form, device):
            loss = model(views)
        loss.backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def compete(steps: list[Step], views: list[Tensor], rounds: int, device: torch.device) -> list[list[float]]:
    """Seconds of each contestant's step, round by round; the first round warms up."""
    timed = []
    for _ in range(rounds + 1):
        seconds = []
        for step in steps:
            start = time.perf_counter()
            step(views)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        timed.append(seconds)
    return timed[1:]


def autocast(form: str, device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=form == "bf16")


def peak(form: str, device: torch.device) -> float:
    """FLOP/s of a large matrix product, the best of ten."""
    size = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype={"fp32": None, "bf16": torch.bfloat16}[form]) for _ in "ab")
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    main()
