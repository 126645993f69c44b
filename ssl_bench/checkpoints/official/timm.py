"""Weights under timm's own names, for `--backbone NAME`; or a folder such as `ssl-bench export` writes.

DINOv2's names are understood as well: registers, SwiGLU, chunks of blocks; beside registers, the position of the class
token is added to the token itself.
"""

from typing import Any

from ssl_bench.checkpoints.official.layout import BUFFER, CLASSIFIER, ENCODER, POOLED, Kind, Layout, Rule


def without_class_position(tensors: dict[str, Any]) -> dict[str, Any]:
    """The class token with its position added, where registers keep it from having one in timm."""
    cls, positions = f"{ENCODER}cls_token", f"{ENCODER}pos_embed"
    if f"{ENCODER}reg_token" not in tensors or not {cls, positions} <= tensors.keys():
        return tensors
    both = tensors[positions]
    return tensors | {cls: tensors[cls] + both[:, :1], positions: both[:, 1:]}


LAYOUT = Layout(
    title="timm",
    method="timm",
    source="https://github.com/huggingface/pytorch-image-models",
    paper="",
    kinds=(
        Kind(
            title="encoder in DINOv2's names",
            sign=r"register_tokens|mask_token",
            unlike=r"(?:encoder|pretext_neck|decoder_\w+|decoder|student|teacher|base_encoder)\..+",
            rules=(
                Rule("mask_token", reason="the mask token: no image is masked later"),
                Rule("register_tokens", f"{ENCODER}reg_token"),
                Rule(r"blocks\.(?:\d+\.)?(\d+)\.mlp\.w12\.(.+)", rf"{ENCODER}blocks.\1.mlp.fc1.\2"),
                Rule(r"blocks\.(?:\d+\.)?(\d+)\.mlp\.w3\.(.+)", rf"{ENCODER}blocks.\1.mlp.fc2.\2"),
                Rule(r"blocks\.\d+\.(\d+)\.(.+)", rf"{ENCODER}blocks.\1.\2"),
                Rule(r"(cls_token|pos_embed|patch_embed\..+|blocks\..+|norm\..+)", rf"{ENCODER}\1"),
            ),
            prepare=without_class_position,
        ),
        Kind(
            title="network",
            sign=r"patch_embed\.proj\.weight|conv1(?:\.0)?\.weight",
            unlike=r"decoder_.+|pretext_neck\..+|masked_embed",
            rules=(
                Rule(r".*(?:relative_position_index|attn_mask|k_bias)", reason=BUFFER),
                Rule(r"fc_norm\..+", reason=POOLED, refused=True),
                Rule(r"(?:head|fc|head\.fc)\.(?:weight|bias)", reason=CLASSIFIER),
                Rule(r"(.+)", rf"{ENCODER}\1"),
            ),
        ),
    ),
)
