"""bytedance/ibot: `{student, teacher, optimizer, epoch, args, ibot_loss}`, or a backbone alone under `state_dict`.

A shared head is stored twice, as `last_layer` and as `last_layer2`.
"""

from typing import Any

from ssl_bench.checkpoints.official.dino import ARGS, TEACHER, head_size, layer_scale_rules, two_networks
from ssl_bench.checkpoints.official.layout import ENCODER, Given, Kind, Layout, Rule, vit_rules
from ssl_bench.checkpoints.official.shapes import Shapes

OWN_ARGS = ARGS | {
    "teacher_patch_temp": "teacher_patch_temp",
    "warmup_teacher_patch_temp": "warmup_teacher_patch_temp",
    "lambda1": "cls_weight",
    "lambda2": "patch_weight",
    "pred_shape": "mask_shape",
    "pred_start_epoch": "mask_start_epoch",
}


def options(shapes: Shapes, given: Given) -> dict[str, Any]:
    """The heads' size, and which of them are shared."""
    own, teachers = (f"{owner}head.last_layer2.weight_v" for owner in ("", TEACHER))
    shared = {"shared_head": own not in shapes, "shared_head_teacher": teachers not in shapes}
    apart = {"patch_prototypes": shapes.of(teachers, 2)[0]} if teachers in shapes else {}
    return given.stored(OWN_ARGS) | head_size(shapes) | shared | apart


LAYOUT = Layout(
    title="iBOT",
    method="ibot",
    source="https://github.com/bytedance/ibot",
    paper="https://arxiv.org/abs/2111.07832",
    kinds=(
        Kind(
            title="whole pretraining checkpoint",
            sign=r"ibot_loss\..+|student\..+\.(?:masked_embed|last_layer2\..+)",
            rules=(
                Rule(r"ibot_loss\.center", "centre.center"),
                Rule(r"ibot_loss\.center2", "centre2.center"),
                Rule(r"student\.backbone\.masked_embed", "mask_token"),
                *two_networks(),
            ),
            evaluated=TEACHER + ENCODER,
            method="ibot",
            options=options,
            tied=(r"(student|teacher)\.head\.last_layer2\.(.+)", r"\1.head.last_layer.\2"),
        ),
        Kind(
            title="encoder",
            sign=r"blocks\.0\.attn\.qkv\.weight",
            unlike=r".+\.q_bias|decoder_.+",
            rules=(
                Rule("masked_embed", reason="the student's mask token: no image is masked later"),
                *layer_scale_rules(),
                *vit_rules(),
            ),
        ),
    ),
)
