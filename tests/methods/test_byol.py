"""BYOL against the official JAX code, the paper's formula in loops, lightly, and what makes it collapse."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load, weights
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLProjectionHead
from small import GivenViews, trainer, views_of
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.byol import BYOL, distance, mlp
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import LARS, StepSchedule, build_optimizer, parameter_groups
from ssl_bench.optim.schedules import cosine

SGD = Optim("sgd", base_lr=25.6, scaling="linear", weight_decay=0.0, momentum=0.0, warmup_epochs=0)


def byol(backbone: str = "vit_pico_patch4_32", **given: Any) -> BYOL:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_dim": 40, "projection_dim": 24}
    return BYOL(Backbone(BackboneOptions(backbone, img_size=16)), **sizes | given)


def pair(images: int = 4, seed: int = 0) -> list[Tensor]:
    """Two views whose statistics differ."""
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.rand(images, 3, 16, 16, generator=generator) for scale in (1.0, 0.3)]


def paper_loss(p0: Tensor, p1: Tensor, z0: Tensor, z1: Tensor) -> Tensor:
    """Equation 2 of the paper in loops, symmetrised, averaged over images, float64."""
    loss = torch.zeros((), dtype=torch.float64)
    for prediction, projection in ((p0, z1), (p1, z0)):
        for q, z in zip(prediction.double(), projection.double(), strict=True):
            dot, q_length, z_length = ((a * b).sum() for a, b in ((q, z), (q, q), (z, z)))
            loss = loss + 2 - 2 * dot / (q_length.sqrt() * z_length.sqrt())
    return loss / len(p0)


# The official code


class StandIn(nn.Module):
    """The encoder of the golden file: standardised pixels, Linear, batch norm, ReLU."""

    is_resnet = True

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.img_size, self.dim = size, dim
        self.linear = nn.Linear(3 * size**2, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, images: Tensor) -> Tensor:
        pixels = images - images.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        pixels = pixels / images.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        return F.relu(self.norm(self.linear(pixels.permute(0, 2, 3, 1).flatten(1))))


HEAD = {"linear": "0", "batch_norm": "1", "linear_1": "3"}
THEIRS = {"backbone": "tiny_encoder", "projector": "projector", "predictor": "predictor"}


def official_name(name: str) -> str:
    """Ours, such as projector.1.weight, under haiku's name."""
    part, layer, tensor = name.split(".")
    layers = {"linear": "linear", "norm": "batch_norm"} | {ours: theirs for theirs, ours in HEAD.items()}
    kinds = {"weight": "w", "bias": "b"} if "linear" in layers[layer] else {"weight": "scale", "bias": "offset"}
    return f"{THEIRS[part]}/{layers[layer]}/{kinds[tensor]}"


def ours(tensor: Tensor) -> Tensor:
    """A weight or statistic of haiku in PyTorch's shape."""
    return tensor[0] if tensor.shape[0] == 1 else tensor.T if tensor.ndim == 2 else tensor


class Official:
    """The golden step: our method with the official weights and statistics, and what came out."""

    def __init__(self) -> None:
        self.record, self.tensors = load("byol_step")
        config = self.record["config"]
        self.rows = config["B"]
        optim = Optim("lars", base_lr=config["base"], weight_decay=config["wd"], warmup_epochs=config["warm"])
        backbone: Any = StandIn(config["img"], config["w"])
        self.method = BYOL(
            backbone, momentum=config["ema"], hidden_dim=config["hid"], projection_dim=config["out"], optim=optim
        )
        self.online = dict(self.method.named_parameters())
        target = {
            name.replace("target.module.0", "backbone").replace("target.module.1", "projector"): self.online.pop(name)
            for name in list(self.online)
            if name.startswith("target.")
        }
        self.target = target
        with torch.no_grad():
            for network in ("online", "target"):
                for name, parameter in getattr(self, network).items():
                    parameter.copy_(ours(self.tensors[f"{network}_params.{official_name(name)}"]))
                for theirs, norm in self.norms(network).items():
                    mean, variance = self.statistics(f"{network}_state", theirs)
                    norm.running_mean.copy_(mean)  # type: ignore[union-attr]
                    norm.running_var.copy_(variance)  # type: ignore[union-attr]

    def norms(self, network: str) -> dict[str, nn.BatchNorm1d]:
        if network == "online":
            modules = self.method.backbone, self.method.projector, self.method.predictor
        else:
            modules = tuple(self.method.target.module)  # the official target has a predictor too, which nothing reads
        found = [m for module in modules for m in module.modules() if isinstance(m, nn.BatchNorm1d)]
        return dict(zip(("tiny_encoder", "projector", "predictor"), found, strict=False))

    def statistics(self, state: str, part: str) -> tuple[Tensor, Tensor]:
        """Haiku's moving averages before their zero-debiasing; PyTorch's variances are the unbiased ones."""
        mean, variance = (self.tensors[f"{state}.{part}/batch_norm/~/{kind}_ema/hidden"][0] for kind in ("mean", "var"))
        return mean, variance * self.rows / (self.rows - 1)

    def views(self, batch: int) -> list[Tensor]:
        return [self.tensors[f"batch{batch}.view{view}"].permute(0, 3, 1, 2) for view in (1, 2)]

    def check(self, name: str, actual: Tensor) -> None:
        assert_close(actual, ours(self.tensors[name]), self.record["noise"][name]["max_abs"])


def test_outputs_and_loss_of_the_official_code() -> None:
    official = Official()
    method, noise = official.method, official.record["noise"]
    outputs = {}
    for i, view in enumerate(official.views(0), 1):
        outputs[f"online.projection_view{i}"] = projection = method.projector(method.backbone(view))
        outputs[f"online.prediction_view{i}"] = method.predictor(projection)
        outputs[f"target.projection_view{i}"] = method.target(view)
    for name, output in outputs.items():
        assert_close(output, official.tensors[name], noise[name]["max_abs"])
    for one, other in ((1, 2), (2, 1)):
        name = f"per_sample_loss_{one}{other}"
        rows = distance(outputs[f"online.prediction_view{one}"], outputs[f"target.projection_view{other}"])
        assert_close(rows, official.tensors[name], noise[name]["max_abs"])
    assert_close(method.loss(official.views(0)), official.record["logs_float64"][0]["repr_loss"])


def test_gradients_of_the_official_code() -> None:
    official = Official()
    official.method.loss(official.views(0)).backward()
    assert len(official.online) == 3 + 5 + 5
    for name, parameter in official.online.items():
        assert parameter.grad is not None
        official.check(f"grad0.{official_name(name)}", parameter.grad)


def test_three_updates_of_the_official_code() -> None:
    """Rate, momentum, LARS and moving average at three steps of ten, and what both networks' norms have seen."""
    official = Official()
    config, method = official.record["config"], official.method
    optimizer = build_optimizer(method, method.optim)
    schedule = StepSchedule(method.optim, config["schedule_batch_size"], config["max_steps"], steps_per_epoch=1)
    for batch, step in enumerate(config["steps"]):
        log = official.record["logs_float64"][batch]
        schedule.apply(optimizer, step)
        optimizer.zero_grad()
        loss = method.loss(official.views(batch))
        loss.backward()
        optimizer.step()
        method.target.update(step, config["max_steps"])
        assert_close(loss, log["repr_loss"])
        assert_close(schedule.lr(step), log["learning_rate"])
        assert_close(
            cosine(step, config["max_steps"], method.target.momentum, method.target.final_momentum), log["tau"]
        )
        if batch != 1:
            for network in ("online", "target"):
                for name, parameter in getattr(official, network).items():
                    official.check(f"{network}_params_after{batch}.{official_name(name)}", parameter)
    for network in ("online", "target"):
        norms = official.norms(network)
        assert len(norms) == (3 if network == "online" else 2)
        for part, norm in norms.items():
            mean, variance = official.statistics(f"{network}_state_after2", part)
            assert norm.running_mean is not None and norm.running_var is not None
            assert_close(norm.running_mean, mean, noise=1e-7)
            assert_close(norm.running_var, variance, noise=3e-7)


def test_distances_of_the_official_code() -> None:
    tensors = weights(load("byol_lars_schedules")[1], "rl.")
    assert_close(distance(tensors["x"], tensors["y"]), tensors["loss"])  # one row of zeros among them


def test_defaults_are_the_official_preset_for_1000_epochs() -> None:
    presets = load("byol_lars_schedules")[0]["presets"]
    method = BYOL(Backbone(BackboneOptions("vit_pico_patch4_32")))
    optim = method.optim
    assert (optim.base_lr, optim.weight_decay) == (presets["lr"]["1000"], presets["wd"]["1000"])
    assert (method.target.momentum, method.target.final_momentum) == (presets["ema"]["1000"], 1.0)
    assert (optim.name, optim.scaling, optim.momentum, optim.warmup_epochs) == ("lars", "linear", 0.9, 10)
    assert (optim.schedule, optim.min_lr, optim.clip, optim.weight_decay_end) == ("cosine", 0.0, None, None)
    assert [m.weight.shape for m in method.projector if isinstance(m, nn.Linear)] == [(4096, 48), (256, 4096)]
    assert [m.weight.shape for m in method.predictor if isinstance(m, nn.Linear)] == [(4096, 256), (256, 4096)]


# The loss


@pytest.mark.parametrize(("images", "dim"), [(2, 3), (5, 256), (7, 16)])
def test_distance_is_the_papers_formula(images: int, dim: int) -> None:
    torch.manual_seed(images)
    p0, p1, z0, z1 = (3 * torch.randn(images, dim) for _ in range(4))
    assert_close((distance(p0, z1) + distance(p1, z0)).mean(), paper_loss(p0, p1, z0, z1))


def test_distance_is_lightlys_but_for_scale_and_offset() -> None:
    torch.manual_seed(0)
    p, z = torch.randn(6, 10), torch.randn(6, 10)
    assert_close(distance(p, z).mean(), 2 + 2 * NegativeCosineSimilarity()(p, z))


def test_loss_by_hand() -> None:
    """The same direction, none in common, the opposite: 0, 2 and 4 in each direction."""
    x = torch.tensor([[3.0, 0.0], [0.5, 0.0], [1.0, 0.0]])
    y = torch.tensor([[0.1, 0.0], [0.0, 7.0], [-2.0, 0.0]])
    assert distance(x, y).tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("backbone", ["vit_pico_patch4_32", "resnet_nano", "swin_pico_patch2_32"])
def test_loss_compares_each_views_prediction_with_the_targets_other_view(backbone: str) -> None:
    method, views = byol(backbone), pair(5)
    with torch.no_grad():
        for parameter in method.target.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))  # unlike the online network
        p0, p1 = (method.predictor(method.projector(method.backbone(view))) for view in views)
        z0, z1 = (method.target(view) for view in views)
        expected = paper_loss(p0, p1, z0, z1)
        assert_close(method.loss(views), expected)
        assert abs(expected - paper_loss(p0, p1, z1, z0)) > 1e-3  # and not its own
    assert 0 < expected < 8


def test_loss_is_float32_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    method = byol("resnet_nano")
    x, y = torch.randn(6, 24).bfloat16(), torch.randn(6, 24).bfloat16()
    for part in ("projector", "predictor"):
        monkeypatch.setattr(method, part, nn.Identity())
    monkeypatch.setattr(method.backbone, "forward", lambda rows: rows)
    monkeypatch.setattr(method.target, "module", nn.Sequential(method.backbone, nn.Identity()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss([x, y])
    assert loss.dtype == torch.float32
    assert_close(loss, paper_loss(x, y, x, y))


def test_no_gradient_reaches_the_target() -> None:
    method, views = byol("resnet_nano"), pair()
    seen: list[bool] = []
    for part in method.target.module:
        part.register_forward_hook(lambda _, args, output: seen.append(torch.is_grad_enabled() or output.requires_grad))
    method.loss(views).backward()
    assert seen == [False] * 4  # two views through two parts
    assert all(p.grad is None and not p.requires_grad for p in method.target.parameters())


# Batch norm


@pytest.mark.parametrize(
    "backbone", ["resnet_nano", "vit_pico_patch4_32", "swin_pico_patch2_32", "beit_pico_patch4_32"]
)
def test_norms_see_one_view_at_a_time(backbone: str) -> None:
    """And so does the trunk, which in a ResNet matters as much as in the heads."""
    method, views = byol(backbone), pair()
    batches: dict[str, list[int]] = {}
    parts = {"backbone": method.backbone, "projector": method.projector, "predictor": method.predictor}
    parts |= {"target backbone": method.target.module[0], "target projector": method.target.module[1]}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, args, __, name=name: batches.setdefault(name, []).append(len(args[0])))
    method.loss(views)
    assert batches == {name: [4, 4] for name in parts}
    with torch.no_grad():
        together = method.backbone(torch.cat(views))
        apart = torch.cat([method.backbone(view) for view in views])
    difference = (together - apart).abs().max()
    assert difference > 1e-4 if backbone == "resnet_nano" else difference < 1e-5


@pytest.mark.parametrize("backbone", ["resnet_nano", "vit_pico_patch4_32"])
def test_target_normalises_by_the_batch_and_keeps_statistics_of_its_own(backbone: str) -> None:
    method = byol(backbone, momentum=0.9, optim=SGD)
    seen: list[bool] = []
    norms = [m for m in method.target.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert norms
    alone = copy.deepcopy(method.target.module)
    for norm in norms:
        norm.register_forward_hook(lambda norm, *_: seen.append(norm.training))
    batches = [pair(seed=step) for step in range(3)]
    for step, views in enumerate(batches):  # the target's weights are the student's average; its statistics are not
        method.zero_grad()
        method.loss(views).backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
            for view in views:
                alone(view)
            method.target.update(step, 10)
        weights = dict(method.target.module.named_parameters())
        for name, parameter in alone.named_parameters():
            parameter.data.copy_(weights[name])
    assert seen == [True] * len(seen)
    assert len(seen) == len(norms) * 2 * len(batches)
    online = dict(nn.Sequential(method.backbone, method.projector).named_buffers())
    for name, buffer in method.target.module.named_buffers():
        assert_close(buffer, dict(alone.named_buffers())[name])
        if "running" in name:
            assert not torch.allclose(buffer, online[name], rtol=1e-3, atol=0), name


def test_target_is_in_training_mode_while_a_trainer_trains() -> None:
    method = byol("resnet_nano", optim=SGD)
    seen: list[bool] = []
    for module in method.target.modules():
        module.register_forward_pre_hook(lambda module, _: seen.append(module.training))
    trainer().fit(method, datamodule=GivenViews([pair()]))
    assert seen
    assert all(seen)


def test_both_heads_have_a_hidden_norm_and_nothing_after_the_last_layer() -> None:
    for head in (byol().projector, byol().predictor):
        first, norm, activation, last = head
        assert isinstance(first, nn.Linear) and first.bias is not None
        assert isinstance(norm, nn.BatchNorm1d) and norm.affine and (norm.eps, norm.momentum) == (1e-5, 0.1)
        assert isinstance(activation, nn.ReLU)
        assert isinstance(last, nn.Linear) and last.bias is None


def test_head_is_lightlys_but_for_biases() -> None:
    """The one before the norm, which takes it away again, they leave out; the last layer's, 0 at first, they have."""
    head, theirs = mlp(10, 12, 7), BYOLProjectionHead(10, 12, 7).layers
    with torch.no_grad():
        head[1].weight.uniform_()
        head[1].bias.normal_()
        theirs[0].weight.copy_(head[0].weight)
        theirs[1].load_state_dict(head[1].state_dict())
        theirs[3].weight.copy_(head[3].weight)
        theirs[3].bias.zero_()
        x = torch.randn(6, 10)
        assert_close(head(x), theirs(x))


# The moving average


@pytest.mark.parametrize("accumulate", [1, 2])
def test_target_moves_once_a_step_towards_what_the_step_made(accumulate: int) -> None:
    method = byol("resnet_nano", momentum=0.9, optim=SGD)
    before = {name: p.clone() for name, p in method.named_parameters()}
    quiet = trainer(accumulate_grad_batches=accumulate, max_steps=1)
    quiet.fit(method, datamodule=GivenViews([pair(seed=seed) for seed in range(accumulate)]))
    assert quiet.global_step == 1
    names = {"target.module.0.": "backbone.", "target.module.1.": "projector."}
    moved = 0
    for theirs, own in names.items():
        for name, parameter in method.named_parameters():
            if name.startswith(theirs):
                followed = name.replace(theirs, own)
                assert torch.equal(before[name], before[followed]), "did not start as a copy"
                after = method.get_parameter(followed)
                assert_close(parameter, 0.9 * before[name] + 0.1 * after, noise=1e-8)
                moved += not torch.equal(after, before[followed])
    assert moved > 10


def test_momentum_grows_to_one() -> None:
    target = byol().target
    total = 1000
    values = [cosine(step, total, target.momentum, target.final_momentum) for step in range(total + 1)]
    assert (values[0], values[-1]) == (0.996, 1.0)
    assert values == sorted(values)
    assert values[500] == pytest.approx(0.998)


def test_evaluated_backbone_is_the_online_one() -> None:
    method = byol()
    assert method.evaluated is method.backbone
    assert method.evaluated is not method.target.module[0]


@pytest.mark.integration
def test_projections_do_not_collapse() -> None:
    method = byol("resnet_nano", momentum=0.9)
    views = views_of(method, 16)
    optimizer = build_optimizer(method, Optim("sgd", weight_decay=0.0))
    losses = []
    for step in range(15):
        for group in optimizer.param_groups:
            group["lr"] = 0.05
        optimizer.zero_grad()
        loss = method.loss(views)
        loss.backward()
        optimizer.step()
        method.target.update(step, 15)
        losses.append(loss.detach())
    assert losses[-1] < 0.5 * losses[0]
    with torch.no_grad():
        z = F.normalize(method.target(views[0]), dim=1)
    assert z.std(0).mean() > 0.25 * z.shape[1] ** -0.5


# Networks, optimiser, views


def test_initialisation_is_haikus() -> None:
    """Weights N(0, 1 / fan-in) cut at two deviations and not rescaled, biases 0, every norm of a basic block open."""
    method = BYOL(Backbone(BackboneOptions("resnet_nano", img_size=32)), hidden_dim=512)
    parts = nn.ModuleList([method.backbone, method.projector, method.predictor])
    checked = 0
    for module in parts.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            std = module.weight[0].numel() ** -0.5
            assert module.weight.abs().max() <= 2 * std + 1e-6
            assert module.weight.std().item() == pytest.approx(0.87962566 * std, rel=0.06)
            assert module.bias is None or (module.bias == 0).all()
            checked += 1
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert checked > 10
    assert sum(isinstance(module, BasicBlock) for module in parts.modules()) == 4


def test_bottlenecks_start_closed() -> None:
    small = BackboneOptions("resnet50", img_size=32, timm_args={"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]})
    method = BYOL(Backbone(small), hidden_dim=16)
    blocks = [module for module in method.backbone.modules() if isinstance(module, Bottleneck)]
    assert len(blocks) == 4
    for block in blocks:
        assert (block.bn3.weight == 0).all()
        assert (block.bn2.weight == 1).all()


@pytest.mark.parametrize("name", ["vit_pico_patch4_32", "swin_pico_patch2_32"])
def test_a_transformer_keeps_its_own_initialisation(name: str) -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneOptions(name))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    BYOL(backbone, hidden_dim=16)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_target_is_a_copy_that_shares_nothing() -> None:
    method = byol("resnet_nano")
    student = nn.Sequential(method.backbone, method.projector).state_dict()
    target = method.target.module.state_dict()
    assert student.keys() == target.keys()
    assert all(torch.equal(student[name], target[name]) for name in student)
    assert not {t.data_ptr() for t in student.values()} & {t.data_ptr() for t in target.values()}


def test_lars_leaves_norms_and_biases_alone() -> None:
    method = byol("resnet_nano")
    optimizer = build_optimizer(method, method.optim)
    assert isinstance(optimizer, LARS)
    assert not any(group["rate_in_momentum"] for group in optimizer.param_groups)
    decayed, plain = parameter_groups(method)
    online = nn.ModuleList([method.backbone, method.projector, method.predictor])
    heavy = {id(m.weight) for m in online.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {id(p) for p in decayed["params"]} == heavy
    assert {id(p) for p in plain["params"]} == {id(p) for p in online.parameters()} - heavy
    assert id(method.projector[0].bias) in {id(p) for p in plain["params"]}
    assert [(group["decay"], group["weight_decay"]) for group in optimizer.param_groups] == [(True, 1.5e-6), (False, 0)]


def test_views_are_asymmetric() -> None:
    first, second = BYOL(Backbone(BackboneOptions("resnet_nano", img_size=224)), hidden_dim=16).views()
    for view in (first, second):
        assert (view.size, view.count, view.scale, view.ratio, view.flip) == (224, 1, (0.08, 1.0), (3 / 4, 4 / 3), 0.5)
        assert (view.jitter, view.jitter_p, view.grayscale) == ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2)
        assert (view.taps, view.blur_sigma, view.interpolation) == (23, (0.1, 2.0), "bicubic")
    assert [(view.blur, view.solarize) for view in (first, second)] == [(1.0, 0.0), (0.1, 0.2)]


def test_views_for_small_images() -> None:
    given: dict[str, Any] = {"jitter": (0.4, 0.4, 0.4, 0.1), "blur": (0.0, 0.0), "grayscale": 0.5, "crop_scale": 0.4}
    first, second = byol(**given, solarize=(0.1, 0.0)).views()
    for view in (first, second):
        assert (view.jitter, view.blur, view.grayscale) == ((0.4, 0.4, 0.4, 0.1), 0.0, 0.5)
        assert view.scale == (0.4, 1.0)
    assert (first.solarize, second.solarize) == (0.1, 0.0)


def test_a_momentum_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"--method.momentum 1.5 must lie between 0 and 1"):
        byol(momentum=1.5)
