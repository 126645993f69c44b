"""What makes a step fast without changing what it computes: number format, attention, compiled blocks, kept memory."""

import ctypes
import sys
from typing import Any

import torch
from timm.models import beit, resnet, swin_transformer, vision_transformer
from torch import nn

BLOCKS = (
    vision_transformer.Block,
    beit.Block,
    swin_transformer.SwinTransformerBlock,
    resnet.BasicBlock,
    resnet.Bottleneck,
)


def effective_precision(asked: str, accelerator: str) -> str:
    """bf16-mixed where `auto` meets hardware that multiplies bf16 (GPUs, CPUs with AMX or AVX-512), else 32-true."""
    if asked != "auto":
        return asked
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    if accelerator in ("auto", "cpu") and not torch.backends.mps.is_available():
        capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return "bf16-mixed" if capable.get("amx_bf16") or capable.get("avx512_bf16") else "32-true"
    return "32-true"


def write_out_attention(network: nn.Module) -> None:
    """Plain matrix products in place of fused attention.

    On a CPU in bf16 the fused kernel is the slow one for short sequences: measured with 65 tokens, 64 to 96 wide, steps
    take half the time without it (a Xeon with AMX, one thread).
    """
    module: Any
    for module in network.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def compile_blocks(network: nn.Module) -> None:
    """`torch.compile` of each block, in place: one is compiled for all alike, and weights keep their names."""
    for module in network.modules():
        if isinstance(module, BLOCKS):
            module.compile()


def keep_freed_memory() -> None:
    """Have the allocator keep activations for the next step rather than return them and fault them in again."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 30) or libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD; before glibc 2.35 at most 32 MiB
        libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
