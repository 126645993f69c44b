"""facebookresearch/dino: `{student, teacher, optimizer, epoch, args, dino_loss}`, or the teacher's backbone, flat."""

from typing import Any

from ssl_bench.checkpoints.official.layout import ENCODER, Given, Kind, Layout, Rule, resnet_rules, vit_rules
from ssl_bench.checkpoints.official.shapes import Shapes

TEACHER = "teacher.module."
ARGS = {
    "norm_last_layer": "norm_last_layer",
    "teacher_temp": "teacher_temp",
    "warmup_teacher_temp": "warmup_teacher_temp",
    "warmup_teacher_temp_epochs": "warmup_teacher_temp_epochs",
    "momentum_teacher": "momentum",
    "freeze_last_layer": "freeze_last_layer",
    "global_crops_scale": "global_scale",
    "local_crops_scale": "local_scale",
    "local_crops_number": "local_views",
}


def options(shapes: Shapes, given: Given) -> dict[str, Any]:
    """The head's size."""
    return given.stored(ARGS) | head_size(shapes)


def head_size(shapes: Shapes) -> dict[str, Any]:
    """Of a head of DINO or iBOT."""
    prototypes, bottleneck = shapes.of("head.last_layer.weight_v", 2)
    hidden = shapes.of("head.mlp.0.weight", 2)[0]
    return {"prototypes": prototypes, "hidden_dim": hidden, "bottleneck_dim": bottleneck}


def two_networks() -> tuple[Rule, ...]:
    """Student and teacher, each a backbone and a head; newer PyTorch has other names for a length and a direction."""
    rules: tuple[Rule, ...] = ()
    for theirs, ours in (("student", ""), ("teacher", TEACHER)):
        rules += (
            Rule(rf"{theirs}\.(head\.last_layer2?)\.parametrizations\.weight\.original0", rf"{ours}\1.weight_g"),
            Rule(rf"{theirs}\.(head\.last_layer2?)\.parametrizations\.weight\.original1", rf"{ours}\1.weight_v"),
            Rule(rf"{theirs}\.(head\..+)", rf"{ours}\1"),
            *layer_scale_rules(rf"{theirs}\.backbone\.", ours + ENCODER),
            *vit_rules(rf"{theirs}\.backbone\.", ours + ENCODER),
            *resnet_rules(rf"{theirs}\.backbone\.", ours + ENCODER),
        )
    return rules


def layer_scale_rules(before: str = "", to: str = ENCODER) -> tuple[Rule, ...]:
    """LayerScale of iBOT's ViT, which timm's ViT has under other names (and timm's BEiT under these)."""
    return (Rule(rf"{before}blocks\.(\d+)\.gamma_([12])", rf"{to}blocks.\1.ls\2.gamma"),)


LAYOUT = Layout(
    title="DINO",
    method="dino",
    source="https://github.com/facebookresearch/dino",
    paper="https://arxiv.org/abs/2104.14294",
    kinds=(
        Kind(
            title="whole pretraining checkpoint",
            sign=r"student\.(?:backbone|head)\..+",
            unlike=r"ibot_loss\..+|.+\.masked_embed|.+\.last_layer2\..+",
            rules=(Rule(r"dino_loss\.center", "centre.center"), *two_networks()),
            evaluated=TEACHER + ENCODER,
            method="dino",
            options=options,
        ),
        Kind(
            title="encoder",
            sign=r"blocks\.0\.attn\.qkv\.weight|layer1\.0\.conv1\.weight",
            unlike=r".+\.q_bias|decoder_.+",
            rules=(*vit_rules(), *resnet_rules()),
        ),
    ),
)
