"""What a run is about to take, roughly, before torch is loaded: FLOPs by formula and a measured rate. Torch-free."""

import os
import shutil
import time
from typing import Any

from ssl_bench.config.fit_config import FitConfig
from ssl_bench.models.rough_flops import forward_flops, patch_of, transformer_flops

GPU_FLOPS = 5e13  # a second of one GPU, in bf16, of which training reaches that much: assumed
CPU_SHARE = 0.35  # of the rate of large matrix products, what training small networks reaches: measured on two cores
PHOTOGRAPH = 224  # pixels that photographs are brought to
SIDE = 64  # of the matrices that are multiplied to measure that; so small that one thread does it


def described(parsed: FitConfig) -> str:
    """One line: where the numbers come from, network, image size, epochs and about how long that takes here."""
    config = parsed.config
    size = image_size(parsed)
    network = config.get("backbone", {}).get("name", "a tokenizer")
    patch = config.get("backbone", {}).get("patch_size")
    what = f"{network}{f' with patches of {patch} px' if patch else ''} at {size} px"
    epochs, steps = config["trainer"]["max_epochs"], config["trainer"]["max_steps"]
    long = f"{epochs} epochs" if steps < 0 else f"{epochs} epochs or {steps} steps"
    seconds = estimated_seconds(parsed)
    takes = f", about {_clock(seconds)} on this machine" if seconds is not None else ""
    start = f"recipe {parsed.recipe}" if parsed.recipe else "the method's own numbers"
    start += f", {parsed.chosen}" if parsed.chosen else ""
    return f"{start}: {what}, {long}{takes}; shorter: --trainer.max_epochs; --print_config shows every number"


def image_size(parsed: FitConfig) -> int:
    """Pixels of a side of what the network sees."""
    asked = (parsed.config.get("backbone", {}).get("img_size"), parsed.config["data"]["image_size"], parsed.images.size)
    return next((size for size in asked if size), PHOTOGRAPH)


def estimated_seconds(parsed: FitConfig) -> float | None:
    """Of training, without loading and probes; None where too little is known."""
    config, count = parsed.config, parsed.images.count
    flops = image_flops(config, image_size(parsed))
    if flops is None or count is None:
        return None
    images = float(count * config["trainer"]["max_epochs"])
    if config["trainer"]["max_steps"] > 0:
        step = config["data"]["batch_size"] * config["trainer"]["accumulate_grad_batches"]
        images = min(images, config["trainer"]["max_steps"] * step)
    limit = config["trainer"]["limit_train_batches"]
    if isinstance(limit, int):
        images = min(images, limit * config["data"]["batch_size"] * config["trainer"]["max_epochs"])
    elif limit is not None:
        images *= limit
    return images * flops / _rate(config["trainer"])


def image_flops(config: dict[str, Any], size: int) -> float | None:
    """Of one image's training: forward and backward, three times the forward, of each network that learns."""
    method, name = config["method"], config["method"]["name"]
    if "backbone" not in config:
        return None
    whole = forward_flops(config["backbone"], size)
    if whole is None:
        return None
    if name == "mae":
        return 3 * (forward_flops(config["backbone"], size, 1 - method["mask_ratio"]) or 0) + 3 * _decoder(config, size)
    if name == "cae":
        ratio: float = method["mask_ratio"]
        return 4 * whole * max(ratio, 1 - ratio) + 3 * _decoder(config, size)
    if name in ("simclrv2-finetune", "simclrv2-distill"):  # one view, learned from labels or from a teacher
        return (4 if "teacher" in method else 3) * whole
    follows = "momentum" in method  # a teacher, which looks and does not learn
    views: int = method.get("global_views", 1 if "mask_ratio" in method and not follows else 2)
    local_size = method.get("local_size") or max(1, round(size * 96 / 224))
    local = (forward_flops(config["backbone"], local_size) or 0) * int(method.get("local_views", 0))
    return (4 if follows else 3) * views * whole + 3 * local


def _decoder(config: dict[str, Any], size: int) -> float:
    """Forward FLOPs of the blocks after the encoder."""
    tokens = (size / patch_of(config["backbone"])) ** 2 + 1
    blocks = config["method"]["decoder_depth"] + config["method"].get("regressor_depth", 0)
    return transformer_flops(config["method"]["decoder_dim"], blocks, tokens)


def _rate(trainer: dict[str, Any]) -> float:
    """FLOPs a second: of the GPUs, as one may expect; of this processor, measured for a moment."""
    if trainer["accelerator"] in ("auto", "gpu", "cuda") and shutil.which("nvidia-smi"):
        devices = trainer["devices"]
        return GPU_FLOPS * (devices if isinstance(devices, int) and devices > 0 else 1) * int(trainer["num_nodes"])
    import numpy as np

    matrix = np.ones((SIDE, SIDE), dtype=np.float32)
    best, end = float("inf"), time.perf_counter() + 0.05
    while time.perf_counter() < end:
        begin = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - begin)  # the shortest, as others may use the machine now
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return CPU_SHARE * 2 * SIDE**3 / best * (int(threads) if threads.isdecimal() else os.cpu_count() or 1)


def _clock(seconds: float) -> str:
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return "a minute"
