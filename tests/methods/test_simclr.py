"""SimCLR against the official TensorFlow code, the paper's formula in loops, and lightly."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load
from lightly.loss import NTXentLoss
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.methods.simclr import SimCLR, nt_xent, projection_head
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.optimizers import LARS, build_optimizer, parameter_groups


def simclr(backbone: str = "vit_pico_patch4_32", **given: Any) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(Backbone(BackboneOptions(backbone, img_size=32)), **given)


def paper_loss(z0: Tensor, z1: Tensor, temperature: float) -> Tensor:
    """Equation 1 of the paper in loops, summed over both directions and averaged over images, float64."""
    views = [z0.double(), z1.double()]
    images = len(z0)
    loss = torch.zeros((), dtype=torch.float64)
    for a, b in ((0, 1), (1, 0)):
        for i in range(images):
            anchor = views[a][i]
            denominator = torch.zeros((), dtype=torch.float64)
            for view in (0, 1):
                for j in range(images):
                    if (view, j) != (a, i):
                        denominator = denominator + torch.exp(anchor @ views[view][j] / temperature)
            loss = loss - torch.log(torch.exp(anchor @ views[b][i] / temperature) / denominator)
    return loss / images


def directions(images: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    z0 = torch.randn(images, dim)
    z1 = z0 + 0.5 * torch.randn(images, dim)
    return F.normalize(z0, dim=1), F.normalize(z1, dim=1)


RESULTS = load("simclr_ntxent")[0]["results"]


@pytest.mark.parametrize("result", RESULTS, ids=lambda r: f"tau {r['tau']} normalised {r['hidden_norm']}")
def test_loss_and_gradient_of_the_official_code(result: dict[str, Any]) -> None:
    tensors = load("simclr_ntxent")[1]
    hidden = tensors["hidden"].mul(result["hidden_scale"]).requires_grad_()
    z = F.normalize(hidden, dim=1) if result["hidden_norm"] else hidden
    loss = nt_xent(*z.chunk(2), result["tau"], normalize=False)
    loss.backward()
    assert_close(loss, result["loss_numpy_float64"])
    assert hidden.grad is not None
    assert_close(hidden.grad, tensors[f"grad.tau{result['tau']}_norm{int(result['hidden_norm'])}"])


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(("images", "dim"), [(2, 3), (3, 128), (7, 16)])
def test_loss_is_the_papers_formula(images: int, dim: int, temperature: float) -> None:
    z0, z1 = directions(images, dim, seed=images)
    expected = paper_loss(z0, z1, temperature)
    assert_close(nt_xent(z0.double(), z1.double(), temperature, normalize=False), expected, noise=1e-15, relative=1e-8)
    strangers = F.normalize(torch.randn(images, dim), dim=1)  # a loss far enough from 0 for float32
    assert_close(nt_xent(z0, strangers, temperature), paper_loss(z0, strangers, temperature))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_loss_is_twice_lightlys(temperature: float) -> None:
    z0, z1 = directions(6, 16)
    assert_close(nt_xent(z0, z1, temperature), 2 * NTXentLoss(temperature)(z0, z1))


@pytest.mark.parametrize("images", [2, 5, 64])
def test_loss_of_identical_embeddings(images: int) -> None:
    z = F.normalize(torch.ones(images, 8), dim=1)
    assert_close(nt_xent(z, z, 0.1), 2 * math.log(2 * images - 1))


def test_identical_embeddings_in_the_official_code() -> None:
    record = load("simclr_ntxent")[0]
    z = F.normalize(torch.ones(record["config"]["B"], 8), dim=1)
    assert_close(nt_xent(z, z, 0.1), record["identical_embeddings_loss"])


def test_two_images_by_hand() -> None:
    """Two images with orthogonal codes and a perfect match: -ln(e^2 / (e^2 + 2)) per anchor at temperature 0.5.

    With itself among the negatives the denominator would be 2 e^2 + 2, masked by 0 instead of -inf e^2 + 3.
    """
    z = torch.eye(2)
    expected = 2 * math.log((math.e**2 + 2) / math.e**2)
    assert_close(nt_xent(z, z, 0.5), expected)


def test_loss_does_not_depend_on_the_length_of_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    method = simclr().eval()
    views = [torch.rand(4, 3, 32, 32), torch.rand(4, 3, 32, 32)]
    before = method.loss(views)
    lengths = torch.tensor([[0.1], [3.0], [40.0], [1.0]]).repeat(2, 1)
    monkeypatch.setattr(method, "head", nn.Sequential(method.head, ScaledBy(lengths)))
    assert_close(method.loss(views), before)


class ScaledBy(nn.Module):
    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, z: Tensor) -> Tensor:
        return z * self.factors


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_temperature_does_not_overflow_in_half_precision(dtype: torch.dtype) -> None:
    """e^(1/0.05) is 4.9e8; float16 ends at 65504."""
    method = simclr(temperature=0.05)
    view = torch.rand(4, 3, 32, 32)
    with torch.autocast("cpu", dtype):
        loss = method.loss([view, view])  # similarities of 1
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_similarities_are_float32_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    method, (z0, z1) = simclr(), directions(6, 16)
    monkeypatch.setattr(method, "backbone", nn.Identity())
    monkeypatch.setattr(method, "head", nn.Identity())
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(method.loss([z0, z1]), paper_loss(z0, z1, 0.1))


# The head


@pytest.mark.parametrize("version", [1, 2])
class TestHead:
    def head(self, version: int) -> tuple[nn.Sequential, list[nn.BatchNorm1d], dict[str, Any], dict[str, Tensor]]:
        """Ours with the official weights, and its batch norms."""
        record, tensors = load(f"simclr_head_v{version}")
        config = record["config"]
        head = projection_head(config["in_dim"], config["proj_out_dim"], config["num_proj_layers"])
        linears = [m for m in head if isinstance(m, nn.Linear)]
        norms = [m for m in head if isinstance(m, nn.BatchNorm1d)]
        with torch.no_grad():
            for i, (linear, norm) in enumerate(zip(linears, norms, strict=True)):
                linear.weight.copy_(tensors[f"layer{i}.kernel"].T)
                norm.weight.copy_(tensors[f"layer{i}.bn.gamma"])
                if f"layer{i}.bn.beta" in tensors:
                    norm.bias.copy_(tensors[f"layer{i}.bn.beta"])
                norm.running_mean.copy_(tensors[f"layer{i}.bn.moving_mean_before"])  # type: ignore[union-attr]
                norm.running_var.copy_(tensors[f"layer{i}.bn.moving_variance_before"])  # type: ignore[union-attr]
        return head, norms, record, tensors

    def test_outputs_and_statistics(self, version: int) -> None:
        head, norms, record, tensors = self.head(version)
        x = tensors["x"]
        assert_close(head.eval()(x), tensors["out.eval_before"])
        assert_close(head.train()(x), tensors["out.train"])
        rows = len(x)
        for i, norm in enumerate(norms):
            assert norm.running_mean is not None and norm.running_var is not None
            assert_close(norm.running_mean, tensors[f"layer{i}.bn.moving_mean_after"])
            # TensorFlow averages the biased batch variance, PyTorch the unbiased one: n / (n - 1) times as large.
            before, after = (tensors[f"layer{i}.bn.moving_variance_{when}"] for when in ("before", "after"))
            assert_close(norm.running_var - 0.9 * before, (after - 0.9 * before) * rows / (rows - 1))
            norm.running_var.copy_(after)
        assert_close(head.eval()(x), tensors["out.eval_after"])

    def test_gradients(self, version: int) -> None:
        head, norms, record, tensors = self.head(version)
        x = tensors["x"].requires_grad_()
        loss = nt_xent(*F.normalize(head(x), dim=1).chunk(2), 0.5)
        loss.backward()
        assert_close(loss, record["loss_of_output_tau0p5"])
        assert x.grad is not None
        assert_close(x.grad, tensors["grad.x"])
        official = {name.partition("/")[2]: norm for name, norm in record["grad_norms"].items()}
        for i, linear in enumerate(m for m in head if isinstance(m, nn.Linear)):
            layer = {name.rpartition("/")[2]: norm for name, norm in official.items() if name.startswith(f"nl_{i}/")}
            assert linear.weight.grad is not None and norms[i].weight.grad is not None
            assert_close(linear.weight.grad.norm(), layer["kernel:0"])
            assert_close(norms[i].weight.grad.norm(), layer["gamma:0"])
            assert ("beta:0" in layer) == norms[i].bias.requires_grad
            if norms[i].bias.grad is not None:
                assert_close(norms[i].bias.grad.norm(), layer["beta:0"])

    def test_first_layers_output_is_where_fine_tuning_starts(self, version: int) -> None:
        head, _, record, tensors = self.head(version)
        first = head[: 3 * record["config"]["ft_proj_selector"]]
        assert_close(first(tensors["x"]), tensors["out.finetune_head_input"])


def test_head_has_no_linear_bias_and_ends_in_a_norm_without_one() -> None:
    method, layers = simclr(projection_dim=20), 2
    linears = [m for m in method.head if isinstance(m, nn.Linear)]
    norms = [m for m in method.head if isinstance(m, nn.BatchNorm1d)]
    width = method.backbone.dim
    assert [m.weight.shape for m in linears] == [(width, width)] * (layers - 1) + [(20, width)]
    assert all(m.bias is None for m in linears)
    assert [m.bias.requires_grad for m in norms] == [True] * (layers - 1) + [False]
    assert isinstance(method.head[-1], nn.BatchNorm1d)
    assert all(norm.eps == 1e-5 and norm.momentum == 0.1 for norm in norms)
    optimizer = build_optimizer(method, method.optim)
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    method.loss([torch.rand(4, 3, 32, 32) for _ in range(2)]).backward()
    optimizer.step()
    assert (norms[-1].bias == 0).all()
    assert not (norms[-1].weight == 1).all()


# Networks


def test_initialisation() -> None:
    """Convolutions as Keras', the head normal, residual branches closed."""
    method = simclr("resnet_nano")
    for module in method.backbone.modules():
        if isinstance(module, nn.Conv2d):
            std = module.weight[0].numel() ** -0.5
            assert module.weight.std().item() == pytest.approx(std, rel=0.05)
            assert module.weight.abs().max() <= 2 * std / 0.87962566 + 1e-6  # cut at two deviations of the normal
    for module in method.head:
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.05)
    blocks = [block for i in (1, 2, 3, 4) for block in getattr(method.backbone.model, f"layer{i}")]
    assert len(blocks) == 4
    assert all((block.bn2.weight == 0).all() for block in blocks)


def test_a_vit_keeps_its_own_initialisation() -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneOptions("vit_pico_patch4_32"))
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    SimCLR(backbone)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


@pytest.mark.parametrize("backbone", ["resnet_nano", "vit_pico_patch4_32"])
def test_both_views_go_through_the_network_at_once(backbone: str) -> None:
    """Batch norm sees both; on a network without batch norm it makes no difference."""
    method = simclr(backbone)
    batches = []
    method.backbone.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    views = [torch.rand(4, 3, 32, 32), 0.3 * torch.rand(4, 3, 32, 32)]
    method.loss(views)
    assert batches == [8]
    with torch.no_grad():
        together = method.backbone(torch.cat(views))
        apart = torch.cat([method.backbone(view) for view in views])
    difference = (together - apart).abs().max()
    assert difference > 1e-4 if backbone == "resnet_nano" else difference < 1e-5


def test_lars_leaves_norms_and_biases_alone() -> None:
    method = simclr("resnet_nano")
    optimizer = build_optimizer(method, method.optim)
    assert isinstance(optimizer, LARS)
    assert all(group["rate_in_momentum"] for group in optimizer.param_groups)
    decayed, plain = parameter_groups(method)
    norms = {id(p) for m in method.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for p in m.parameters()}
    frozen = {id(method.head[-1].bias)}
    weights = {id(m.weight) for m in method.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {id(p) for p in plain["params"]} == norms - frozen
    assert {id(p) for p in decayed["params"]} == weights
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-6, 0.0]


def test_loss_joins_backbone_head_and_contrast() -> None:
    method = simclr(temperature=0.2)
    views = [torch.rand(5, 3, 32, 32) for _ in range(2)]
    with torch.no_grad():
        z = F.normalize(method.head(method.backbone(torch.cat(views))), dim=1)
        assert_close(method.loss(views), paper_loss(z[:5], z[5:], 0.2))


# Views and recipe


def test_views_for_imagenet_and_for_cifar() -> None:
    (view,) = simclr().views()
    assert (view.size, view.count, view.scale, view.ratio) == (32, 2, (0.08, 1.0), (3 / 4, 4 / 3))
    assert (view.jitter, view.jitter_p, view.grayscale, view.flip) == ((0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5)
    assert (view.blur, view.blur_sigma, view.solarize, view.interpolation) == (0.5, (0.1, 2.0), 0.0, "bicubic")
    (small,) = simclr(color_strength=0.5, blur=0.0).views()
    assert (small.jitter, small.blur) == ((0.4, 0.4, 0.4, 0.1), 0.0)


def test_blur_of_a_tenth_of_an_imagenet_view() -> None:
    method = SimCLR(Backbone(BackboneOptions("resnet_nano", img_size=224)))
    assert method.views()[0].taps == 23


def test_defaults_are_the_papers() -> None:
    method = simclr()
    assert method.temperature == 0.1
    assert not method.standardize
    assert method.head[-1].num_features == 128
    optim = method.optim
    assert (optim.name, optim.base_lr, optim.scaling, optim.weight_decay) == ("lars_tf", 0.3, "linear", 1e-6)
    assert (optim.momentum, optim.warmup_epochs, optim.min_lr, optim.clip) == (0.9, 10, 0.0, None)
