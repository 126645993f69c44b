"""facebookresearch/dinov2: a backbone alone, flat, as released, or `{teacher}` of a training run, with its heads.

Registers, LayerScale, SwiGLU (`w12`, `w3`) and blocks in chunks (`blocks.CHUNK.NUMBER`) are understood. Beside
registers, timm's class token has no position of its own: the file's is added to the token itself.

Positions at other sizes: the training code's configuration has an offset of 0.1 and no smoothing, as DINO, and so have
the released networks without registers; the released ones with registers, which have four and patches of 14 pixels, no
offset and smoothing (`hub/backbones.py`). The state says nothing of it, so that other files count as trained with the
configuration as it is: `--interpolate-offset` and `--interpolate-antialias` say otherwise.
"""

from typing import Any

from ssl_bench.checkpoints.official.layout import ENCODER, Kind, Layout, Rule
from ssl_bench.checkpoints.official.shapes import Shapes
from ssl_bench.errors import UserError


def without_class_position(tensors: dict[str, Any]) -> dict[str, Any]:
    """The class token with its position added, where registers keep it from having one in timm."""
    cls, positions = f"{ENCODER}cls_token", f"{ENCODER}pos_embed"
    if f"{ENCODER}reg_token" not in tensors or not {cls, positions} <= tensors.keys():
        return tensors
    both = tensors[positions]
    if both.ndim != 3 or tensors[cls].shape != both[:, :1].shape:
        raise UserError(
            f"a class token of {tuple(tensors[cls].shape)} has no place in positions of {tuple(both.shape)}"
        )
    return tensors | {cls: tensors[cls] + both[:, :1], positions: both[:, 1:]}


def interpolation(shapes: Shapes) -> dict[str, Any]:
    """How positions are resampled."""
    registers, patch = shapes.get("reg_token", (1, 0, 0))[1], shapes.of("patch_embed.proj.weight", 4)[2]
    if (registers, patch) == (4, 14):
        return {"interpolate_offset": 0.0, "interpolate_antialias": True}
    return {"interpolate_offset": 0.1, "interpolate_antialias": False}


def backbone_rules(before: str = "") -> tuple[Rule, ...]:
    """A DINOv2 backbone's names."""
    return (
        Rule(rf"{before}mask_token", reason="the mask token: no image is masked later"),
        Rule(rf"{before}register_tokens", f"{ENCODER}reg_token"),
        Rule(rf"{before}blocks\.(?:\d+\.)?(\d+)\.mlp\.w12\.(.+)", rf"{ENCODER}blocks.\1.mlp.fc1.\2"),
        Rule(rf"{before}blocks\.(?:\d+\.)?(\d+)\.mlp\.w3\.(.+)", rf"{ENCODER}blocks.\1.mlp.fc2.\2"),
        Rule(rf"{before}blocks\.\d+\.(\d+)\.(.+)", rf"{ENCODER}blocks.\1.\2"),
        Rule(rf"{before}(cls_token|pos_embed|patch_embed\.proj\..+|blocks\..+|norm\..+)", rf"{ENCODER}\1"),
    )


LAYOUT = Layout(
    title="DINOv2",
    method="dinov2",
    source="https://github.com/facebookresearch/dinov2",
    paper="https://arxiv.org/abs/2304.07193",
    kinds=(
        Kind(
            title="teacher of a training checkpoint",
            sign=r"teacher\.(?:dino_head|ibot_head)\..+|teacher\.backbone\.(?:mask_token|register_tokens)",
            rules=(
                Rule(r"(?:teacher\.)?(?:dino|ibot)_(?:head|loss|patch_loss)\..+", reason="of pretraining alone"),
                Rule(r"student\..+", reason="the student: its teacher is what is evaluated"),
                *backbone_rules(r"teacher\.backbone\."),
            ),
            prepare=without_class_position,
            interpolation=interpolation,
        ),
        Kind(
            title="encoder",
            sign=r"register_tokens|mask_token|blocks\.(?:\d+\.)?\d+\.(?:ls1\.gamma|mlp\.w12\.weight)",
            unlike=r"(?:encoder|pretext_neck|decoder_\w+|decoder|student|teacher|base_encoder|lm_head)\..+|.+\.q_bias",
            rules=backbone_rules(),
            prepare=without_class_position,
            interpolation=interpolation,
        ),
    ),
    heads={384: 6, 768: 12, 1024: 16, 1536: 24},
)
