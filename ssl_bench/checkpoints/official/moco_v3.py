"""facebookresearch/moco-v3: `{state_dict, optimizer, scaler, epoch, arch}` with `module.base_encoder.*`.

The method has no page here: what is imported is the base encoder, which the official code evaluates. Its ViT-S has 12
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
                Rule(r"predictor\..+", reason="the predictor: there is no page of this method to continue it"),
                Rule(r"base_encoder\.(?:head|fc)\.\d.+", reason="the projector: there is no page of this method"),
                *vit_rules(r"base_encoder\."),
                *resnet_rules(r"base_encoder\."),
            ),
        ),
    ),
    heads={384: 12, 768: 12, 1024: 16},
)
