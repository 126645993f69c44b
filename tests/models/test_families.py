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
from torch import Tensor, nn

from ssl_bench.checkpoints.export import export
from ssl_bench.config import registry
from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.finetuning.model import FineTuneModel, Recipe
from ssl_bench.finetuning.shared_trunk import Top, states
from ssl_bench.models.architectures import timm_names
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.saved_backbone import write_backbone
from ssl_bench.models.stages import depth_of, stages
from ssl_bench.optim.optimizers import StepSchedule, build_optimizer
from ssl_bench.pretraining.layer_rates import decayed_by_layer
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
    Member("eva", "vit_small_patch16_dinov3", 32, VIT),
    Member("swin_transformer_v2", "swinv2_tiny_window8_256", 32, SWIN),
    Member("efficientnet", "test_efficientnet"),
    Member("convnext", "test_convnext"),
]
SLOW = [
    Member("vision_transformer", "vit_pico_patch4_32"),
    Member("beit", "beit_pico_patch4_32"),
    Member("swin_transformer", "swin_pico_patch2_32"),
    Member("resnet", "resnet_nano"),
    Member("byobnet", "test_byobnet"),
    Member("maxxvit", "test_coatnet"),
    Member("mambaout", "test_mambaout"),
    Member("mobilenetv3", "lcnet_035"),
]
OTHERS = [  # whose results the documentation does not have yet
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
EVERY = [*FAST, *(pytest.param(*member, marks=pytest.mark.slow, id=member.file) for member in (*SLOW, *OTHERS))]
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


@pytest.mark.integration
@pytest.mark.parametrize(FILES, EVERY, ids=[member.file for member in FAST] + [None] * (len(SLOW) + len(OTHERS)))
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


EVAS = ("eva02_tiny_patch14_224", "vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_ape_224")


class Keep(nn.Module):
    """What timm drops patches with, told which to keep."""

    def __init__(self, keep: Tensor, prefix: int) -> None:
        super().__init__()
        self.keep, self.prefix = keep, prefix

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        kept = tokens[:, self.prefix :].take_along_dim(self.keep[..., None], 1)
        return torch.cat([tokens[:, : self.prefix], kept], 1), self.keep


@pytest.mark.parametrize("name", EVAS)
def test_tokens_of_an_eva_are_those_of_timm(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneOptions(name, img_size=32, **VIT)).eval()
    keep = torch.stack([torch.randperm(16)[:5] for _ in range(2)])
    other = [(48, None)] if backbone.model.pos_embed is None else []  # absolute ones are resampled as DINO does
    for size, kept in ((32, None), (32, keep), *other):
        images = torch.rand(2, 3, size, size)
        backbone.model.patch_drop = None if kept is None else Keep(kept, backbone.prefix)
        with torch.no_grad():
            expected = backbone.model.forward_features(images)
            torch.testing.assert_close(backbone.tokens(images, keep=kept), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "name"),
    [(method, EVAS[0]) for method in ("mae", "cae", "simmim", "ibot", "beit", "dinov2", "ijepa")]
    + [(method, EVAS[1]) for method in ("simmim", "ibot", "beit", "dinov2")],
)
def test_an_eva_hides_patches(method: str, name: str) -> None:
    plain = {"class_token": False} if method == "ijepa" else {}
    network = VIT | ({"patch_size": 4} if method == "ijepa" else {})  # whose blocks need some places to choose from
    learner = build(method, BackboneOptions(name, img_size=32, **network, timm_args=plain or None))
    loss = learner.loss(views_of(learner, 4))
    loss.backward()
    assert loss.isfinite()
    assert learner.backbone.model.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["test_efficientnet", "swinv2_tiny_window8_256"])
def test_a_method_that_hides_patches_names_those_that_take_any_network(name: str) -> None:
    options = BackboneOptions(name, img_size=32, **(SWIN if "swin" in name else {}))
    with pytest.raises(UserError, match="simclr"):
        build("mae", options)


def test_stages_of_a_network() -> None:
    found = stages(Backbone(BackboneOptions("test_convnext", img_size=32)).model)
    ends = {name.partition(".blocks")[0] if "blocks" in name else name: stage for name, stage in found.items()}
    assert ends["stem.0.weight"] == 0 and ends["head.norm.weight"] == 4
    assert [ends[f"stages.{number}"] for number in range(4)] == [1, 2, 3, 4]
    inner = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    net = nn.Sequential(nn.ModuleDict({"a": nn.Linear(2, 2)}), nn.ReLU(), inner)
    first, second = ("0.a.weight", "0.a.bias"), ("2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias")
    assert stages(net) == dict.fromkeys(first, 0) | dict.fromkeys(second, 1)


def test_partial_fine_tuning_by_stages_leaves_what_is_below_alone() -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneOptions("test_efficientnet", img_size=32))
    model = FineTuneModel(backbone, CLASSES)
    found, total = stages(backbone.model), depth_of(backbone)
    recipe = Recipe(epochs=1, warmup_epochs=0, lr=1.0, drop_path=0.0, precision="32-true")
    top = Top(model, 1, recipe)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    top.train()
    images = torch.rand(4, 3, 32, 32)
    state = states(backbone, images, [1])[1]
    torch.nn.functional.cross_entropy(top.logits(state), torch.tensor([0, 1, 0, 1])).backward()
    assert top.optimizer is not None
    for group in top.optimizer.param_groups:
        group["lr"] = 0.1
    top.optimizer.step()
    moved = {name for name, tensor in backbone.model.state_dict().items() if not torch.equal(tensor, before[name])}
    learned = {name for name, stage in found.items() if stage == total - 1}
    norms = {name for name in moved if "running" in name or "num_batches" in name}
    assert learned and moved - norms == learned
    assert norms and all(f"{name.rpartition('.')[0]}.weight" in learned for name in norms)


@pytest.mark.parametrize(("name", "layers_below"), [("test_convnext", 5), ("vit_pico_patch4_32", 3)])
def test_rates_of_pretraining_fall_from_the_output_down(name: str, layers_below: int) -> None:
    method = build("simclr", name)
    plain = method.parameter_groups()
    found = decayed_by_layer(method.backbone, plain, 0.5)
    of = {id(parameter): group for group in found for parameter in group["params"]}
    assert len(of) == sum(len(group["params"]) for group in plain) == sum(len(group["params"]) for group in found)
    own = dict(method.named_parameters())
    first = "stem.0.weight" if name == "test_convnext" else "patch_embed.proj.weight"
    assert of[id(own[f"backbone.model.{first}"])]["lr_scale"] == 0.5**layers_below
    heads = [
        parameter for each, parameter in own.items() if not each.startswith("backbone.") and parameter.requires_grad
    ]
    assert heads and all(of[id(parameter)]["lr_scale"] == 1 for parameter in heads)
    optimizer = build_optimizer(method, Optim("adamw"), groups=found)
    StepSchedule(Optim("adamw", base_lr=1.0, warmup_epochs=0), 256, 10, 10).apply(optimizer, 0)
    assert {round(group["lr"], 6) for group in optimizer.param_groups} >= {1.0, round(0.5**layers_below, 6)}


def test_the_documentation_has_these_families_and_names_the_others() -> None:
    titles = {"ViT": "vision_transformer", "BEiT": "beit", "Swin": "swin_transformer", "ResNet": "resnet"}
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) \|", text, re.MULTILINE)
    assert rows == [(member.file, member.name, str(member.size)) for member in (*FAST, *SLOW)]
    others, _, untried = text.partition("In the slow test, too")[2].partition("Not tried")
    assert re.findall(r"`(\w+)`", others) == [member.file for member in OTHERS]
    assert {titles.get(family, family) for family in timm_names()} == {
        *(file for file, *_ in rows),
        *re.findall(r"`(\w+)`", others + untried),
    }
