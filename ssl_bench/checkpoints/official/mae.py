"""facebookresearch/mae: `{model, optimizer, epoch, scaler, args}`, or the encoder alone under `model`.

The encoder's names are timm's, the decoder's our own. A decoder 512 wide was published with 16 heads.
"""

from typing import Any

from ssl_bench.checkpoints.official.layout import Given, Kind, Layout, Rule, blocks, vit_rules
from ssl_bench.checkpoints.official.shapes import Shapes
from ssl_bench.errors import UserError

ARGS = {"mask_ratio": "mask_ratio", "norm_pix_loss": "norm_pix"}


def options(shapes: Shapes, given: Given) -> dict[str, Any]:
    """The decoder's size."""
    width = shapes.of("decoder_embed.weight", 2)[0]
    heads = given.method.get("decoder_heads", {512: 16}.get(width))
    if heads is None:
        unknown = f"the shapes of a decoder {width} wide do not say how many attention heads it has"
        raise UserError(f"{unknown}: give --method.decoder_heads N, or --encoder-only")
    size = {"decoder_dim": width, "decoder_depth": blocks(shapes, "decoder_blocks"), "decoder_heads": heads}
    return given.stored(ARGS) | size


LAYOUT = Layout(
    title="MAE",
    method="mae",
    source="https://github.com/facebookresearch/mae",
    paper="https://arxiv.org/abs/2111.06377",
    heads={768: 12, 1024: 16, 1280: 16},
    interpolation=lambda shapes: {"interpolate_offset": 0.0, "interpolate_antialias": False},
    kinds=(
        Kind(
            title="whole pretraining checkpoint",
            sign=r"decoder_embed\.weight",
            rules=(Rule(r"(mask_token|decoder_.+)", r"\1"), *vit_rules()),
            method="mae",
            options=options,
        ),
        Kind(title="encoder", sign=r"blocks\.0\.attn\.qkv\.weight", unlike=r".+\.q_bias", rules=vit_rules()),
    ),
)
