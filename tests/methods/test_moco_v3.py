"""MoCo v3 against the official code, on a ViT and on a ResNet, and the paper's formula in loops."""

import math
from typing import Any

import pytest
import torch
from golden_files import assert_close, load, weights
from official_steps import check_losses, check_state, official_views, our_name, renamed, resnet, take_steps
from small import GivenViews, trainer
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.moco_v3 import MoCoV3, info_nce
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import LARS, build_optimizer
from ssl_bench.optim.schedules import cosine

NAMES = {
    "base_encoder.head.": "projector.",
    "base_encoder.fc.": "projector.",
    "base_encoder.": "backbone.model.",
    "momentum_encoder.head.": "teacher.module.1.",
    "momentum_encoder.fc.": "teacher.module.1.",
    "momentum_encoder.": "teacher.module.0.model.",
    "predictor.": "predictor.",
}
SGD = Optim("sgd", base_lr=0.5, scaling="none", weight_decay=0.0, momentum=0.0, warmup_epochs=0)


def moco(backbone: str = "vit_pico_patch4_32", **given: Any) -> MoCoV3:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_dim": 40, "projection_dim": 24}
    return MoCoV3(Backbone(BackboneOptions(backbone, img_size=16)), **sizes | given)


def pair(images: int = 4, seed: int = 0) -> list[Tensor]:
    """Two views whose statistics differ."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.rand(images, 3, 16, 16, generator=generator) for scale in (1.0, 0.3)]


def paper_contrast(q: Tensor, k: Tensor, temperature: float) -> Tensor:
    """One direction in loops, float64."""
    q, k = q.double(), k.double()
    loss = torch.zeros((), dtype=torch.float64)
    for i, query in enumerate(q):
        logits = torch.stack([(query * key).sum() / (query.norm() * key.norm()) / temperature for key in k])
        loss = loss - 2 * temperature * (logits[i] - logits.exp().sum().log())
    return loss / len(q)


# The official code


def official(case: str) -> tuple[MoCoV3, dict[str, Any], dict[str, Tensor]]:
    record, tensors = load(case)
    c = record["config"]
    if case == "moco_v3_resnet":
        backbone = resnet(c)
        optim = Optim("lars", c["lr"], "none", c["wd"], momentum=c["momentum"], warmup_epochs=c["warmup"])
    else:
        size = {"width": c["dim"], "depth": c["depth"], "num_heads": c["heads"], "timm_args": {"mlp_ratio": c["mlp"]}}
        options = BackboneOptions("vit_tiny_patch16_224", img_size=c["img"], patch_size=c["patch"], **size)
        backbone = Backbone(options)
        optim = Optim("adamw", c["lr"], "none", c["wd"], warmup_epochs=c["warmup"])
    widths = {"hidden_dim": c["hid"], "projection_dim": c["out"]}
    method = MoCoV3(backbone, c["T"], c["moco_m"], freeze_patches=c.get("stop", True), optim=optim, **widths)
    return method, record, tensors


CASES = pytest.mark.parametrize("case", ["moco_v3_step", "moco_v3_resnet"])


@CASES
def test_two_steps_of_the_official_code(case: str) -> None:
    """Losses, gradients, optimiser, rates and momenta, the teacher within the step, and what norms have seen."""
    method, record, tensors = official(case)
    c = record["config"]
    start = renamed(weights(tensors, "w."), NAMES)
    momenta: list[float] = []
    update = method.teacher.update

    def noted(step: int, total: int) -> None:
        momenta.append(cosine(step, total, method.teacher.momentum, method.teacher.final_momentum))
        update(step, total)

    method.teacher.update = noted  # type: ignore[method-assign, assignment]
    steps = take_steps(method, official_views(tensors), start, c["epoch"] * c["niter"], c["niter"], c["epochs"])
    check_losses(record, steps.losses)
    assert [rates[0] for rates in steps.rates] == pytest.approx(record["step_lr"])
    assert all(len(set(rates)) == 1 for rates in steps.rates)
    assert momenta[c["niter"] : 2 * c["niter"]] == pytest.approx(record["step_momentum"])
    for name, norm in record["grad_norms_float64"].items():
        ours = our_name(name, NAMES)
        if norm is None:
            assert ours not in steps.gradients, name
        else:
            found = torch.linalg.vector_norm(steps.gradients[ours]).item()
            assert found == pytest.approx(norm, rel=1e-6, abs=1e-12), name
    # The key part of qkv.bias has no gradient but rounding, of which AdamW makes moves.
    rounding = {name for name in record["after_checks_float64"] if name.endswith("qkv.bias")}
    kept = {name: sums for name, sums in record["after_checks_float64"].items() if name not in rounding}
    assert check_state(record | {"after_checks_float64": kept}, tensors, NAMES, steps.after) >= 68
    for name in rounding:
        q, k, v = steps.after[our_name(name, NAMES)].chunk(3)
        theirs = tensors[f"after.{name}"].chunk(3)
        assert_close(q, theirs[0], noise=1e-7)
        assert_close(v, theirs[2], noise=1e-7)
    with_state = record["optimizer"]["with_state"]
    assert len(steps.optimizer_state) == with_state
    without = {our_name(name, NAMES) for name in record["optimizer"]["params_without_state"]}
    assert not without & steps.optimizer_state.keys()


def test_frozen_patches_stay_bit_for_bit() -> None:
    method, record, tensors = official("moco_v3_step")
    c = record["config"]
    start = renamed(weights(tensors, "w."), NAMES)
    steps = take_steps(method, official_views(tensors), start, c["epoch"] * c["niter"], c["niter"], c["epochs"])
    for name in ("weight", "bias", "pos_embed"):
        name = f"backbone.model.{name}" if name == "pos_embed" else f"backbone.model.patch_embed.proj.{name}"
        assert torch.equal(steps.after[name].float(), start[name])
        assert name not in steps.gradients and name not in steps.optimizer_state


def test_queries_keys_and_loss_terms_of_the_official_code() -> None:
    """Of one forward: keys are of the teacher as it is after it has moved."""
    record, tensors = load("moco_v3")
    c = record["config"]
    size = {"width": c["dim"], "depth": c["depth"], "num_heads": c["heads"], "timm_args": {"mlp_ratio": c["mlp"]}}
    options = BackboneOptions("vit_tiny_patch16_224", img_size=c["img"], patch_size=c["patch"], **size)
    method = MoCoV3(Backbone(options), c["T"], c["m"], hidden_dim=c["hid"], projection_dim=c["out"])
    method.load_state_dict(renamed(weights(tensors, "w."), NAMES), strict=False)  # one table of positions is left out
    out: dict[str, Tensor] = {}
    named = {"q": method.predictor, "k": method.teacher.module}
    method.move_teacher = lambda: method.teacher.update(0, 1)  # type: ignore[method-assign]
    for kind, part in named.items():
        part.register_forward_hook(
            lambda _, __, rows, kind=kind: out.setdefault(f"{kind}{2 if f'{kind}1' in out else 1}", rows)
        )
    loss = method.loss([tensors["x1"], tensors["x2"]])
    for name in ("q1", "q2", "k1", "k2"):
        assert_close(out[name], tensors[f"out.{name}"], record["noise"][name]["max_abs"])
    terms = [info_nce(out["q1"], out["k2"], c["T"]), info_nce(out["q2"], out["k1"], c["T"])]
    assert_close(torch.stack(terms), torch.tensor(record["loss_terms_float64"]))
    assert_close(loss, record["loss_float64"])
    found = method.state_dict()
    for name, value in weights(tensors, "after.").items():
        assert_close(found[our_name(name, NAMES)], value, noise=1e-6)


def test_loss_of_the_official_code_on_two_devices_by_hand() -> None:
    """What each device adds to the joint loss: its rows against all keys, its own among them by their rank."""
    record, tensors = load("two_processes")
    z = tensors["in.z"]  # (view, rank, B, P)
    temperature = record["config"]["T"]
    whole = info_nce(z[0].flatten(0, 1), z[1].flatten(0, 1), temperature)
    assert_close(whole, record["whole_batch"]["moco"]["loss_whole_batch"])


@pytest.mark.parametrize("frozen", [True, False])
def test_initial_weights_are_those_of_the_official_code(frozen: bool) -> None:
    torch.manual_seed(0)
    options = BackboneOptions("vit_tiny_patch16_224", img_size=32, patch_size=4, width=192, depth=2, num_heads=12)
    method = MoCoV3(Backbone(options), hidden_dim=256, projection_dim=64, freeze_patches=frozen)
    official = load("init_statistics")[0]["methods"]["moco_v3"]["parameters"]
    own = dict(method.named_parameters())
    compared = 0
    for name, (mean, std, largest, shape, learns) in official.items():
        parameter = own[our_name(name, NAMES)].detach()
        count = parameter.numel()
        assert list(parameter.shape) == shape
        assert own[our_name(name, NAMES)].requires_grad == (learns or (not frozen and "patch_embed" in name))
        assert abs(parameter.mean().item() - mean) <= 6 * std / math.sqrt(count) + 1e-12, name
        assert parameter.std().item() == pytest.approx(std, rel=6 / math.sqrt(2 * count), abs=1e-12), name
        assert parameter.abs().max().item() <= largest * (1.02 if count > 1000 else 2) + 1e-12, name
        compared += 1
    assert compared > 30


def test_fixed_positions_are_in_mocos_layout_and_frozen() -> None:
    method, _, tensors = official("moco_v3_step")
    fixed = method.backbone.model.pos_embed
    assert_close(fixed, tensors["w.base_encoder.pos_embed"])
    assert not fixed.requires_grad


@pytest.mark.parametrize("name", ["vit_pico_patch4_32", "beit_pico_patch4_32", "swin_pico_patch2_32", "resnet_nano"])
@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_frozen_is_the_patch_projection(name: str, frozen: bool) -> None:
    method = moco(name, freeze_patches=frozen)
    still = {n for n, p in method.backbone.named_parameters() if not p.requires_grad and not n.endswith("pos_embed")}
    expected = {"model.patch_embed.proj.weight", "model.patch_embed.proj.bias"}
    assert still == (expected if frozen and name != "resnet_nano" else set())


def test_heads_depend_on_the_trunk() -> None:
    def layers(head: nn.Module) -> list[str]:
        return [type(module).__name__ for module in head.children()]

    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    vit, res = moco(), moco("resnet_nano")
    assert layers(vit.projector) == hidden * 2 + hidden[:2]
    assert layers(vit.predictor) == layers(res.projector) == hidden + hidden[:2]
    assert layers(res.predictor) == [*hidden, "Linear"]
    for head in (vit.projector, vit.predictor, res.projector):
        assert not list(head.children())[-1].affine  # type: ignore[union-attr]
    for method in (vit, res):
        linear = [m for h in (method.projector, method.predictor) for m in h if isinstance(m, nn.Linear)]
        assert all(module.bias is None for module in linear)


def test_adamw_decays_everything_and_lars_only_matrices() -> None:
    for optim, decayed in ((Optim("adamw"), 1), (Optim("lars"), 2), (Optim("sgd"), 1)):
        method = moco("resnet_nano", optim=optim)
        groups = build_optimizer(method, optim, groups=method.parameter_groups()).param_groups
        assert len(groups) == decayed
        assert all(group["decay"] for group in groups[:1])
        if decayed == 1:
            grouped = {id(p) for p in groups[0]["params"]}
            assert grouped == {id(p) for p in method.parameters() if p.requires_grad}
        else:
            assert all(p.ndim == 1 for p in groups[1]["params"]) and not groups[1]["decay"]
            assert not build_optimizer(method, optim).defaults["rate_in_momentum"]
            assert isinstance(build_optimizer(method, optim), LARS)


def test_defaults_are_the_official_ones_for_a_vit() -> None:
    method = MoCoV3(Backbone(BackboneOptions("vit_pico_patch4_32", img_size=32)))
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.scaling, optim.betas) == ("adamw", 1.5e-4, "linear", (0.9, 0.999))
    assert (optim.weight_decay, optim.warmup_epochs, optim.min_lr, optim.clip) == (0.1, 40, 0.0, None)
    assert (method.temperature, method.teacher.momentum, method.teacher.final_momentum) == (0.2, 0.99, 1.0)
    assert [m.out_features for m in method.projector if isinstance(m, nn.Linear)] == [4096, 4096, 256]
    assert [m.out_features for m in method.predictor if isinstance(m, nn.Linear)] == [4096, 256]
    first, second = method.views()
    for view in (first, second):
        assert (view.size, view.count, view.scale, view.interpolation) == (32, 1, (0.08, 1.0), "bilinear")
        assert (view.jitter, view.jitter_p, view.grayscale) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert (view.flip, view.blur_sigma) == (0.5, (0.1, 2.0))
    assert [(view.blur, view.solarize) for view in (first, second)] == [(1.0, 0.0), (0.1, 0.2)]


# The loss


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
@pytest.mark.parametrize(("images", "dim"), [(2, 3), (5, 16), (9, 4)])
def test_contrast_is_the_papers_formula(images: int, dim: int, temperature: float) -> None:
    torch.manual_seed(images)
    q, k = 3 * torch.randn(images, dim), torch.randn(images, dim)
    assert_close(info_nce(q, k, temperature), paper_contrast(q, k, temperature), noise=1e-8)


def test_independent_embeddings_cost_what_guessing_does() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 256, 4000).unbind()
    assert info_nce(q, k, 0.2).item() == pytest.approx(2 * 0.2 * math.log(256), rel=0.01)


@pytest.mark.parametrize("backbone", ["resnet_nano", "vit_pico_patch4_32", "swin_pico_patch2_32"])
def test_loss_sums_both_directions_and_compares_each_with_the_other_view(backbone: str) -> None:
    method, views = moco(backbone), pair(5)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        q0, q1 = (method.predictor(method.projector(method.backbone(view))) for view in views)
        k0, k1 = (method.teacher(view) for view in views)
        expected = paper_contrast(q0, k1, 0.2) + paper_contrast(q1, k0, 0.2)
        assert_close(method.loss(views), expected)
        assert abs(expected - paper_contrast(q0, k0, 0.2) - paper_contrast(q1, k1, 0.2)) > 1e-4


def test_loss_is_float32_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    method = moco("resnet_nano")
    x, y = torch.randn(6, 24).bfloat16(), torch.randn(6, 24).bfloat16()
    for part in ("projector", "predictor"):
        monkeypatch.setattr(method, part, nn.Identity())
    monkeypatch.setattr(method.backbone, "forward", lambda rows: rows)
    monkeypatch.setattr(method.teacher, "module", nn.Identity())
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss([x, y])
    assert loss.dtype == torch.float32
    assert_close(loss, paper_contrast(x, y, 0.2) + paper_contrast(y, x, 0.2))


# The moving average


def test_teacher_moves_between_queries_and_keys_towards_the_weights_before_the_step() -> None:
    """With a momentum of 0, keys are those of the student as it is, and the teacher is the student before a step."""
    method = moco("resnet_nano", momentum=0.0, final_momentum=0.0, optim=SGD)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.1)
    order: list[str] = []
    method.predictor.register_forward_hook(lambda *_: order.append("query"))
    method.teacher.register_forward_hook(lambda *_: order.append("key"))
    update = method.teacher.update
    method.teacher.update = lambda *given: (order.append("move"), update(*given))[1]  # type: ignore[method-assign]
    before = [p.clone() for p in [*method.backbone.parameters(), *method.projector.parameters()]]
    trainer().fit(method, datamodule=GivenViews([pair()]))
    assert order == ["query", "query", "move", "key", "key"]
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    assert all(torch.equal(own, old) for (own, _), old in zip(method.teacher.pairs, before, strict=True))
    assert not all(torch.equal(new, old) for new, old in zip(online, before, strict=True))


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_teacher_moves_once_for_each_step(accumulate: int) -> None:
    method = moco("resnet_nano", optim=SGD)
    calls: list[tuple[int, int]] = []
    method.teacher.update = lambda step, total: calls.append((step, total))  # type: ignore[method-assign]
    for steps in (2, 1, 1):  # another run of the same method begins again
        calls.clear()
        batches = [pair(seed=seed) for seed in range(steps * accumulate)]
        trainer(accumulate_grad_batches=accumulate).fit(method, datamodule=GivenViews(batches))
        assert calls == [(step, steps) for step in range(steps)]


@pytest.mark.parametrize("final", [0.9, 1.0])
def test_momentum_is_constant_or_grows_to_one(final: float) -> None:
    teacher = moco(momentum=0.9, final_momentum=final).teacher
    values = [cosine(step, 100, teacher.momentum, teacher.final_momentum) for step in range(101)]
    assert values[0] == 0.9 and values[-1] == pytest.approx(final)
    assert values == sorted(values)


def test_teachers_norms_have_seen_both_views_by_themselves_in_order() -> None:
    method = moco("resnet_nano", momentum=0.5)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    alone = nn.BatchNorm1d(24, affine=False)
    keys: list[Tensor] = []
    method.teacher.module[1][-1].register_forward_pre_hook(lambda _, args: keys.append(args[0]))
    method.loss(pair())
    for rows in keys:
        alone(rows)
    assert_close(method.teacher.module[1][-1].running_mean, alone.running_mean)
    assert_close(method.teacher.module[1][-1].running_var, alone.running_var)
    assert not torch.allclose(method.teacher.module[1][-1].running_mean, method.projector[-1].running_mean)


def test_norms_see_one_view_at_a_time() -> None:
    method = moco()
    seen: dict[str, list[int]] = {}
    parts = {"projector": method.projector, "predictor": method.predictor, "teacher": method.teacher.module[1]}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, args, __, name=name: seen.setdefault(name, []).append(len(args[0])))
    method.loss(pair())
    assert seen == {name: [4, 4] for name in parts}


def test_no_gradient_reaches_the_teacher() -> None:
    method = moco("resnet_nano")
    method.loss(pair()).backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert method.evaluated is method.backbone
    assert list(method.branches) == ["student", "teacher"]


@pytest.mark.parametrize(("option", "value"), [("temperature", 0.0), ("momentum", 1.5), ("final_momentum", -0.1)])
def test_options_out_of_range_are_refused(option: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"--method.{option} {value} must"):
        moco(**{option: value})
