"""A training step of each method: ours against lightly's building blocks, on the same network, batch and format.

    python benchmarks/train_step.py [--methods simclr mae] [--backbone vit_tiny_patch16_224] [--batch 128] [--compile]

Forward, backward, update and, where there is one, teacher; views are ready in memory. Ours is the method's own page
with the optimiser, teacher and attention that `ssl-bench fit` uses. Theirs is put together from lightly 1.6's modules
and losses (`benchmarks/peers.py`), with lightly's LARS or torch's AdamW and with clipped gradients where ours has them.
The two take turns, so that whatever else the machine does slows both; the ratio is the median over rounds, with its
lowest and highest. The peak is a large matrix product's, in the same format. The gain from bf16 and from `--compile`
(`trainer.compile`) is ours over ours in fp32 and uncompiled.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from lightly.utils.lars import LARS
from peers import PEERS
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
                rival = name in PEERS and PEERS[name].source == "lightly" and not compiled
                theirs = their_step(name, options, form, device, recipe) if rival else None
                rounds = compete([ours, *([theirs] if theirs else [])], views, given.rounds, device)
                rate = statistics.median(given.batch / seconds[0] for seconds in rounds)
                plain = plain or rate
                cells = f"{name:10}{form + ('+c' if compiled else ''):8}{rate:10,.1f}{rate * flops / peaks[form]:9.0%}"
                if theirs:
                    ratios = sorted(seconds[1] / seconds[0] for seconds in rounds)
                    peer = statistics.median(given.batch / seconds[1] for seconds in rounds)
                    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                    cells += f"{peer:10,.1f}   {spread:17}"
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
    model = PEERS[name](Backbone(options), **SIZES.get(name, {})).to(device).train()
    weights = [p for p in model.parameters() if p.requires_grad]
    kind = LARS if "lars" in recipe.name else torch.optim.AdamW
    optimizer = kind(weights, lr=1e-5, weight_decay=recipe.weight_decay)

    def step(views: list[Tensor]) -> None:
        model.follow(0.99)
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
