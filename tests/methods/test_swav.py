"""SwAV against the official code, with and without a queue, and the paper's formula in loops."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load, weights
from official_steps import (
    check_gradients,
    check_losses,
    check_state,
    official_views,
    our_name,
    renamed,
    resnet,
    take_steps,
)
from pytorch_lightning.callbacks import LambdaCallback
from small import GivenViews, trainer
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods import swav as page
from ssl_bench.methods.swav import SwAV
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.larc import LARC
from ssl_bench.optim.optimizers import StepSchedule, build_optimizer

NAMES = {"projection_head.": "projector.", "prototypes.": "prototypes.", "queue": "queue", "": "backbone.model."}
SGD = Optim("sgd", base_lr=0.1, scaling="none", weight_decay=0.0, warmup_epochs=0)
CASES = pytest.mark.parametrize("case", ["swav_step", "swav_queue"])


def swav(backbone: str = "resnet_nano", **given: Any) -> SwAV:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "prototypes": 16,
        "hidden_dim": 24,
        "projection_dim": 12,
        "local_views": 2,
        "local_size": 16,
    }
    return SwAV(Backbone(BackboneOptions(backbone, img_size=32)), **sizes | given)


def crops(images: int = 4, seed: int = 0, local: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = [32, 32, *[16] * local]
    return [(1 + i) * torch.rand(images, 3, s, s, generator=generator) for i, s in enumerate(sizes)]


def paper_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """The pseudo-code of the paper's appendix in float64."""
    q = (scores.double() / epsilon).exp().T
    q = q / q.sum()
    for _ in range(iterations):
        q = q / q.sum(1, keepdim=True) / q.shape[0]
        q = q / q.sum(0, keepdim=True) / q.shape[1]
    return (q / q.sum(0, keepdim=True)).T


def paper_loss(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Of (V, B, K) scores and (2, B, K) assignments, in loops, float64."""
    scores, targets = scores.double(), targets.double()
    loss = torch.zeros((), dtype=torch.float64)
    for assigned in (0, 1):
        others = [crop for crop in range(len(scores)) if crop != assigned]
        for crop in others:
            for image in range(scores.shape[1]):
                logs = F.log_softmax(scores[crop, image] / temperature, dim=0)
                loss = loss - (targets[assigned, image] * logs).sum() / (scores.shape[1] * len(others) * 2)
    return loss


# The official code


def official(case: str) -> tuple[SwAV, dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    record, tensors = load(case)
    c = record["config"]
    rates = {"base_lr": c["base_lr"], "warmup_lr": c["start_warmup"], "min_lr": c["final_lr"], "scaling": "none"}
    optim = Optim("larc", weight_decay=c["wd"], schedule="cosine_dino", warmup_epochs=c["warm"], **rates)
    method = SwAV(
        resnet(c),
        prototypes=c["K"],
        hidden_dim=c["hid"],
        projection_dim=c["out"],
        temperature=c["T"],
        epsilon=c["eps"],
        sinkhorn_iterations=c["iters"],
        queue_length=c["queue"],
        queue_start=c["epoch"],  # where the stored steps begin, with an empty queue
        freeze_prototypes=c["freeze"],
        local_views=c["ncrops"][1],
        local_size=c["loc"],
        optim=optim,
    )
    return method, record, tensors, renamed(weights(tensors, "w."), NAMES)


@CASES
def test_projections_scores_assignments_and_loss_of_the_official_code(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, record, tensors, start = official(case)
    method.load_state_dict({**start, "queue": method.queue})
    found: dict[str, Tensor] = {}
    assign = method.assign

    def noted(z: Tensor, scores: Tensor) -> Tensor:
        found["q"] = assign(z, scores)
        return found["q"]

    monkeypatch.setattr(method, "assign", noted)
    method.prototypes.register_forward_hook(lambda _, args, out: found.update(embedding=args[0], scores=out))
    loss = method.loss(official_views(tensors, "crop")[0])
    noise = record["noise"]
    for name in ("embedding", "scores"):
        assert_close(found[name].flatten(0, 1), tensors[f"out.{name}"], noise[f"out.{name}"]["max_abs"])
    for crop in (0, 1):
        assert_close(found["q"][crop], tensors[f"out.q.crop{crop}"], noise[f"out.q.crop{crop}"]["max_abs"])
    assert_close(method.prototypes.weight, tensors["out.prototypes_normalized"])
    assert_close(loss, record["loss_float64"], noise=abs(record["loss"] - record["loss_float64"]))


@CASES
def test_an_epoch_of_the_official_code(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, LARC with momentum, rates, frozen and drifting prototypes, the queue as it fills and is used."""
    method, record, tensors, start = official(case)
    c = record["config"]
    shapes: list[list[int]] = []
    balance: Callable[..., Tensor] = page.sinkhorn
    first = record["first_iteration"]

    def noted(logits: Tensor, iterations: int) -> Tensor:
        if method.global_step >= first:
            shapes.append(list(logits.shape))
        return balance(logits, iterations)

    monkeypatch.setattr(page, "sinkhorn", noted)
    images = official_views(tensors, "crop")
    steps = take_steps(method, images, start, first, len(images), c["epochs"])
    check_losses(record, steps.losses)
    assert shapes[: len(record["sinkhorn_input_shapes"])] == record["sinkhorn_input_shapes"]
    assert [rates[0] for rates in steps.rates] == pytest.approx(record["lr_schedule"][first : first + len(images)])
    check_gradients(record, tensors, NAMES, steps.gradients)
    assert ["prototypes.weight" in names for names in steps.with_gradient] == record["prototypes_have_grad"]
    assert check_state(record, tensors, NAMES, steps.after) == 94
    for name, sums in record["momentum_buffer_checks_float64"].items():
        buffer = steps.optimizer_state[our_name(name, NAMES)]["momentum_buffer"]
        assert buffer.abs().sum().item() == pytest.approx(sums["abs"], rel=1e-6)
        assert buffer.square().sum().item() == pytest.approx(sums["sq"], rel=1e-6)
    assert abs(steps.after["prototypes.weight"].norm(dim=1) - 1).max() > 1e-6
    if c["queue"]:
        assert record["queue_length_used"] == c["queue"]
        noise = record["noise"]["after.queue"]["max_abs"]
        assert_close(steps.after["queue"], tensors["after.queue"], noise)


def test_two_devices_assignments_are_those_of_one_on_the_joint_batch() -> None:
    """What the official code gives its two devices, from the rows of both."""
    record, tensors = load("two_processes")
    c = record["config"]
    joint = page.sinkhorn(tensors["in.swav_scores"].flatten(0, 1) / c["eps"], c["it"])
    for rank, own in enumerate(joint.chunk(2)):
        name = f"out.rank{rank}.swav.q"
        assert_close(own, tensors[name], record["noise"][name]["max_abs"])


def test_rates_of_the_official_code() -> None:
    method, record, _, _ = official("swav_step")
    c = record["config"]
    schedule = StepSchedule(method.optim, c["B"], c["epochs"] * c["L"], c["L"])
    assert [schedule.lr(step) for step in range(6)] == pytest.approx(record["lr_schedule"])


def test_initial_weights_are_those_of_the_official_code() -> None:
    torch.manual_seed(0)
    small = BackboneOptions("resnet50", img_size=64, timm_args={"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]})
    method = SwAV(Backbone(small), prototypes=96, hidden_dim=128, projection_dim=64)
    assert all((m.weight == 1).all() for m in method.backbone.modules() if isinstance(m, nn.BatchNorm2d))
    first, last = (method.projector[i] for i in (0, 3))
    for module in (first, last, method.prototypes):
        bound = module.in_features**-0.5
        assert module.weight.abs().max() <= bound
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert first.bias is not None and last.bias is not None and method.prototypes.bias is None
    assert isinstance(method.projector[1], nn.BatchNorm1d) and isinstance(method.projector[2], nn.ReLU)


def test_defaults_are_the_official_ones_for_batches_of_4096() -> None:
    method = SwAV(Backbone(BackboneOptions("resnet_nano", img_size=224)))
    optim = method.optim
    schedule = StepSchedule(optim, 4096, 400 * 313, 313)
    assert (schedule.lr(0), schedule.lr(10 * 313)) == pytest.approx((0.3, 4.8))
    assert schedule.lr(400 * 313 - 1) == pytest.approx(0.0048, rel=1e-3)
    assert (optim.name, optim.momentum, optim.weight_decay) == ("larc", 0.9, 1e-6)
    assert (method.prototypes.weight.shape, method.freeze_prototypes) == ((3000, 128), 313)
    assert (method.temperature, method.epsilon, method.sinkhorn_iterations) == (0.1, 0.05, 3)
    assert (method.queue.shape[1], method.queue_start) == (0, 15)
    big, small = method.views()
    assert (big.size, big.count, big.scale) == (224, 2, (0.14, 1.0))
    assert (small.size, small.count, small.scale) == (96, 6, (0.05, 0.14))
    for view in (big, small):
        assert (view.interpolation, view.flip, view.jitter, view.jitter_p) == (
            "bilinear",
            0.5,
            (0.8, 0.8, 0.8, 0.2),
            0.8,
        )
        assert (view.grayscale, view.blur, view.blur_sigma, view.solarize) == (0.2, 0.5, (0.1, 2.0), 0.0)
    assert len(SwAV(Backbone(BackboneOptions("resnet_nano", img_size=64)), local_views=0).views()) == 1


def test_larc_spares_nothing() -> None:
    method = swav()
    optimizer = build_optimizer(method, method.optim, groups=method.parameter_groups())
    assert isinstance(optimizer, LARC)
    (group,) = optimizer.param_groups
    assert group["decay"]
    assert {id(p) for p in group["params"]} == {id(p) for p in method.parameters()}


# The loss


@pytest.mark.parametrize(
    ("images", "count", "epsilon", "iterations"), [(6, 4, 0.05, 3), (3, 9, 0.03, 1), (32, 8, 0.5, 7)]
)
def test_assignments_are_the_papers(images: int, count: int, epsilon: float, iterations: int) -> None:
    torch.manual_seed(images)
    scores = 2 * torch.rand(images, count) - 1
    q = page.sinkhorn(scores / epsilon, iterations)
    assert_close(q, paper_sinkhorn(scores, epsilon, iterations))
    assert_close(q.sum(1), torch.ones(images))
    if iterations > 5:
        assert_close(q.sum(0), torch.full((count,), images / count), relative=0.01)


@pytest.mark.parametrize("local", [0, 1, 3])
@pytest.mark.parametrize("backbone", ["resnet_nano", "vit_pico_patch4_32"])
def test_loss_predicts_each_assignment_from_every_other_crop(backbone: str, local: int) -> None:
    method, views = swav(backbone, local_views=local), crops(5, local=local)
    found: dict[str, Tensor] = {}
    method.prototypes.register_forward_hook(lambda _, args, out: found.update(scores=out.detach()))
    loss = method.loss(views)
    scores = found["scores"]
    targets = torch.stack([paper_sinkhorn(view, 0.05, 3) for view in scores[:2]])
    assert_close(loss, paper_loss(scores, targets, 0.1))
    assert abs(loss - paper_loss(scores, targets.flip(0), 0.1)) > 1e-3


def test_learning_nothing_costs_the_logarithm_of_the_prototypes() -> None:
    method = swav()
    with torch.no_grad():
        method.projector[3].weight.zero_()  # all crops alike
        method.projector[3].bias.zero_()
    assert method.loss(crops()).item() == pytest.approx(math.log(16), rel=1e-5)


def test_projector_sees_all_crops_at_once_and_the_trunk_those_of_a_size() -> None:
    method = swav(local_views=3)
    seen: dict[str, list[int]] = {}
    for name, part in {"trunk": method.backbone, "projector": method.projector}.items():
        part.register_forward_hook(lambda _, args, __, name=name: seen.setdefault(name, []).append(len(args[0])))
    method.loss(crops(4, local=3))
    assert seen == {"trunk": [8, 12], "projector": [20]}


def test_no_gradient_passes_through_the_assignments_or_the_prototypes_lengths() -> None:
    method, views = swav(), crops()
    with torch.no_grad():
        method.prototypes.weight.mul_(3)
    found: dict[str, Tensor] = {}
    method.prototypes.register_forward_hook(lambda _, args, out: found.update(z=args[0], scores=out))
    method.loss(views).backward()
    assert_close(method.prototypes.weight.norm(dim=1), torch.ones(16))
    weight = method.prototypes.weight.detach().clone().requires_grad_()
    z = found["z"].detach()
    targets = torch.stack([paper_sinkhorn(view, 0.05, 3) for view in found["scores"][:2].detach()])
    paper_loss(F.linear(z, weight), targets, 0.1).backward()
    assert method.prototypes.weight.grad is not None and weight.grad is not None
    assert_close(method.prototypes.weight.grad, weight.grad, noise=1e-7)


def test_assignments_are_float32_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(1 / 0.05) does not fit float16."""
    method = swav()
    seen: list[torch.dtype] = []
    balance = page.sinkhorn
    monkeypatch.setattr(page, "sinkhorn", lambda q, n: (seen.append(q.dtype), balance(q, n))[1])
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(crops())
    assert loss.dtype == torch.float32
    assert seen == [torch.float32] * 2


# Prototypes and queue


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.integration
def test_prototypes_are_frozen_for_some_steps(accumulate: int) -> None:
    """Of the optimiser, over the whole run; neither decay nor momentum moves them."""
    optim = Optim("sgd", base_lr=0.1, scaling="none", weight_decay=0.5, momentum=0.9, warmup_epochs=0)
    method = swav(freeze_prototypes=3, optim=optim)
    images = [crops(seed=seed) for seed in range(2 * accumulate)]
    after: dict[int, bool] = {}  # step -> whether it left the prototypes alone
    note = LambdaCallback(
        on_train_batch_end=lambda trainer, *_: after.setdefault(
            trainer.global_step, method.prototypes.weight.grad is None
        )
    )
    trainer(max_epochs=3, callbacks=[note], accumulate_grad_batches=accumulate).fit(
        method, datamodule=GivenViews(images)
    )
    assert [after[step] for step in range(1, 7)] == [True] * 3 + [False] * 3


def test_queue_is_used_once_it_is_full_and_forgets_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    method = swav(queue_length=11, queue_start=1, optim=SGD, local_views=0, freeze_prototypes=0)
    rows: list[int] = []
    kept: list[Tensor] = []
    balance = page.sinkhorn
    monkeypatch.setattr(page, "sinkhorn", lambda q, n: (rows.append(len(q)), balance(q, n))[1])
    assign = method.assign
    monkeypatch.setattr(method, "assign", lambda z, scores: (kept.append(z), assign(z, scores))[1])
    images = [crops(seed=seed, local=0) for seed in range(4)]
    trainer(max_epochs=2).fit(method, datamodule=GivenViews(images))
    # 8 of the 11 are whole batches; nothing in the first epoch, two steps to fill, two steps of use
    assert rows == [4] * 8 + [4] * 4 + [12] * 4
    assert torch.equal(method.queue[:, :8], torch.cat([kept[7], kept[6]], dim=1))
    assert (method.queue[:, 8:] == 0).all()


def test_queued_projections_are_compared_with_the_prototypes_as_they_are_now() -> None:
    method = swav(queue_length=4, queue_start=0)
    method.loss(crops(seed=1))
    with torch.no_grad():
        method.prototypes.weight.add_(0.3 * torch.randn(16, 12))
    method.normalize_prototypes()
    z = F.normalize(torch.randn(2, 4, 12), dim=2)
    queued, scores = method.queue.clone(), method.prototypes(z)
    found = method.assign(z, scores)
    for view in (0, 1):
        joint = torch.cat([queued[view] @ method.prototypes.weight.T, scores[view]])
        assert_close(found[view], paper_sinkhorn(joint, 0.05, 3)[-4:])
    assert torch.equal(method.queue, z)


def test_a_queue_shorter_than_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"--method.queue_length 3 is less than a batch: 0 for none, or 4"):
        trainer().fit(swav(queue_length=3, optim=SGD), datamodule=GivenViews([crops()]))


@pytest.mark.parametrize(
    "given", [{"temperature": 0.0}, {"epsilon": -1.0}, {"sinkhorn_iterations": 0}, {"queue_length": -1}]
)
def test_options_out_of_range_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(given))}"):
        swav(**given)
