"""SimCLRv2's three stages against the official TensorFlow head, lightly, loops in float64 and numbers by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import assert_close, load
from lightly.loss import NTXentLoss
from small import CLASSES, GivenViews, build, labels_of, trainer, views_of
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.simclrv2 import SimCLRv2
from ssl_bench.methods.simclrv2_distill import SimCLRv2Distill
from ssl_bench.methods.simclrv2_finetune import SimCLRv2Finetune
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import Classifier, load_classifier, save_classifier
from ssl_bench.models.saved_backbone import load_backbone, write_backbone
from ssl_bench.optim.optimizers import build_optimizer
from ssl_bench.pretraining.checkpoint import start_from

VIT, RESNET = "vit_pico_patch4_32", "resnet_nano"


def network(name: str = RESNET, seed: int = 0, **given: Any) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(BackboneOptions(name, img_size=32, **given))


def pretrained(backbone: str = RESNET, **given: Any) -> SimCLRv2:
    """With batch norms that have seen images, and no parameter at 0 or 1."""
    method = SimCLRv2(network(backbone), **given)
    for seed in range(3):
        method.loss(views_of(method, 8, seed))
    with torch.no_grad():
        for parameter in method.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return method


def finetune(backbone: Backbone | None = None, **given: Any) -> SimCLRv2Finetune:
    return SimCLRv2Finetune(backbone or network(seed=1), CLASSES, **given)


def norms(head: nn.Module) -> list[nn.BatchNorm1d]:
    return [module for module in head.modules() if isinstance(module, nn.BatchNorm1d)]


def linears(head: nn.Module) -> list[nn.Linear]:
    return [module for module in head.modules() if isinstance(module, nn.Linear)]


# Pretraining


def test_three_layers_in_all_each_with_a_norm() -> None:
    method = SimCLRv2(network(), projection_dim=20)
    width = method.backbone.dim
    assert [m.weight.shape for m in linears(method.head)] == [(width, width), (width, width), (20, width)]
    assert all(m.bias is None for m in linears(method.head))
    kinds = [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear, nn.BatchNorm1d]
    assert [type(m) for m in method.head] == kinds
    assert [m.bias.requires_grad for m in norms(method.head)] == [True, True, False]
    assert all((norm.eps, norm.momentum) == (1e-5, 0.1) for norm in norms(method.head))


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_other_depths_of_the_head(layers: int) -> None:
    method = SimCLRv2(network(), projection_layers=layers, projection_dim=20)
    assert len(linears(method.head)) == len(norms(method.head)) == layers


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("backbone", [VIT, RESNET])
def test_loss_is_twice_lightlys_of_both_views_together(backbone: str, temperature: float) -> None:
    method = SimCLRv2(network(backbone), temperature=temperature).double()
    views = [view.double() for view in views_of(method, 6)]
    z0, z1 = method.head(method.backbone(torch.cat(views))).chunk(2)
    expected = 2 * NTXentLoss(temperature)(z0, z1)
    assert_close(method.loss(views), expected)
    apart = 2 * NTXentLoss(temperature)(*(method.head(method.backbone(view)) for view in views))
    assert abs(apart - expected) > 1e-4  # batch norms saw one view each


def test_initialisation_is_simclrs() -> None:
    method = SimCLRv2(network())
    for module in method.backbone.modules():
        if isinstance(module, nn.Conv2d):
            std = module.weight[0].numel() ** -0.5
            assert module.weight.std().item() == pytest.approx(std, rel=0.05)
    assert all(m.weight.std().item() == pytest.approx(0.01, rel=0.05) for m in linears(method.head))


def test_defaults_of_pretraining_are_the_papers() -> None:
    method = SimCLRv2(network(VIT))
    assert (method.temperature, method.standardize, method.head[-1].num_features) == (0.1, False, 128)
    (view,) = method.views()
    assert (view.count, view.jitter, view.grayscale, view.blur) == (2, (0.8, 0.8, 0.8, 0.2), 0.2, 0.5)
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.scaling, optim.weight_decay) == ("lars_tf", 0.1, "sqrt", 1e-4)
    assert optim.base_lr * math.sqrt(4096) == pytest.approx(6.4)
    assert optim.warmup_epochs == 0.05 * 800


# Fine-tuning


def test_fine_tuning_starts_where_the_official_code_does() -> None:
    """`ft_proj_selector` 1: the classifier sees the first layer's output, after its ReLU, with its statistics."""
    record, tensors = load("simclr_head_v2")
    assert record["config"]["ft_proj_selector"] == 1
    dim = record["config"]["in_dim"]
    earlier = SimCLRv2(network(VIT, width=dim, num_heads=2), projection_dim=record["config"]["proj_out_dim"])
    with torch.no_grad():
        for i, (linear, norm) in enumerate(zip(linears(earlier.head), norms(earlier.head), strict=True)):
            linear.weight.copy_(tensors[f"layer{i}.kernel"].T)
            norm.weight.copy_(tensors[f"layer{i}.bn.gamma"])
            if f"layer{i}.bn.beta" in tensors:
                norm.bias.copy_(tensors[f"layer{i}.bn.beta"])
            norm.running_mean.copy_(tensors[f"layer{i}.bn.moving_mean_before"])  # type: ignore[union-attr]
            norm.running_var.copy_(tensors[f"layer{i}.bn.moving_variance_before"])  # type: ignore[union-attr]
    assert_close(earlier.head.eval()(tensors["x"]), tensors["out.eval_before"])
    method = SimCLRv2Finetune(network(VIT, width=dim, num_heads=2, seed=1), CLASSES)
    method.load_state_dict(dict(method.starting_weights(earlier.state_dict())))
    assert_close(method.head.hidden.train()(tensors["x"]), tensors["out.finetune_head_input"])
    assert_close(norms(method.head)[0].running_mean, tensors["layer0.bn.moving_mean_after"])


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_kept_layers_are_the_pretrained_ones_with_their_statistics(layers: int) -> None:
    earlier, method = pretrained(), finetune(head_layers=layers)
    method.load_state_dict(dict(method.starting_weights(earlier.state_dict())))
    assert len(linears(method.head.hidden)) == len(norms(method.head.hidden)) == layers
    for own, there in zip(linears(method.head.hidden), linears(earlier.head), strict=False):
        assert torch.equal(own.weight, there.weight)
    for own, there in zip(norms(method.head.hidden), norms(earlier.head), strict=False):
        assert torch.equal(own.weight, there.weight) and torch.equal(own.bias, there.bias)
        assert own.running_mean is not None and own.running_var is not None and there.running_mean is not None
        assert torch.equal(own.running_mean, there.running_mean) and own.running_mean.abs().min() > 0
        assert torch.equal(own.running_var, there.running_var)
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(method.eval().backbone(images), earlier.eval().backbone(images))
    assert torch.equal(
        method.head.hidden(method.backbone(images)), earlier.head[: 3 * layers](earlier.backbone(images))
    )
    assert (method.head.linear.weight == 0).all() and (method.head.linear.bias == 0).all()


def test_the_last_layer_is_never_kept() -> None:
    """It has another width and no ReLU."""
    with pytest.raises(UserError, match="no projection head of more than 3 layers"):
        finetune(head_layers=3).starting_weights(pretrained().state_dict())
    masked = build("mae", VIT).state_dict()
    with pytest.raises(UserError, match="--method.head_layers 0"):
        finetune(network(VIT)).starting_weights(masked)
    assert (
        finetune(network(VIT), head_layers=0).starting_weights(masked).keys()
        == finetune(network(VIT), head_layers=0).state_dict().keys()
    )


@pytest.mark.parametrize("name", ["dino", "ibot", "byol"])
def test_the_network_that_is_evaluated_is_the_one_that_is_fine_tuned(name: str) -> None:
    """DINO's and iBOT's teacher, BYOL's online network."""
    earlier = build(name, VIT)
    with torch.no_grad():
        for parameter in earlier.backbone.parameters():
            parameter.add_(0.1)  # the student has gone ahead
    method = finetune(network(VIT), head_layers=0)
    method.load_state_dict(dict(method.starting_weights(earlier.state_dict())))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(method.backbone.eval()(images), earlier.evaluated.eval()(images))
    assert torch.equal(method.backbone(images), earlier.backbone.eval()(images)) == (name == "byol")


def test_fine_tuning_goes_on_from_a_fine_tuned_run() -> None:
    earlier = finetune()
    nn.init.normal_(earlier.head.linear.weight)
    method = finetune()
    method.load_state_dict(dict(method.starting_weights(earlier.state_dict())))
    assert torch.equal(method.head.linear.weight, earlier.head.linear.weight)
    distilled = earlier.state_dict() | {"teacher.mean": torch.zeros(3, 1, 1)}
    assert method.starting_weights(distilled).keys() == method.state_dict().keys()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_loss_is_cross_entropy_and_the_classifiers_decay(decay: float) -> None:
    method = finetune(network(VIT), optim=Optim("lars_tf", weight_decay=decay)).double()
    nn.init.normal_(method.head.linear.weight)
    (images,), labels = views_of(method, 6), labels_of(6)
    logits = method.head(method.backbone(images.double()))
    expected = torch.zeros((), dtype=torch.float64)
    for row, label in zip(logits, labels, strict=True):
        expected = expected - torch.log(torch.exp(row[label]) / sum(torch.exp(value) for value in row)) / 6
    expected = expected + decay / 2 * sum(value**2 for value in method.head.linear.weight.flatten())
    assert_close(method.loss([images.double()], labels=labels), expected, relative=1e-6)


def test_untrained_loss_is_that_of_guessing() -> None:
    method = finetune()
    assert_close(method.loss(views_of(method, 8), labels=labels_of(8)), math.log(CLASSES))


def test_lars_scales_every_layer_but_the_classifier() -> None:
    """v = lr * trust * g, w -= v: trust 0.001 |w| / |g| for the head's hidden layer, 1 for the linear one."""
    method = finetune(network(VIT))
    nn.init.normal_(method.head.linear.weight)
    optimizer = build_optimizer(method, method.optim, method.no_weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = 0.3
    method.loss(views_of(method, 8), labels=labels_of(8)).backward()
    hidden, linear = method.head.hidden[0].weight, method.head.linear.weight
    assert hidden.grad is not None and linear.grad is not None
    trust = 0.001 * hidden.norm() / hidden.grad.norm()
    expected = hidden - 0.3 * trust * hidden.grad, linear - 0.3 * linear.grad
    optimizer.step()
    assert_close(hidden, expected[0])
    assert_close(linear, expected[1])


def test_everything_learns_norms_included() -> None:
    method = build("simclrv2-finetune", RESNET, optim=Optim("sgd", base_lr=20.0, warmup_epochs=0))
    assert all(parameter.requires_grad for parameter in method.parameters())
    before = {name: value.clone() for name, value in method.state_dict().items()}
    trainer().fit(method, datamodule=GivenViews([views_of(method, 8, seed) for seed in range(3)]))
    assert not [name for name, value in method.state_dict().items() if torch.equal(value, before[name])]


def test_views_of_both_later_stages_are_crops_and_flips() -> None:
    for name in ("simclrv2-finetune", "simclrv2-distill"):
        (view,) = build(name, VIT).views()
        assert (view.size, view.count, view.scale, view.flip) == (32, 1, (0.08, 1.0), 0.5)
        assert (view.jitter, view.grayscale, view.blur, view.solarize) == (None, 0.0, 0.0, 0.0)


def test_defaults_of_fine_tuning_are_the_readmes() -> None:
    method = finetune()
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.scaling) == ("lars_tf", 0.005, "sqrt")
    assert (optim.weight_decay, optim.warmup_epochs, optim.min_lr) == (0.0, 0, 0.0)
    assert optim.base_lr * math.sqrt(1024) == pytest.approx(0.16)
    assert len(linears(method.head.hidden)) == 1 and not method.standardize


# Distillation


def distill(teacher: Path, **given: Any) -> SimCLRv2Distill:
    return SimCLRv2Distill(network(seed=2), str(teacher), **given)


def loops(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """- sum over classes of p_T log p_S, averaged over images, with softmaxes written out."""
    loss = torch.zeros((), dtype=torch.float64)
    for s, t in zip(student.double(), teacher.double(), strict=True):
        p_s = [torch.exp(v / temperature) / sum(torch.exp(w / temperature) for w in s) for v in s]
        p_t = [torch.exp(v / temperature) / sum(torch.exp(w / temperature) for w in t) for v in t]
        loss = loss - sum(p * torch.log(q) for p, q in zip(p_t, p_s, strict=True))
    return loss / len(student)


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 3.0])
def test_imitation_is_the_papers_formula(teacher: Path, temperature: float, squared: bool) -> None:
    method = distill(teacher, temperature=temperature, squared=squared)
    torch.manual_seed(0)
    student, wanted = torch.randn(5, 7, requires_grad=True), torch.randn(5, 7)
    scale = temperature**2 if squared else 1.0
    loss = method.imitation(student, wanted)
    assert_close(loss, scale * loops(student.detach(), wanted, temperature))
    loss.backward()
    difference = (student / temperature).softmax(1) - (wanted / temperature).softmax(1)
    assert student.grad is not None
    assert_close(student.grad, scale * difference.detach() / temperature / 5)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_labels_that_may_be_seen_join_in(teacher: Path, alpha: float) -> None:
    method = distill(teacher, alpha=alpha, temperature=2.0).double()
    (images,) = views_of(method, 6)
    labels = torch.tensor([3, -1, 0, -1, -1, 9])
    logits, wanted = method.head(method.backbone(images.double())), method.teacher(images.double())
    supervised = sum(-torch.log_softmax(logits[i], 0)[labels[i]] for i in (0, 2, 5)) / 3
    expected = (1 - alpha) * supervised + alpha * 4 * loops(logits, wanted, 2.0)
    assert_close(method.loss([images.double()], labels=labels), expected)
    none = method.loss([images.double()], labels=torch.full((6,), -1))
    assert_close(none, alpha * 4 * loops(logits, wanted, 2.0))


def test_the_teacher_is_the_run_and_stays_so(teacher: Path) -> None:
    method = distill(teacher, optim=Optim("sgd", base_lr=1.0, warmup_epochs=0))
    backbone, mean, std = load_backbone(teacher)
    classifier = load_classifier(teacher)
    assert classifier is not None and not any(p.requires_grad for p in method.teacher.parameters())
    images = torch.rand(4, 3, 32, 32)
    normal = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    expected = classifier.eval()(backbone.eval()(normal))
    assert_close(method.train().teacher(images), expected)
    assert expected.std() > 0.01
    before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
    trainer().fit(method.train(), datamodule=GivenViews([views_of(method, 8, seed) for seed in range(2)]))
    assert all(torch.equal(value, before[name]) for name, value in method.teacher.state_dict().items())
    assert not method.standardize  # what the teacher sees is normalised once


@pytest.mark.integration
def test_a_student_learns_what_the_teacher_says(teacher: Path) -> None:
    """20 steps on one batch bring its predictions to the teacher's, and its loss to their entropy."""
    method = distill(teacher)
    (images,) = views_of(method, 8)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        loss = method.loss([images])
        loss.backward()
        optimizer.step()
    wanted = method.teacher(images).softmax(1)
    assert loss.item() == pytest.approx(torch.special.entr(wanted).sum(1).mean().item(), abs=0.05)
    assert loss.item() < math.log(CLASSES) - 0.5


def test_a_student_may_start_from_any_stage(teacher: Path) -> None:
    method = distill(teacher)
    earlier = pretrained()
    weights = method.starting_weights(earlier.state_dict())
    assert weights.keys() == method.state_dict().keys()
    assert all(torch.equal(weights[f"backbone.{name}"], v) for name, v in earlier.backbone.state_dict().items())
    assert torch.equal(weights["head.linear.weight"], method.head.linear.weight)
    tuned = finetune(head_layers=0)
    nn.init.normal_(tuned.head.linear.weight)
    weights = method.starting_weights(tuned.state_dict())
    assert torch.equal(weights["head.linear.weight"], tuned.head.linear.weight)  # self-distillation
    assert torch.equal(weights["teacher.classifier.linear.weight"], method.teacher.classifier.linear.weight)
    deeper = method.starting_weights(finetune(head_layers=1).state_dict())
    assert deeper.keys() == method.state_dict().keys()
    assert torch.equal(deeper["head.linear.weight"], method.head.linear.weight)


def test_wrong_teachers(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs --method.teacher RUN, the folder of a simclrv2-finetune run"):
        SimCLRv2Distill(network())
    with pytest.raises(UserError, match="has no backbone.json"):
        distill(tmp_path)
    write_backbone(tmp_path, network(), (0, 0, 0), (1, 1, 1))
    with pytest.raises(UserError, match="has no classifier: fine-tune it first"):
        distill(tmp_path)
    save_classifier(tmp_path, Classifier(network().dim, 3), ("a", "b", "c"))
    assert distill(tmp_path).evaluated_classifier.names == ("a", "b", "c")
    (tmp_path / "classifier.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="the classifier is damaged"):
        distill(tmp_path)
    for wrong in ({"temperature": 0.0}, {"alpha": 1.5}, {"head_layers": -1}):
        with pytest.raises(UserError, match="--method"):
            distill(teacher, **wrong)


def test_defaults_of_distillation(teacher: Path) -> None:
    method = distill(teacher)
    assert (method.temperature, method.alpha, method.squared, method.needs_labels) == (1.0, 1.0, True, False)
    assert distill(teacher, alpha=0.5).needs_labels
    assert linears(method.head) == [method.head.linear]
    assert method.head.linear.out_features == CLASSES
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.scaling, optim.weight_decay) == ("lars_tf", 0.1, "sqrt", 1e-4)


# A run to start from


def write_run(folder: Path, method: SimCLRv2, standardized: bool) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    torch.save({"state_dict": method.state_dict()}, folder / "checkpoints" / "last.ckpt")
    mean = (0.5, 0.5, 0.5) if standardized else (0.0, 0.0, 0.0)
    write_backbone(folder, method.backbone, mean, (1.0, 1.0, 1.0))
    return folder


def test_a_stage_starts_from_a_run_folder_of_the_same_network(tmp_path: Path) -> None:
    earlier = pretrained()
    run = write_run(tmp_path / "run", earlier, standardized=False)
    method = finetune()
    start_from(method, run)
    assert torch.equal(method.head.hidden[0].weight, earlier.head[0].weight)
    assert torch.equal(method.backbone.model.bn1.running_mean, earlier.backbone.model.bn1.running_mean)
    with pytest.raises(UserError, match="only the method here has backbone.model.cls_token"):
        start_from(finetune(network(VIT)), run)


def test_pixels_must_be_what_the_earlier_stage_saw(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", pretrained(), standardized=True)
    assert json.loads((run / "backbone.json").read_text())["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(UserError, match="--method.standardize true"):
        start_from(finetune(), run)
    start_from(finetune(standardize=True), run)


def test_low_temperature_does_not_overflow_in_half_precision(teacher: Path) -> None:
    method = distill(teacher, temperature=0.01)
    with torch.autocast("cpu", torch.float16):
        loss = method.loss(views_of(method, 4))
    assert loss.dtype == torch.float32 and loss.isfinite()
