"""What SimCLRv2 changes in a ResNet: channels multiplied from the stem on, and convolutions that select their kernel.

Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020, after Li et al., "Selective
Kernel Networks", CVPR 2019. Papers: https://arxiv.org/abs/2006.10029, https://arxiv.org/abs/1903.06586. Reference code:
https://github.com/google-research/simclr (tf2/resnet.py).

Shapes: B images, C channels in and F out, h x w positions, 2 streams.
"""

from typing import Any, final

import torch
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from ssl_bench.errors import UserError

RATIO = 0.0625  # of the bottleneck to a convolution's filters; the code's `sk_ratio`
LEAST = 32  # its smallest width


@final
class SelectiveKernel(nn.Module):
    """A 3x3 convolution of two streams, mixed per image and channel by what is in the image.

    With its own batch norm and ReLU inside. Unlike in the paper it is named for, both streams are 3x3 (SimCLRv2).

    Args:
        channels: C.
        filters: F.
        stride: Of the convolution.
    """

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        middle = max(int(filters * RATIO), LEAST)
        self.conv = nn.Conv2d(channels, 2 * filters, 3, stride, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(2 * filters)
        self.squeeze = nn.Conv2d(filters, middle, 1, bias=False)
        self.squeeze_bn = nn.BatchNorm2d(middle)
        self.select = nn.Conv2d(middle, 2 * filters, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, h, w)."""
        x = torch.relu(self.bn(self.conv(x)))  # (B, 2F, h, w)
        share = self.shares(x)  # (B, 2, F, 1, 1)
        first, second = x.chunk(2, dim=1)  # (B, F, h, w) each
        return first * share[:, 0] + second * share[:, 1]

    def shares(self, streams: Tensor) -> Tensor:
        """(B, 2F, h, w) -> (B, 2, F, 1, 1), of each stream in each channel: the two sum to 1."""
        pooled = streams.mean((2, 3), keepdim=True)  # (B, 2F, 1, 1)
        first, second = pooled.chunk(2, dim=1)
        mixing = self.select(torch.relu(self.squeeze_bn(self.squeeze(first + second))))  # (B, 2F, 1, 1)
        return torch.stack(mixing.chunk(2, dim=1), dim=1).softmax(dim=1)


def stem_arguments(model: Any, width: int, selective: bool) -> dict[str, Any]:
    """timm's arguments for a stem ``width`` times as wide as this network's, given it on the meta device.

    timm widens deep stems alone; a plain one becomes deep here, and `plain_stem` puts its one convolution back.
    """
    if not selective and width == 1:
        return {}
    deep = isinstance(model.conv1, nn.Sequential)
    channels = width * (model.bn1.num_features if deep else 64)
    arguments: dict[str, Any] = {"stem_width": channels // 2}
    if not deep:
        arguments["stem_type"] = "deep"
    return arguments | ({"avg_down": True} if selective else {})


def plain_stem(model: Any) -> None:
    """One 7x7 convolution in place of a deep stem, of its width."""
    model.conv1 = nn.Conv2d(model.conv1[0].in_channels, model.bn1.num_features, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")


def select_kernels(model: Any, name: str) -> None:
    """Selective kernels in place of each bottleneck's 3x3 convolution, averages in place of each shortcut's stride."""
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
    if not all(isinstance(block, Bottleneck) and block.conv2.groups == 1 for block in blocks):
        raise UserError(f"--backbone.selective_kernel: {name} has no plain bottlenecks; resnet50 has")
    for block in blocks:
        plain = block.conv2
        kernels = SelectiveKernel(plain.in_channels, plain.out_channels, plain.stride[0])
        for module in kernels.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        block.conv2, block.bn2, block.act2 = kernels, nn.Identity(), nn.Identity()
        if block.downsample is not None and isinstance(block.downsample[0], nn.Identity):
            # The official code averages where there is no stride, too: 2x2, over what lies inside the image.
            block.downsample[0] = nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, stride=1))
