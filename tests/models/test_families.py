"""Every family of timm's: a small network of each goes through methods of views, protocols and export.

The table in docs/backbones.md is this file's list.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from paths import ROOT
from small import build, views_of

from ssl_bench.checkpoints.export import export
from ssl_bench.config import registry
from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.models.architectures import timm_names
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.saved_backbone import write_backbone
from ssl_bench.records.run import DataRecord, RunInfo, write_run

VIT = {"patch_size": 8, "width": 48, "depth": 2, "num_heads": 3}
SWIN = {"patch_size": 2, "width": 24, "timm_args": {"depths": [2, 2], "num_heads": [2, 3], "window_size": 4}}


class Member(NamedTuple):
    """A network that stands for its family; ``options`` make it small."""

    file: str
    name: str
    size: int = 32
    options: dict[str, Any] = {}


FAST = [
    Member("vision_transformer", "vit_pico_patch4_32"),
    Member("beit", "beit_pico_patch4_32"),
    Member("eva", "vit_small_patch16_dinov3", 32, VIT),
    Member("swin_transformer", "swin_pico_patch2_32"),
    Member("swin_transformer_v2", "swinv2_tiny_window8_256", 32, SWIN),
    Member("resnet", "resnet_nano"),
    Member("efficientnet", "test_efficientnet"),
    Member("convnext", "test_convnext"),
    Member("byobnet", "test_byobnet"),
    Member("maxxvit", "test_coatnet"),
    Member("mambaout", "test_mambaout"),
    Member("mobilenetv3", "lcnet_035"),
]
SLOW = [
    Member("byoanet", "eca_halonext26ts", 256),
    Member("cait", "cait_xxs24_224"),
    Member("coat", "coat_tiny"),
    Member("convit", "convit_tiny"),
    Member("convmixer", "convmixer_768_32"),
    Member("cpubone", "cpubone_nano"),
    Member("crossvit", "crossvit_tiny_240", 240),
    Member("csatv2", "csatv2", 64),
    Member("cspnet", "cs3darknet_focus_s"),
    Member("cspnext", "cspnext_tiny"),
    Member("davit", "davit_tiny"),
    Member("deit", "deit_tiny_distilled_patch16_224"),
    Member("densenet", "densenet121"),
    Member("dla", "dla46_c"),
    Member("dpn", "dpn48b"),
    Member("edgenext", "edgenext_xx_small"),
    Member("efficientformer", "efficientformer_l1", 224),
    Member("efficientformer_v2", "efficientformerv2_s0"),
    Member("efficientvim", "efficientvim_m1"),
    Member("efficientvit_mit", "efficientvit_b0"),
    Member("efficientvit_msra", "efficientvit_m0"),
    Member("fasternet", "fasternet_t0"),
    Member("fastvit", "fastvit_t8"),
    Member("focalnet", "focalnet_tiny_srf"),
    Member("gcvit", "gcvit_xxtiny"),
    Member("ghostnet", "ghostnet_050"),
    Member("hardcorenas", "hardcorenas_a"),
    Member("hgnet", "hgnetv2_b0"),
    Member("hiera", "hiera_tiny_224"),
    Member("hieradet_sam2", "sam2_hiera_tiny"),
    Member("hrnet", "hrnet_w18_small"),
    Member("iformer", "iformer_t"),
    Member("inception_next", "inception_next_atto"),
    Member("lcnetv2", "lcnetv2_small"),
    Member("levit", "levit_128s", 224),
    Member("lowformer", "lowformer_b0"),
    Member("metaformer", "poolformer_s12"),
    Member("mlp_mixer", "resmlp_12_224"),
    Member("mobilevit", "mobilevit_xxs"),
    Member("mvitv2", "mvitv2_tiny"),
    Member("nest", "nest_tiny_jx", 224),
    Member("nextvit", "nextvit_small"),
    Member("nfnet", "test_nfnet", 64),
    Member("pit", "pit_ti_224", 64),
    Member("pvt_v2", "pvt_v2_b0"),
    Member("rdnet", "rdnet_tiny"),
    Member("regnet", "regnetx_002"),
    Member("repghost", "repghostnet_050"),
    Member("repvit", "repvit_m0_9"),
    Member("res2net", "res2net50_48w_2s"),
    Member("resnest", "resnest14d"),
    Member("resnetv2", "resnetv2_18"),
    Member("rexnet", "rexnet_100"),
    Member("selecsls", "selecsls42"),
    Member("senet", "legacy_seresnet18"),
    Member("sequencer", "sequencer2d_s"),
    Member("shvit", "shvit_s1", 64),
    Member("sknet", "skresnet18"),
    Member("starnet", "starnet_s050"),
    Member("swiftformer", "swiftformer_xs"),
    Member("swin_transformer_v2_cr", "swinv2_cr_tiny_ns_224"),
    Member("tiny_vit", "tiny_vit_5m_224"),
    Member("tnt", "tnt_s_legacy_patch16_224"),
    Member("tresnet", "tresnet_m"),
    Member("twins", "twins_svt_small"),
    Member("vgg", "vgg11_bn"),
    Member("visformer", "visformer_tiny"),
    Member("vision_transformer_hybrid", "vit_tiny_r_s16_p8_224"),
    Member("vision_transformer_relpos", "vit_relpos_small_patch16_224"),
    Member("vision_transformer_sam", "samvit_base_patch16_224"),
    Member("vitamin", "vitamin_small_224"),
    Member("volo", "volo_d1_224", 64),
    Member("vovnet", "ese_vovnet19b_slim_dw"),
    Member("xception", "legacy_xception", 64),
    Member("xception_aligned", "xception41", 64),
    Member("xcit", "xcit_nano_12_p16_224"),
]
EVERY = [*FAST, *(pytest.param(*member, marks=pytest.mark.slow, id=member.file) for member in SLOW)]
FILES = ("file", "name", "size", "options")
CLASSES = 2


def splits(size: int) -> tuple[TrainSplit, ValidationSplit, TestSplit]:
    rng = np.random.default_rng(0)
    images = torch.tensor(rng.integers(0, 256, (18, 3, size, size)), dtype=torch.uint8)
    labels = np.arange(18) % CLASSES
    pool = ResidentPool(images=images, labels=labels, ids=[f"train/{i}" for i in range(18)])
    return TrainSplit(pool, np.arange(8)), ValidationSplit(pool, np.arange(8, 12)), TestSplit(pool, np.arange(12, 18))


def one(name: str) -> dict[str, Any]:
    """Options of a protocol that make it short."""
    rates = {"mixup": 0.0, "cutmix": 0.0, "randaugment": None, "precision": "32-true", "warmup_epochs": 0}
    return {
        "knn": {},
        "linear": {"iterations": 8, "batch_size": 8, "seeds": 1},
        "partial-finetune": {"depths": (1.0,), "epochs": (1,), **rates},
        "finetune": {"epochs": 1, "search_epochs": 1, "lrs": (0.01,), "layer_decays": (0.75,), "drop_paths": (0.1,)}
        | rates,
    }[name]


@pytest.mark.parametrize(FILES, EVERY, ids=[member.file for member in FAST] + [None] * len(SLOW))
def test_a_member_of_each_family_is_pretrained_evaluated_and_exported(
    file: str, name: str, size: int, options: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    chosen = BackboneOptions(name, img_size=size, **options)
    for method in ("simclr", "byol", "dino"):
        given = {"local_views": 0} if method == "dino" and not Backbone(chosen).takes(size // 2) else {}
        learner = build(method, chosen, **given)
        learner.loss(views_of(learner, 2)).backward()
        gradients = {name: p.grad for name, p in learner.backbone.named_parameters() if p.requires_grad}
        missing = [name for name, gradient in gradients.items() if gradient is None]
        assert len(missing) < 0.05 * len(gradients), (method, missing)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients.values())
    backbone = learner.backbone
    frozen = FeatureExtractor(backbone, (0.5,) * 3, (0.25,) * 3, {"method": "dino", "branch": "student"})
    train, validation, test = splits(size)
    for protocol in ("knn", "linear", "partial-finetune", "finetune"):
        evaluation: Any = registry.load(registry.find("evaluations", protocol))(**one(protocol))
        assert evaluation.refusal(frozen) is None
        found = evaluation.predict(frozen, evaluation.fit(frozen, train, validation), test.unlabelled())
        assert all(len(each.labels) == len(test) and set(each.labels.tolist()) <= {0, 1} for each in found), protocol
    if backbone.timm_can_build:  # which checks that timm gives the same features
        run = tmp_path / "run"
        run.mkdir()
        write_backbone(run, backbone, (0.5,) * 3, (0.25,) * 3)
        write_run(run, RunInfo("finished", "pretrained", "dino", DataRecord("digits", {}), {}))
        export(run, tmp_path / "out")


def test_the_documentation_has_these_families_and_names_the_others() -> None:
    titles = {"ViT": "vision_transformer", "BEiT": "beit", "Swin": "swin_transformer", "ResNet": "resnet"}
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    assert rows == [(member.file, member.name, str(member.size)) for member in (*FAST, *SLOW)]
    untried = set(re.findall(r"`(\w+)`", text.partition("Not tried")[2]))
    assert {titles.get(family, family) for family in timm_names()} == untried | {file for file, *_ in rows}
