"""Soft assignments of images to prototypes that use all prototypes equally (SwAV, DINOv2).

Shapes: B rows on a device, K prototypes.
"""

import torch
from torch import Tensor

from ssl_bench.runtime.distributed import all_reduce_sum


@torch.no_grad()
def sinkhorn(logits: Tensor, iterations: int = 3) -> Tensor:
    """(B, K) logits, temperature included -> probabilities of the rows, by the Sinkhorn-Knopp algorithm.

    Each iteration first gives every prototype the same weight over the rows of all devices, of which each may have
    another number, then every row the weight 1. Computed in the logits' format: exponentials of more than 88 do not
    fit float32, nor of more than 11 float16.
    """
    q = logits.exp()
    for _ in range(iterations):
        q = q / all_reduce_sum(q.sum(0))
        q = q / q.sum(1, keepdim=True)
    return q
