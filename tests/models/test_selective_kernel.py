"""Wider and selective ResNets against loops, timm and the paper's table of sizes."""

import json

import pytest
import timm
import torch
from golden_files import assert_close
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.selective_kernel import SelectiveKernel

SMALL = {"layers": [1, 2, 1, 1], "channels": [20, 24, 32, 40]}


def small(seed: int = 0, **given: object) -> Backbone:
    torch.manual_seed(seed)
    options = {"name": "resnet50", "img_size": 32, "timm_args": SMALL, **given}
    backbone = Backbone(BackboneOptions(**options))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return backbone.eval()


# Sizes


@pytest.mark.parametrize(
    ("name", "width", "selective", "millions"),
    [
        ("resnet50", 1, None, 24),
        ("resnet50", 1, True, 35),
        ("resnet50", 2, None, 94),
        ("resnet50", 2, True, 140),
        ("resnet152", 3, True, 795),
    ],
)
def test_parameters_are_the_papers(name: str, width: int, selective: bool | None, millions: int) -> None:
    with torch.device("meta"):
        backbone = Backbone(BackboneOptions(name, width=width, selective_kernel=selective))
    assert round(sum(p.numel() for p in backbone.parameters()) / 1e6) == millions
    assert backbone.dim == 2048 * width


# Width


@pytest.mark.parametrize(("img_size", "kernel"), [(32, 3), (96, 7)])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_width_multiplies_every_channel_from_the_stem_on(name: str, img_size: int, kernel: int) -> None:
    with torch.device("meta"):
        narrow, wide = (Backbone(BackboneOptions(name, img_size=img_size, width=width)) for width in (1, 3))
    assert wide.model.conv1.kernel_size == (kernel, kernel)
    shapes = dict(narrow.model.named_parameters()), dict(wide.model.named_parameters())
    assert shapes[0].keys() == shapes[1].keys()  # no shortcut more or less
    for parameter, there in ((p, shapes[1][n]) for n, p in shapes[0].items()):
        expected = [3 * size for size in parameter.shape[:2]] + list(parameter.shape[2:])
        if parameter is shapes[0]["conv1.weight"]:
            expected[1] = 3  # colours
        assert list(there.shape) == expected


def test_a_plain_network_stays_timms() -> None:
    for width in (None, 1):
        backbone = Backbone(BackboneOptions("resnet18", img_size=96, width=width))
        model = timm.create_model(backbone.architecture, num_classes=0, **backbone.args)
        model.load_state_dict(backbone.model.state_dict())
        assert backbone.timm_can_build


def test_a_deep_stem_of_its_own_stays_deep() -> None:
    deep = Backbone(BackboneOptions("resnet10t", width=2, img_size=96))
    model = timm.create_model("resnet10t", num_classes=0, **deep.args)
    model.load_state_dict(deep.model.state_dict())
    assert deep.timm_can_build and [c.out_channels for c in deep.model.conv1 if isinstance(c, nn.Conv2d)] == [
        48,
        64,
        128,
    ]


@pytest.mark.parametrize(
    "given", [{"width": 2, "img_size": 96}, {"selective_kernel": True, "img_size": 96}, {"img_size": 32}]
)
def test_what_timm_alone_cannot_build_says_so(given: dict[str, object]) -> None:
    assert not small(**given).timm_can_build


def test_a_wide_stem_is_initialised_as_timms() -> None:
    torch.manual_seed(0)
    stem = Backbone(BackboneOptions("resnet18", img_size=96, width=2)).model.conv1
    assert (stem.kernel_size, stem.stride, stem.padding, stem.bias) == ((7, 7), (2, 2), (3, 3), None)
    assert stem.weight.std().item() == pytest.approx((2 / (128 * 49)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("given", [{"width": 2}, {"selective_kernel": True}, {"width": 2, "selective_kernel": True}])
@pytest.mark.parametrize("img_size", [32, 96])
def test_description_builds_the_network_again(given: dict[str, object], img_size: int) -> None:
    backbone = small(img_size=img_size, **given)
    again = Backbone(BackboneOptions(**json.loads(json.dumps(backbone.spec))["options"])).eval()
    again.load_state_dict(backbone.state_dict())
    images = torch.randn(2, 3, img_size, img_size)
    assert torch.equal(again(images), backbone(images))
    assert again.spec == backbone.spec
    weights = [p for p in backbone.parameters() if p.ndim == 4 and min(p.shape) > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


# Selective kernels


def kernels(channels: int = 3, filters: int = 5, stride: int = 2) -> SelectiveKernel:
    torch.manual_seed(0)
    module = SelectiveKernel(channels, filters, stride)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer += torch.rand_like(buffer)
    return module.eval()


def normed(norm: nn.BatchNorm2d, channel: int, value: Tensor) -> Tensor:
    assert norm.running_mean is not None and norm.running_var is not None
    scaled = (value - norm.running_mean[channel]) / torch.sqrt(norm.running_var[channel] + norm.eps)
    return torch.relu(scaled * norm.weight[channel] + norm.bias[channel])


@pytest.mark.parametrize("stride", [1, 2])
def test_selective_kernel_in_loops(stride: int) -> None:
    module = kernels(stride=stride).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    found = module(x)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    side = 6 // stride
    for b in range(2):
        streams = torch.zeros(2, 5, side, side, dtype=torch.float64)  # stream, channel
        for stream in range(2):
            for channel in range(5):
                row = 5 * stream + channel
                for i in range(side):
                    for j in range(side):
                        patch = padded[b, :, stride * i : stride * i + 3, stride * j : stride * j + 3]
                        value = (patch * module.conv.weight[row]).sum()
                        streams[stream, channel, i, j] = normed(module.bn, row, value)
        pooled = [(streams[0, c] + streams[1, c]).mean() for c in range(5)]
        middle = [
            normed(module.squeeze_bn, m, sum(module.squeeze.weight[m, c, 0, 0] * pooled[c] for c in range(5)))  # type: ignore[arg-type]
            for m in range(32)
        ]
        for c in range(5):
            logit = [sum(module.select.weight[5 * s + c, m, 0, 0] * middle[m] for m in range(32)) for s in (0, 1)]
            share = [torch.exp(v) / (torch.exp(logit[0]) + torch.exp(logit[1])) for v in logit]  # type: ignore[arg-type]
            assert_close(found[b, c], share[0] * streams[0, c] + share[1] * streams[1, c], relative=1e-9)


def test_the_two_streams_shares_sum_to_one_in_each_channel() -> None:
    module = kernels(filters=7)
    shares = module.shares(torch.randn(4, 14, 3, 3).relu())
    assert shares.shape == (4, 2, 7, 1, 1)
    assert_close(shares.sum(1), torch.ones(4, 7, 1, 1))
    assert shares.std() > 0.01  # they differ between images, streams and channels


@pytest.mark.parametrize(("filters", "middle"), [(64, 32), (512, 32), (513, 32), (1024, 64), (1537, 96)])
def test_width_of_the_bottleneck(filters: int, middle: int) -> None:
    with torch.device("meta"):
        module = SelectiveKernel(4, filters, 1)
    assert module.squeeze.out_channels == middle
    assert module.conv.out_channels == module.select.out_channels == 2 * filters
    assert module.select.bias is None and module.squeeze.bias is None and module.conv.bias is None


def test_selective_network_has_the_tricks_of_resnet_d() -> None:
    backbone = small(selective_kernel=True, img_size=96)
    stem = [m for m in backbone.model.conv1 if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size, c.stride[0]) for c in stem] == [
        (32, (3, 3), 2),
        (32, (3, 3), 1),
        (64, (3, 3), 1),
    ]
    for index, stage in enumerate(getattr(backbone.model, f"layer{i}") for i in (1, 2, 3, 4)):
        assert all(isinstance(block.conv2, SelectiveKernel) for block in stage)
        shortcut = stage[0].downsample
        assert shortcut[1].stride == (1, 1) and shortcut[1].kernel_size == (1, 1)
        pool = shortcut[0][1] if index == 0 else shortcut[0]
        assert isinstance(pool, nn.AvgPool2d) and (pool.kernel_size, pool.stride) == (2, 1 if index == 0 else 2)
    small_stem = small(selective_kernel=True, img_size=32)
    assert (small_stem.model.conv1.kernel_size, small_stem.model.conv1.stride) == ((3, 3), (1, 1))


def test_first_shortcut_averages_what_lies_inside() -> None:
    pool = small(selective_kernel=True).model.layer1[0].downsample[0]
    x = torch.randn(1, 2, 3, 4)
    expected = torch.empty_like(x)
    for i in range(3):
        for j in range(4):
            expected[..., i, j] = x[..., i : i + 2, j : j + 2].mean((2, 3))
    assert_close(pool(x), expected)


def test_forward_and_gradient_of_a_selective_network() -> None:
    backbone = small(selective_kernel=True, width=2).train()
    backbone(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet18", "has no plain bottlenecks; resnet50 has"),
        ("resnext50_32x4d", "has no plain bottlenecks; resnet50 has"),
        ("vit_pico_patch4_32", "--backbone.selective_kernel is for ResNets"),
    ],
)
def test_networks_without_selective_kernels(name: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Backbone(BackboneOptions(name, img_size=32, selective_kernel=True))
