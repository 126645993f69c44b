"""microsoft/SimMIM: `{model, optimizer, lr_scheduler, epoch, config, ...}`, ViT (a BEiT) or Swin under `encoder.`."""

from typing import Any

from ssl_bench.checkpoints.official.layout import Given, Kind, Layout, Rule, swin_rules, vit_rules
from ssl_bench.checkpoints.official.shapes import Shapes

ARGS = {"DATA.MASK_RATIO": "mask_ratio", "DATA.MASK_PATCH_SIZE": "mask_cell"}


def options(shapes: Shapes, given: Given) -> dict[str, Any]:
    """What the file's configuration says of the masks."""
    return given.stored(ARGS)


LAYOUT = Layout(
    title="SimMIM",
    method="simmim",
    source="https://github.com/microsoft/SimMIM",
    paper="https://arxiv.org/abs/2111.09886",
    kinds=(
        Kind(
            title="whole pretraining checkpoint",
            sign=r"decoder\.0\.weight",
            rules=(
                Rule(r"encoder\.(mask_token)", r"\1"),
                Rule(r"decoder\.0\.(.+)", r"decoder.\1"),
                *swin_rules(r"encoder\."),
                *vit_rules(r"encoder\."),
            ),
            method="simmim",
            options=options,
        ),
        Kind(
            title="encoder",
            sign=r"(?:encoder\.)?(?:blocks\.0\.attn\.q_bias|layers\.0\.blocks\.0\.attn\.qkv\.weight)",
            unlike=r"pretext_neck\..+",
            rules=(
                Rule(r"(?:encoder\.)?mask_token", reason="the mask token: no image is masked later"),
                *swin_rules(r"(?:encoder\.)?"),
                *vit_rules(r"(?:encoder\.)?"),
            ),
        ),
    ),
)
