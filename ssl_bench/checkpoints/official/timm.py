"""Weights under timm's own names, for `--backbone NAME`; or a folder such as `ssl-bench export` writes.

DINOv2's names are understood as well. Positions at other sizes are resampled as timm does, to so many and smoothed.
"""

from ssl_bench.checkpoints.official import dinov2
from ssl_bench.checkpoints.official.layout import BUFFER, CLASSIFIER, ENCODER, POOLED, Kind, Layout, Rule

LAYOUT = Layout(
    title="timm",
    method="timm",
    source="https://github.com/huggingface/pytorch-image-models",
    paper="",
    kinds=(
        Kind(
            title="network",
            sign=r"patch_embed\.proj\.weight|conv1(?:\.0)?\.weight",
            unlike=r"decoder_.+|pretext_neck\..+|masked_embed|mask_token|register_tokens|lm_head\..+",
            rules=(
                Rule(r".*(?:relative_position_index|attn_mask|k_bias)", reason=BUFFER),
                Rule(r"fc_norm\..+", reason=POOLED, refused=True),
                Rule(r"(?:head|fc|head\.fc)\.(?:weight|bias)", reason=CLASSIFIER),
                Rule(r"(.+)", rf"{ENCODER}\1"),
            ),
        ),
        *dinov2.LAYOUT.kinds[1:],
    ),
    interpolation=lambda shapes: {"interpolate_offset": 0.0, "interpolate_antialias": True},
)
