"""facebookresearch/moco-v3: `{state_dict, optimizer, scaler, epoch, arch}` with `module.base_encoder.*`.

The method itself is not here: what is imported is the base encoder, which the official code evaluates. Its ViT-S has 12
heads.
"""

from ssl_bench.checkpoints.official.layout import Kind, Layout, Rule, resnet_rules, vit_rules

LAYOUT = Layout(
    title="MoCo v3",
    method="moco-v3",
    source="https://github.com/facebookresearch/moco-v3",
    paper="https://arxiv.org/abs/2104.02057",
    kinds=(
        Kind(
            title="encoder of a whole pretraining checkpoint",
            sign=r"base_encoder\..+",
            rules=(
                Rule(r"momentum_encoder\..+", reason="the momentum encoder: the base encoder is what is evaluated"),
                Rule(r"predictor\..+", reason="the predictor: the method is not here to continue it"),
                Rule(r"base_encoder\.(?:head|fc)\.\d.+", reason="the projector: the method is not here to continue it"),
                *vit_rules(r"base_encoder\."),
                *resnet_rules(r"base_encoder\."),
            ),
        ),
    ),
    heads={384: 12, 768: 12, 1024: 16},
)
