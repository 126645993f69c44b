"""A projection head's first layer, read from what a method saved, against the method itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.methods.barlow_twins import BarlowTwins
from ssl_bench.methods.byol import BYOL
from ssl_bench.methods.dino import DINO
from ssl_bench.methods.dinov2 import DINOv2
from ssl_bench.methods.ibot import IBOT
from ssl_bench.methods.mae import MAE
from ssl_bench.methods.moby import MoBY
from ssl_bench.methods.moco_v3 import MoCoV3
from ssl_bench.methods.simclr import SimCLR
from ssl_bench.methods.simclrv2 import SimCLRv2
from ssl_bench.methods.simsiam import SimSiam
from ssl_bench.methods.swav import SwAV
from ssl_bench.methods.vicreg import VICReg
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.projection import first_layer, load_first_layer
from ssl_bench.pretraining.method import Method

VIT = BackboneOptions("vit_nano_patch4_32", img_size=16, patch_size=4, width=24, depth=1, num_heads=2)
CROPS: dict[str, Any] = {"prototypes": 16, "hidden_dim": 20, "bottleneck_dim": 8, "local_size": 8}


def built(name: str) -> Method:
    torch.manual_seed(0)
    backbone = Backbone(VIT)
    methods: dict[str, Any] = {
        "simclr": lambda: SimCLR(backbone),
        "simclrv2": lambda: SimCLRv2(backbone),
        "byol": lambda: BYOL(backbone, hidden_dim=20, projection_dim=8),
        "moco-v3": lambda: MoCoV3(backbone, hidden_dim=20, projection_dim=8),
        "simsiam": lambda: SimSiam(backbone, projection_dim=20, prediction_dim=8),
        "barlow-twins": lambda: BarlowTwins(backbone, projection_dims=(20, 8)),
        "vicreg": lambda: VICReg(backbone, projection_dims=(20, 8)),
        "swav": lambda: SwAV(backbone, prototypes=16, hidden_dim=20, projection_dim=8, local_size=8),
        "moby": lambda: MoBY(backbone, hidden_dim=20, projection_dim=8, queue_length=16),
        "dino": lambda: DINO(backbone, **CROPS),
        "dinov2": lambda: DINOv2(backbone, **CROPS),
        "ibot": lambda: IBOT(backbone, **CROPS),
        "mae": lambda: MAE(backbone, decoder_dim=16, decoder_depth=1, decoder_heads=2),
    }
    method: Method = methods[name]()
    for module in method.modules():
        if isinstance(module, nn.BatchNorm1d):  # so that running statistics are seen
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(1, 2)
    for parameter in method.parameters():  # so that a teacher is not its student
        parameter.data += 0.1 * torch.randn_like(parameter)
    return method


def layers(method: Method, name: str, branch: str) -> nn.Sequential:
    """The first linear layer, norm and nonlinearity of the method's own head."""
    head: Any
    if name in ("simclr", "simclrv2"):
        head = method.head
    elif name in ("byol", "moco-v3", "moby") and branch == "teacher":
        head = (method.target if name == "byol" else method.teacher).module[1]  # type: ignore[index,union-attr]
    elif name not in ("dino", "dinov2", "ibot"):
        head = method.projector
    else:
        head = (method.teacher.module.head if branch == "teacher" else method.head).mlp  # type: ignore[union-attr]
    return nn.Sequential(*list(head)[: 2 if name in ("dino", "dinov2", "ibot") else 3])


@pytest.mark.parametrize(
    ("name", "branch"),
    [
        ("simclr", "encoder"),
        ("simclrv2", "encoder"),
        ("byol", "student"),
        ("byol", "teacher"),
        ("moco-v3", "student"),
        ("moco-v3", "teacher"),
        ("moby", "student"),
        ("moby", "teacher"),
        ("simsiam", "encoder"),
        ("barlow-twins", "encoder"),
        ("vicreg", "encoder"),
        ("swav", "encoder"),
        ("dino", "student"),
        ("dino", "teacher"),
        ("dinov2", "student"),
        ("dinov2", "teacher"),
        ("ibot", "student"),
        ("ibot", "teacher"),
    ],
)
def test_it_is_the_methods_own(name: str, branch: str, tmp_path: Path) -> None:
    method = built(name).eval()
    assert branch in method.branches
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": method.state_dict()}, tmp_path / "checkpoints" / "last.ckpt")
    found = load_first_layer(tmp_path, name, branch)
    assert found is not None and not found.training
    features = torch.randn(5, 24)
    with torch.no_grad():
        expected = layers(method, name, branch)(features)
        assert torch.equal(found(features), expected)
        other = {"student": "teacher", "teacher": "student"}.get(branch)
        if other:
            assert not torch.equal(layers(method, name, other)(features), expected)


def test_methods_without_a_head_have_none() -> None:
    assert first_layer(built("mae").state_dict(), "mae", "encoder") is None
    one = SimCLRv2(Backbone(VIT), projection_layers=1)
    assert first_layer(one.state_dict(), "simclrv2", "encoder") is None
    for name, shallow in {
        "simsiam": SimSiam(Backbone(VIT), projection_layers=1),
        "vicreg": VICReg(Backbone(VIT), projection_dims=(8,)),
    }.items():
        assert first_layer(shallow.state_dict(), name, "encoder") is None


def test_no_checkpoint_no_head_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    assert load_first_layer(tmp_path, "simclr", "encoder") is None
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        load_first_layer(tmp_path, "simclr", "encoder")
    assert load_first_layer(tmp_path, "mae", "encoder") is None  # nobody asked
