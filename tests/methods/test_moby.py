"""MoBY against the official code on a Swin, and its loss in loops."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load, weights
from official_steps import check_losses, check_state, official_views, our_name, renamed, take_steps
from small import GivenViews, trainer
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.methods.moby import MoBY
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import StepSchedule

HEADS = {"projector_k": "teacher.module.1", "projector": "projector", "predictor": "predictor"}
LAYERS = {"linear_hidden.1": "0", "linear_hidden.2": "1", "linear_out": "3"}
NAMES = {f"{head}.{layer}.": f"{HEADS[head]}.{LAYERS[layer]}." for head in HEADS for layer in LAYERS}
for _encoder, _ours in (("encoder_k.", "teacher.module.0.model."), ("encoder.", "backbone.model.")):
    NAMES[f"{_encoder}layers.0.downsample."] = f"{_ours}layers.1.downsample."  # timm has it in the stage after
    NAMES[_encoder] = _ours
SGD = Optim("sgd", base_lr=0.5, scaling="none", weight_decay=0.0, momentum=0.0, warmup_epochs=0)


def moby(backbone: str = "swin_pico_patch2_32", size: int = 32, **given: Any) -> MoBY:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_dim": 20, "projection_dim": 12, "queue_length": 16}
    return MoBY(Backbone(BackboneOptions(backbone, img_size=size)), **sizes | given)


def pair(images: int = 4, size: int = 32, seed: int = 0) -> list[Tensor]:
    """Two views whose statistics differ."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.rand(images, 3, size, size, generator=generator) for scale in (1.0, 0.3)]


def paper_contrast(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """One direction in loops, float64."""
    q, k = F.normalize(q.double(), dim=1), F.normalize(k.double(), dim=1)
    loss = torch.zeros((), dtype=torch.float64)
    for query, key in zip(q, k, strict=True):
        logits = torch.stack([query @ each / temperature for each in [key, *queue.double()]])
        loss = loss - logits[0] + logits.exp().sum().log()
    return loss / len(q)


# The official code


def official() -> tuple[MoBY, dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    record, tensors = load("moby_step")
    c = record["config"]
    args = {"depths": c["depths"], "num_heads": c["heads"], "window_size": c["win"], "mlp_ratio": c["mlp"]}
    options = BackboneOptions(
        "swin_tiny_patch4_window7_224", img_size=c["img"], patch_size=c["patch"], width=c["dim"], timm_args=args
    )
    rates = {"base_lr": c["lr"], "warmup_lr": c["warm_lr"], "min_lr": c["min_lr"], "scaling": "none"}
    optim = Optim(
        "adamw", weight_decay=c["wd"], schedule="cosine_simmim", warmup_epochs=c["warm"], clip=c["clip"], **rates
    )
    sizes = {"queue_length": c["Kneg"], "hidden_dim": c["inner"], "projection_dim": c["out"]}
    method = MoBY(Backbone(options), c["T"], c["m"], optim=optim, **sizes)
    stored = weights(tensors, "w.")
    queues = torch.stack([stored.pop("queue1").T, stored.pop("queue2").T])
    assert stored.pop("queue_ptr").item() == 0
    return method, record, tensors, renamed(stored, NAMES) | {"queues": queues}


def test_predictions_keys_and_loss_of_the_official_code() -> None:
    """Of one forward: keys are of the teacher as it is after it has moved."""
    method, record, tensors, start = official()
    left = method.load_state_dict(start, strict=False)
    assert not left.unexpected_keys and not left.missing_keys
    momentum = record["step_momentum"][0]
    method.teacher.momentum_at = lambda step, total: momentum  # type: ignore[method-assign]
    method.move_teacher = lambda: method.teacher.update(0, 1)  # type: ignore[method-assign]
    out: dict[str, list[Tensor]] = {"pred": [], "key": []}
    method.predictor.register_forward_hook(lambda _, __, rows: out["pred"].append(rows))
    method.teacher.module.register_forward_hook(lambda _, __, rows: out["key"].append(rows))
    views = official_views(tensors)[0]
    loss = method.loss(views)
    noise = {name: values["max_abs"] for name, values in record["noise"].items()}
    for kind, rows in out.items():
        for view in (0, 1):
            name = f"out.{kind}_{view + 1}"
            assert_close(F.normalize(rows[view], dim=1), tensors[name], noise.get(name, 0.0))
    for direction, (q, k) in enumerate(((0, 1), (1, 0))):
        term = paper_contrast(out["pred"][q], out["key"][k], start["queues"][k], record["config"]["T"])
        assert_close(term, record["loss_terms_float64"][direction])
    assert_close(loss, record["loss_float64"])


def test_two_steps_of_the_official_code() -> None:
    """Gradients, AdamW, clipping, rates a step late, momenta, keys within the step, queues, norms of both encoders."""
    method, record, tensors, start = official()
    c = record["config"]
    momenta: list[float] = []
    update = method.teacher.update

    def noted(step: int, total: int) -> None:
        momenta.append(method.teacher.momentum_at(step, total))
        update(step, total)

    method.teacher.update = noted  # type: ignore[method-assign, assignment]
    first = c["start_epoch"] * c["L"]
    images = official_views(tensors) * (c["L"] // c["steps"])
    steps = take_steps(method, images, start, first, c["steps"], c["epochs"])
    check_losses(record, steps.losses)
    assert [rates[0] for rates in steps.rates] == pytest.approx(record["step_lr"])
    assert momenta == pytest.approx(record["momentum_schedule"])
    for name, norm in record["grad_norms_float64"].items():
        ours = our_name(name, NAMES)
        if norm is None:
            assert ours not in steps.gradients, name
        else:  # those of biases before a norm are rounding
            found = steps.gradients[ours].norm().item()
            assert found == pytest.approx(norm, rel=1e-6, abs=1e-9), name
    norm = torch.stack([g.norm() for g in steps.gradients.values()]).norm().item()
    assert norm == pytest.approx(record["grad_norm_before_clip_float64"][0], rel=1e-6)
    sums = record["after_checks_float64"]
    left_out = {n for n in sums if n.endswith(("qkv.bias", "linear_hidden.1.bias", "projector.linear_out.bias"))}
    left_out |= {n for n in sums if n.endswith("encoder.norm.bias")}  # a shift that the projector's norm takes away
    left_out |= {n for n in sums if n.endswith(("attn_mask", "relative_position_index"))}  # tables that do not learn
    queue_names = {"queue1", "queue2", "queue_ptr"}
    kept = {name: values for name, values in sums.items() if name not in left_out | queue_names}
    assert check_state(record | {"after_checks_float64": kept}, tensors, NAMES, steps.after) > 80
    pointer = record["queue_ptr_after"]
    for view in (0, 1):  # there the oldest keys are where the pointer is, here in front
        name = f"after.queue{view + 1}"
        found = steps.after["queues"][view].roll(pointer, 0).T
        assert_close(found, tensors[name], record["noise"][name]["max_abs"])


def test_rates_and_what_decays_in_the_official_code() -> None:
    method, record, _, _ = official()
    c = record["config"]
    schedule = StepSchedule(method.optim, c["B"], c["epochs"] * c["L"], c["L"])
    assert [schedule.lr(step) for step in range(schedule.total)] == pytest.approx(record["lr_schedule"])
    names = {id(p): name for name, p in method.named_parameters()}
    found = {g["decay"]: {names[id(p)] for p in g["params"]} for g in method.parameter_groups()}
    assert found == {g["weight_decay"] > 0: {our_name(n, NAMES) for n in g["names"]} for g in record["param_groups"]}
    assert any("relative_position_bias_table" in name for name in found[True])


def test_absolute_positions_decay() -> None:
    torch.manual_seed(0)
    method = MoBY(Backbone(BackboneOptions("swin_pico_patch2_32", absolute_positions=True)), hidden_dim=20)
    decayed = {id(p) for g in method.parameter_groups() if g["decay"] for p in g["params"]}
    assert id(method.backbone.model.absolute_pos_embed) in decayed


def test_initial_weights_are_those_of_the_official_code() -> None:
    torch.manual_seed(0)
    args = {"depths": (1, 1), "num_heads": (3, 6), "window_size": 4}
    options = BackboneOptions(
        "swin_tiny_patch4_window7_224", img_size=32, patch_size=2, width=48, absolute_positions=True, timm_args=args
    )
    method = MoBY(Backbone(options), hidden_dim=256, projection_dim=64)
    own = dict(method.named_parameters())
    for name, (mean, std, largest, shape, _) in load("init_statistics")[0]["methods"]["moby"]["parameters"].items():
        parameter = own[our_name(name, NAMES)].detach()
        count = parameter.numel()
        assert list(parameter.shape) == shape
        assert abs(parameter.mean().item() - mean) <= 6 * std / math.sqrt(count) + 1e-12, name
        assert parameter.std().item() == pytest.approx(std, rel=8 / math.sqrt(2 * count), abs=1e-12), name
        assert parameter.abs().max().item() <= 2 * largest + 1e-12, name


def test_defaults_are_the_official_ones() -> None:
    method = MoBY(Backbone(BackboneOptions("swin_pico_patch2_32")))
    optim = method.optim
    assert (optim.name, optim.weight_decay, optim.warmup_epochs, optim.clip) == ("adamw", 0.05, 5, 5.0)
    assert [2 * r for r in (optim.base_lr, optim.warmup_lr, optim.min_lr)] == [1e-3, 5e-7, 5e-6]  # per 512
    assert (method.temperature, method.teacher.momentum, method.teacher.final_momentum) == (0.2, 0.99, 1.0)
    assert method.queues.shape == (2, 4096, 256)
    assert_close(method.queues.norm(dim=2), torch.ones(2, 4096))
    for head in (method.projector, method.predictor):
        assert [type(m).__name__ for m in head] == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
        assert [m.out_features for m in head if isinstance(m, nn.Linear)] == [4096, 256]
        assert all(m.bias is not None for m in head if isinstance(m, nn.Linear))
    for view, blur, solarize in zip(method.views(), (1.0, 0.1), (0.0, 0.2), strict=True):
        assert (view.size, view.scale, view.interpolation, view.flip) == (32, (0.08, 1.0), "bilinear", 0.5)
        assert (view.jitter, view.jitter_p, view.grayscale) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert (view.blur, view.solarize) == (blur, solarize)


# The loss and its negatives


@pytest.mark.parametrize("backbone", ["swin_pico_patch2_32", "vit_pico_patch4_32", "resnet_nano"])
def test_each_view_is_compared_with_the_other_views_keys_and_their_queue(backbone: str) -> None:
    method, views = moby(backbone), pair(5)
    with torch.no_grad():
        for parameter in method.teacher.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        q = [method.predictor(method.projector(method.backbone(view))) for view in views]
        k = [method.teacher(view) for view in views]
        queues = method.queues.clone()
        expected = paper_contrast(q[0], k[1], queues[1], 0.2) + paper_contrast(q[1], k[0], queues[0], 0.2)
        crossed = paper_contrast(q[0], k[1], queues[0], 0.2) + paper_contrast(q[1], k[0], queues[1], 0.2)
        assert_close(method.loss(views), expected)
    assert abs(expected - crossed) > 1e-3
    assert_close(method.queues[:, -5:], F.normalize(torch.stack(k), dim=2))
    assert torch.equal(method.queues[:, :-5], queues[:, 5:])


def test_a_fresh_network_costs_what_guessing_among_the_queue_does() -> None:
    method = moby(queue_length=4096, projection_dim=256)
    assert method.loss(pair(8)).item() == pytest.approx(2 * math.log(4097), rel=0.15)  # 16.64, not half of it


def test_a_queue_shorter_than_the_batch_holds_the_newest_keys() -> None:
    method = moby(queue_length=3)
    views = pair(5)
    keys = F.normalize(torch.stack([method.teacher(view) for view in views]), dim=2)
    assert method.loss(views).isfinite()
    assert_close(method.queues, keys[:, 2:])


def test_no_gradient_to_keys_and_queues() -> None:
    method = moby()
    method.loss(pair()).backward()
    assert not method.queues.requires_grad
    assert all(p.grad is None for p in method.teacher.parameters())


def test_only_the_online_network_drops_paths() -> None:
    torch.manual_seed(0)
    method = MoBY(Backbone(BackboneOptions("swin_pico_patch2_32", drop_path=0.5)), hidden_dim=20).train()
    images = pair()[0]
    assert not torch.equal(method.backbone(images), method.backbone(images))
    assert torch.equal(method.teacher.module[0](images), method.teacher.module[0](images))


# The moving average


def test_the_teacher_moves_within_the_step_towards_the_weights_before_it() -> None:
    method = moby("resnet_nano", momentum=0.0, optim=SGD)
    before = method.backbone.model.conv1.weight.detach().clone()
    method.teacher.momentum_at = lambda step, total: 0.0  # type: ignore[method-assign]
    with torch.no_grad():
        method.teacher.module[0].model.conv1.weight.add_(1.0)
    trainer(max_epochs=1).fit(method, datamodule=GivenViews([pair()]))
    assert torch.equal(method.teacher.module[0].model.conv1.weight, before)
    assert not torch.equal(method.backbone.model.conv1.weight, before)


def test_momentum_counts_steps_of_the_optimiser() -> None:
    method = moby(optim=SGD)
    seen: list[float] = []
    update = method.teacher.update
    method.teacher.update = lambda step, total: (  # type: ignore[method-assign]
        seen.append(method.teacher.momentum_at(step, total)),
        update(step, total),
    )[1]
    trainer(max_epochs=2, accumulate_grad_batches=2).fit(
        method, datamodule=GivenViews([pair(seed=s) for s in range(4)])
    )
    expected = [1 - 0.01 * (math.cos(math.pi * step / 4) + 1) / 2 for step in range(4)]
    assert seen == pytest.approx(expected)
