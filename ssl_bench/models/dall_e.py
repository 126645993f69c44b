"""The encoder of DALL-E's discrete VAE, the tokenizer that BEiT and CAE were published with.

Shapes: B images of H x W pixels, g x g visual tokens, V of them in the vocabulary, s pixels of a token's side.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from ssl_bench.models.tokenizer import Tokenizer
from ssl_bench.models.weights_files import shapes_of


@final
class DallE(Tokenizer):
    """The encoder of DALL-E's discrete VAE (https://github.com/openai/DALL-E), whose tokens are 8 pixels wide.

    A 7x7 convolution, four groups of residual blocks of one, two, four and eight times its width, the first three
    ending in a max-pool, and logits. Published: 256 wide, two blocks a group, 8192 visual tokens.

    Args:
        hidden: Width of the first group.
        vocabulary: V.
        blocks: Of a group.
    """

    stride = 8

    def __init__(self, hidden: int = 256, vocabulary: int = 8192, blocks: int = 2) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.blocks = nn.Sequential(OrderedDict(input=nn.Conv2d(3, hidden, 7, padding=3)))
        before = hidden
        for group in range(4):
            parts: dict[str, nn.Module] = {}
            for block in range(blocks):
                width = hidden * 2**group
                parts[f"block_{block + 1}"] = _DallEBlock(before, width, gain=1 / (4 * blocks) ** 2)
                before = width
            if group < 3:
                parts["pool"] = nn.MaxPool2d(2)
            self.blocks.add_module(f"group_{group + 1}", nn.Sequential(OrderedDict(parts)))
        output = OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(before, vocabulary, 1))
        self.blocks.add_module("output", nn.Sequential(output))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, V, H / 8, W / 8)."""
        *body, output = self.blocks
        x = 0.8 * images + 0.1  # the ends of [0, 1] have no logits
        for part in body:
            x = part(x)
        with torch.autocast(x.device.type, enabled=False):  # in half precision visual tokens would tie
            return output(x.float())  # type: ignore[no-any-return]

    def visual_tokens(self, images: Tensor) -> Tensor:
        return self.logits(images).argmax(1)

    @classmethod
    def from_official(cls, weights: Mapping[str, Tensor]) -> "DallE":
        """The encoder that has these weights, under OpenAI's names (`blocks.group_1.block_1.res_path.conv_1.w`).

        Raises:
            ValueError: They are not such an encoder's.
        """
        try:
            first, last = weights["blocks.input.w"], weights["blocks.output.conv.w"]
        except KeyError as missing:
            raise ValueError(f"no {missing.args[0]} in it") from None
        blocks = sum(name.startswith("blocks.group_1.") and name.endswith("conv_1.w") for name in weights)
        if first.ndim == 0 or last.ndim == 0:
            raise ValueError("its first and last weights are no convolutions'")
        size = len(first), len(last), max(1, blocks)
        own = shapes_of(lambda: cls(*size), "DALL-E's encoder")  # before anything of that size is made
        theirs = {_torch_name(name): tensor for name, tensor in weights.items()}
        for name in own.keys() ^ theirs.keys():
            raise ValueError(f"{name} is {'missing' if name in own else 'no part of it'}")
        for name, tensor in theirs.items():
            if tensor.shape != own[name]:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, not {own[name]}")
        encoder = cls(*size)
        encoder.load_state_dict(theirs)
        return encoder


class _DallEBlock(nn.Module):
    def __init__(self, before: int, width: int, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.id_path = nn.Conv2d(before, width, 1) if before != width else nn.Identity()
        narrow = width // 4
        channels = ((before, narrow, 3), (narrow, narrow, 3), (narrow, narrow, 3), (narrow, width, 1))
        parts: dict[str, nn.Module] = {}
        for number, (into, out, kernel) in enumerate(channels, 1):
            parts[f"relu_{number}"] = nn.ReLU()
            parts[f"conv_{number}"] = nn.Conv2d(into, out, kernel, padding=kernel // 2)
        self.res_path = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)  # type: ignore[no-any-return]


def _torch_name(official: str) -> str:
    stem, _, kind = official.rpartition(".")
    return f"{stem}.{ {'w': 'weight', 'b': 'bias'}.get(kind, kind) }"
