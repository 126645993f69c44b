"""What a fine-tuned copy of a backbone is made of."""

import torch

from ssl_bench.config.options import BackboneOptions
from ssl_bench.finetuning.model import layer_ids
from ssl_bench.models.backbone import Backbone


class Holder(torch.nn.Module):
    """A backbone and a head, as `layer_ids` names their parameters."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.head = backbone, torch.nn.Linear(backbone.dim, 2)


def test_absolute_positions_of_a_swin_decay_with_the_patch_embedding() -> None:
    """SimMIM's code gives them the head's rate, since none of its rules names them; layer 0 is what is meant."""
    ids, top = layer_ids(Holder(Backbone(BackboneOptions("swin_pico_patch2_32", absolute_positions=True))))  # type: ignore[arg-type]
    assert ids["backbone.model.absolute_pos_embed"] == ids["backbone.model.patch_embed.proj.weight"] == 0
    assert ids["head.weight"] == ids["backbone.model.norm.weight"] == top
