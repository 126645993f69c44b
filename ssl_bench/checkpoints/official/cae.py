"""lxtGH/CAE: `{model, optimizer, epoch, args, ...}` with `encoder.`, `mask_token` and `pretext_neck.`; no teacher.

Its small ViT has 12 heads.
"""

from typing import Any

from ssl_bench.checkpoints.official.layout import Given, Kind, Layout, Rule, blocks, vit_rules
from ssl_bench.checkpoints.official.shapes import Shapes
from ssl_bench.errors import UserError

HEADS = {384: 12, 768: 12, 1024: 16}
ARGS = {
    "decoder_num_heads": "decoder_heads",
    "align_loss_weight": "align_weight",
    "fix_init_weight": "fix_init",
}


def options(shapes: Shapes, given: Given) -> dict[str, Any]:
    """The neck's size."""
    outputs, width = shapes.of("pretext_neck.head.weight", 2)
    pixels = 3 * shapes.of("backbone.model.patch_embed.proj.weight", 4)[2] ** 2
    if outputs != pixels and "tokenizer" not in given.method:
        predicted = f"the decoder predicts one of {outputs} visual tokens"
        raise UserError(f"{predicted}: give their tokenizer, --method.tokenizer FILE, or --encoder-only")
    stored = given.stored(ARGS)
    heads = given.method.get("decoder_heads", stored.get("decoder_heads", HEADS.get(width)))
    if heads is None:
        unknown = f"the shapes of a decoder {width} wide do not say how many attention heads it has"
        raise UserError(f"{unknown}: give --method.decoder_heads N, or --encoder-only")
    return stored | {
        **({"tokenizer": "pixels"} if outputs == pixels else {}),
        "decoder_dim": width,
        "decoder_heads": heads,
        "regressor_depth": blocks(shapes, "pretext_neck.regressor_blocks"),
        "decoder_depth": blocks(shapes, "pretext_neck.decoder_blocks"),
        "layer_scale": 0.1 if "pretext_neck.decoder_blocks.0.gamma_1" in shapes else 0.0,
    }


LAYOUT = Layout(
    title="CAE",
    method="cae",
    source="https://github.com/lxtGH/CAE",
    paper="https://arxiv.org/abs/2202.03026",
    kinds=(
        Kind(
            title="whole pretraining checkpoint",
            sign=r"pretext_neck\..+",
            rules=(
                Rule(r"(mask_token|pretext_neck\..+|encoder_to_decoder(?:_norm)?\..+)", r"\1"),
                *vit_rules(r"encoder\."),
            ),
            method="cae",
            options=options,
            absent=(
                Rule(r"tokenizer\..+", reason="the tokenizer's, which has a file of its own"),
                Rule(r"teacher\.(.+)", r"backbone.\1", reason="left out of such files: starts as the encoder"),
            ),
        ),
        Kind(
            title="encoder",
            sign=r"(?:encoder\.)?blocks\.0\.attn\.q_bias",
            unlike=r"decoder\..+|(?:encoder\.)?rel_pos_bias\..+|pretext_neck\..+",
            rules=vit_rules(r"(?:encoder\.)?"),
        ),
    ),
    heads=HEADS,
    interpolation=lambda shapes: {"interpolate_offset": 0.0, "interpolate_antialias": False},
)
