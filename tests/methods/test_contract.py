"""What every method promises, ours and plug-ins' alike, on every backbone it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from small import GivenViews, build, labels_of, trainer, views_of
from torch import Tensor

from ssl_bench.config import registry, signatures
from ssl_bench.config.method_facts import FAMILIES, KINDS, method_facts
from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.dino_head import Centre
from ssl_bench.models.discrete_vae import DiscreteVAE
from ssl_bench.optim.optimizers import build_optimizer
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.trainer import SeedEachBatch

IMAGES = 8
BACKBONES = ("vit_pico_patch4_32", "beit_pico_patch4_32", "swin_pico_patch2_32", "resnet_nano", "test_efficientnet")
REFUSED = {  # local views need another image size; masks need patches, or patches that can be left out
    "beit": ("swin_pico_patch2_32", "resnet_nano", "test_efficientnet"),
    "cae": ("beit_pico_patch4_32", "swin_pico_patch2_32", "resnet_nano", "test_efficientnet"),
    "dino": ("beit_pico_patch4_32", "swin_pico_patch2_32"),
    "dinov2": ("beit_pico_patch4_32", "swin_pico_patch2_32", "resnet_nano", "test_efficientnet"),
    "ibot": ("beit_pico_patch4_32", "swin_pico_patch2_32", "resnet_nano", "test_efficientnet"),
    "ijepa": ("beit_pico_patch4_32", "swin_pico_patch2_32", "resnet_nano", "test_efficientnet"),
    "lejepa": ("beit_pico_patch4_32", "swin_pico_patch2_32"),
    "mae": ("beit_pico_patch4_32", "swin_pico_patch2_32", "resnet_nano", "test_efficientnet"),
    "simmim": ("resnet_nano", "test_efficientnet"),
    "swav": ("beit_pico_patch4_32", "swin_pico_patch2_32"),
}
PAIRS = [
    (name, backbone)
    for name, found in registry.names("methods").items()
    for backbone in (BACKBONES if signatures.takes(found, "backbone") else ("tokenizer",))
    if backbone not in REFUSED.get(name, ())
]
Build = Callable[..., Method]


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def make(request: pytest.FixtureRequest) -> Build:
    """Builds a method on a backbone that it accepts."""
    name, backbone = request.param

    def built(seed: int = 0, **given: Any) -> Method:
        return build(name, backbone, seed, **given)

    return built


@pytest.mark.parametrize(("name", "backbone"), [(name, each) for name in REFUSED for each in REFUSED[name]])
def test_a_backbone_that_does_not_do_is_refused_in_a_line_that_names_another_method(name: str, backbone: str) -> None:
    with pytest.raises(UserError) as refusal:
        build(name, backbone)
    others = [other for other in registry.names("methods") if other != name]
    assert any(other in str(refusal.value) for other in others), f"{refusal.value} names no method that would do"
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("name", "found"), [*registry.names("methods").items()], ids=[*registry.names("methods")])
def test_what_is_listed_of_a_method_is_true(name: str, found: registry.Found) -> None:
    """Read from its source: the kind that its class has, and the networks that it takes here."""
    facts, cls = method_facts(found), registry.load(found)
    assert (facts.kind, facts.families) == (cls.kind, cls.families)  # type: ignore[attr-defined]
    taken = {backbone for method, backbone in PAIRS if method == name} & set(BACKBONES)
    assert set(facts.families) == {
        family for family, backbone in zip(FAMILIES, BACKBONES, strict=True) if backbone in taken
    }
    if found.module.startswith("ssl_bench.methods."):
        assert facts.kind != "other" and facts.kind in KINDS
        assert facts.year is not None and 2019 < facts.year < 2030


def loss_of(method: Method, views: list[Tensor], seed: int = 0) -> Tensor:
    torch.manual_seed(seed)  # of masks and whatever else is drawn
    labels = {"labels": labels_of(len(views[0]))} if method.needs_labels else {}
    return method.loss(views, **labels)


def teachers_of(method: Method) -> list[EMATeacher]:
    return [module for module in method.children() if isinstance(module, EMATeacher)]


def test_every_method_takes_a_vit_or_a_resnet() -> None:
    assert len(PAIRS) >= 4


def test_views_are_valid(make: Build) -> None:
    for size in (32, 64):
        method = make(img_size=size)
        views = method.views()
        patches = method.product == "backbone" and (method.backbone.is_vit or method.backbone.is_swin)
        patch = method.backbone.patch_size if patches else None
        assert max(view.size for view in views) == size
        for view in views:
            assert view.count >= 1
            assert patch is None or view.size % patch == 0
            assert 0 < view.scale[0] <= view.scale[1] <= 1
            assert 0 < view.ratio[0] <= 1 <= view.ratio[1]
            assert view.interpolation in ("bicubic", "bilinear")
            assert all(0 <= p <= 1 for p in (view.flip, view.jitter_p, view.grayscale, view.blur, view.solarize))
            assert view.taps % 2 == 1


def test_evaluates_its_backbone_or_makes_a_tokenizer(make: Build) -> None:
    method = make()
    if method.product == "tokenizer":
        assert isinstance(method.tokenizer, DiscreteVAE)
    else:
        assert isinstance(method.evaluated, Backbone)


def test_loss_is_a_finite_scalar_and_the_same_for_the_same_seed(make: Build) -> None:
    losses = []
    for _ in range(2):
        method = make()
        losses.append(loss_of(method, views_of(method, IMAGES)))
    assert losses[0].shape == ()
    assert losses[0].isfinite()
    assert losses[0].dtype == torch.float32
    assert torch.equal(losses[0], losses[1])


def test_gradient_reaches_everything_that_learns_and_nothing_frozen(make: Build) -> None:
    method = make()
    loss_of(method, views_of(method, IMAGES)).backward()
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name  # DDP waits for unused parameters
    if method.product == "tokenizer":
        first = method.tokenizer.encoder[0].weight.grad
    else:
        network = method.backbone.model
        first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d)).weight
        first = first.grad if first.requires_grad else network.norm.weight.grad  # the latter where patches are frozen
    assert first.isfinite().all()
    assert first.count_nonzero() > 0.9 * first.numel()


@pytest.mark.integration
def test_twenty_steps_on_one_batch_lower_the_loss_and_leave_frozen_things_alone(make: Build) -> None:
    method = make()
    views = views_of(method, 4)
    own = {id(p) for teacher in teachers_of(method) for p in teacher.parameters()}
    frozen = {n: p.clone() for n, p in method.named_parameters() if not p.requires_grad and id(p) not in own}
    optimizer = build_optimizer(method, Optim("adamw", weight_decay=0.0))
    for module in method.modules():
        if isinstance(module, Centre):
            module.momentum = 1.0  # a target that moves makes losses before and after two things
    before = loss_of(method, views).item()
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        optimizer.zero_grad()
        loss_of(method, views).backward()
        optimizer.step()
        for teacher in teachers_of(method):
            teacher.update(step, 20)
    assert loss_of(method, views).item() < before
    parameters = dict(method.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())


def test_state_makes_the_round_trip(make: Build) -> None:
    method, other = make(seed=0), make(seed=1)
    views = views_of(method, IMAGES)
    loss_of(method, views)  # moves buffers
    other.load_state_dict(method.state_dict())
    assert torch.equal(loss_of(method, views), loss_of(other, views))


@pytest.mark.integration
def test_works_in_bfloat16(make: Build) -> None:
    method = make()
    views = views_of(method, IMAGES)
    exact = loss_of(make(), views).item()
    rounded = make()
    if rounded.product == "backbone":  # a batch norm blows up what little untrained features differ by
        rounded.backbone.register_forward_hook(lambda module, args, features: features.bfloat16().float())
    noise = abs(loss_of(rounded, views).item() - exact)
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(method, views)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact, rel=0.05, abs=max(0.1, 5 * noise))
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_teacher_starts_as_its_student_and_learns_nothing_itself(make: Build) -> None:
    method = make()
    for teacher in teachers_of(method):
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert teacher.pairs, "follows nothing"
        assert all(torch.equal(own, student) for own, student in teacher.pairs)
    in_optimizer = {id(p) for g in build_optimizer(method, method.optim).param_groups for p in g["params"]}
    assert in_optimizer == {id(p) for p in method.parameters() if p.requires_grad}


def test_accumulated_batches_make_one_step_and_one_update_of_the_teacher(
    make: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make()
    updates: list[tuple[int, int]] = []
    update = EMATeacher.update

    def recorded(teacher: EMATeacher, step: int, total: int) -> None:
        before = [own.clone() for own, _ in teacher.pairs]
        update(teacher, step, total)
        updates.append((step, total))
        momentum = teacher.momentum_at(step, total)
        for old, (own, student) in zip(before, teacher.pairs, strict=True):
            torch.testing.assert_close(own, old + (1 - momentum) * (student - old))

    monkeypatch.setattr(EMATeacher, "update", recorded)
    steps: list[int] = []
    monkeypatch.setattr(method, "on_before_optimizer_step", lambda optimizer: steps.append(method.trainer.global_step))
    before = {name: p.clone() for name, p in method.named_parameters() if p.requires_grad}
    batches = [views_of(method, 4, seed=seed) for seed in range(4)]
    quiet = trainer(accumulate_grad_batches=2)
    quiet.fit(method, datamodule=GivenViews(batches))
    assert steps == [0, 1]
    assert quiet.global_step == 2
    assert updates == [(step, 2) for step in (0, 1) for _ in teachers_of(method)]
    moved = [name for name, value in before.items() if not torch.equal(value, method.get_parameter(name))]
    assert moved or method.optim.warmup_epochs, "no parameter moved, with no warm-up to blame"


class SaveAfterFirstEpoch(pl.Callback):
    """A checkpoint in the middle of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@pytest.mark.integration
def test_a_resumed_run_is_the_whole_run_bit_for_bit(make: Build, tmp_path: Path) -> None:
    """Teachers, centres, batch norms, optimiser, schedules and draws all go on where they were."""
    path = tmp_path / "half.ckpt"
    states = []
    for resume in (None, path):
        method = make(seed=len(states))
        batches = [views_of(method, 4, seed=seed) for seed in range(2)]
        quiet = trainer(max_epochs=2, callbacks=[SeedEachBatch(0), SaveAfterFirstEpoch(path)][: 1 if resume else 2])
        quiet.fit(method, datamodule=GivenViews(batches), ckpt_path=resume, weights_only=True if resume else None)
        assert quiet.global_step == 4
        states.append(method.state_dict())
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("name", ["mae", "simmim", "cae", "beit", "ibot", "dinov2"])
def test_hiding_needs_patches_to_hide(name: str) -> None:
    given = {"local_views": 0} if name in ("ibot", "dinov2") else {}
    cls = registry.load(registry.find("methods", name))

    def made(size: int, patch: int) -> Any:
        return cls(Backbone(BackboneOptions("vit_pico_patch4_32", img_size=size, patch_size=patch)), **given)

    with pytest.raises(UserError, match="32 px hold 4 of 16 px; at least 9 .* needed: --backbone.patch_size 8"):
        made(32, 16)
    with pytest.raises(UserError, match="8 px hold 4 of 4 px; at least 9 .* needed: --backbone.patch_size 2"):
        made(8, 4)
    made(12, 4)
