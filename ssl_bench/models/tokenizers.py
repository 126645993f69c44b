"""Tokenizers: frozen networks that name each patch of an image with one word of a vocabulary, for a method to predict.

Shapes: B images of H x W pixels, g x g tokens, N = g * g, V visual tokens, s pixels of a token's side.
"""

import importlib
import json
import pickle
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_bench.errors import UserError
from ssl_bench.models.weights_file import read_weights

KINDS = "the folder of a finished dvae run, DALL-E's encoder (.pth, .safetensors) or a class package.module:Class"


class Tokenizer(nn.Module, ABC):
    """What turns images into visual tokens; a plug-in is a subclass that can be built without arguments.

    Attributes:
        vocabulary: V.
        stride: s.
    """

    vocabulary: int
    stride: int

    @abstractmethod
    def visual_tokens(self, images: Tensor) -> Tensor:
        """(B, 3, g * s, g * s) images in [0, 1] -> (B, g, g) visual tokens, int64."""

    def pictures(self, visual_tokens: Tensor) -> Tensor | None:
        """(B, g, g) visual tokens -> (B, 3, g * s, g * s) images, about [0, 1]; None if there is no way back."""
        return None


@final
class DiscreteVAE(Tokenizer):
    """A small discrete VAE: convolutions to logits over visual tokens, a codebook, and convolutions back to pixels.

    Args:
        vocabulary: V.
        dim: Width of a word's embedding.
        hidden_dim: Channels of the convolutions.
        layers: Convolutions of stride 2 on either side: s = 2 ** layers.
        blocks: Residual blocks on either side.
    """

    def __init__(self, vocabulary: int, dim: int, hidden_dim: int, layers: int, blocks: int) -> None:
        super().__init__()
        self.spec = {"vocabulary": vocabulary, "dim": dim, "hidden_dim": hidden_dim, "layers": layers, "blocks": blocks}
        hidden = hidden_dim
        self.vocabulary, self.stride = vocabulary, 2**layers
        down: list[nn.Module] = []
        up: list[nn.Module] = [nn.Conv2d(dim, hidden, 1), *(_Residual(hidden) for _ in range(blocks))]
        for layer in range(layers):
            down += [nn.Conv2d(hidden if layer else 3, hidden, 4, stride=2, padding=1), nn.ReLU()]
            up += [nn.ConvTranspose2d(hidden, hidden, 4, stride=2, padding=1), nn.ReLU()]
        down += [*(_Residual(hidden) for _ in range(blocks)), nn.Conv2d(hidden, vocabulary, 1)]
        self.encoder = nn.Sequential(*down)
        self.codebook = nn.Embedding(vocabulary, dim)
        self.decoder = nn.Sequential(*up, nn.Conv2d(hidden, 3, 1))

    def logits(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, V, H / s, W / s)."""
        return self.encoder(2 * images - 1)  # type: ignore[no-any-return]

    def decode(self, weights: Tensor) -> Tensor:
        """(B, V, h, w) weights of the visual tokens at each place -> (B, 3, h * s, w * s), about [0, 1]."""
        embedded = torch.einsum("bvhw,vd->bdhw", weights, self.codebook.weight.to(weights.dtype))
        return (self.decoder(embedded) + 1) / 2  # type: ignore[no-any-return]

    def visual_tokens(self, images: Tensor) -> Tensor:
        return self.logits(images).argmax(1)

    def pictures(self, visual_tokens: Tensor) -> Tensor:
        return self.decode(F.one_hot(visual_tokens, self.vocabulary).movedim(-1, 1).to(self.codebook.weight.dtype))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(width, width, k, padding=k // 2) for k in (3, 3, 1)]
        self.layers = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)  # type: ignore[no-any-return]


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
        encoder = cls(len(first), len(last), max(1, blocks))
        own = encoder.state_dict()
        theirs = {_torch_name(name): tensor for name, tensor in weights.items()}
        for name in own.keys() ^ theirs.keys():
            raise ValueError(f"{name} is {'missing' if name in own else 'no part of it'}")
        for name, tensor in theirs.items():
            if tensor.shape != own[name].shape:
                raise ValueError(f"{name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
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


@final
class PatchTokens(nn.Module):
    """A frozen tokenizer as a method uses it: the visual tokens of a view's patches.

    The tokenizer sees a bicubic copy of the view that has a token per patch. Its weights are no part of checkpoints.

    Args:
        tokenizer: Any.
        grid: g, patches along a view's side.
        mean: What was subtracted from each channel of the views.
        std: What they were divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tokenizer: Tokenizer, grid: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.grid, self.vocabulary = grid, tokenizer.vocabulary
        self.held = [tokenizer.requires_grad_(False).eval()]  # in a list: neither saved nor set to training mode
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    @torch.no_grad()
    def forward(self, views: Tensor) -> Tensor:
        """(B, 3, H, W) normalised -> (B, N) visual tokens."""
        tokenizer = self.held[0].to(views.device)
        pixels = views.float() * self.std.float() + self.mean.float()
        side = self.grid * tokenizer.stride
        if pixels.shape[-2:] != (side, side):
            pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
        kind = views.device.type
        half = kind == "cuda" and torch.is_autocast_enabled(
            kind
        )  # as officially; bfloat16 would change many visual tokens
        with torch.autocast(kind, torch.float16 if half else None, enabled=half):
            return tokenizer.visual_tokens(pixels.clamp(0, 1)).flatten(1)

    @torch.no_grad()
    def images(self, visual_tokens: Tensor, side: int) -> Tensor:
        """(B, N) visual tokens -> (B, 3, side, side), normalised as views are.

        Raises:
            UserError: The tokenizer has no decoder.
        """
        tokenizer = self.held[0].to(visual_tokens.device)
        pixels = tokenizer.pictures(visual_tokens.unflatten(1, (self.grid, self.grid)))
        if pixels is None:
            raise UserError(
                f"its visual tokens come from a {type(tokenizer).__name__}, which has no decoder to draw them"
            )
        if pixels.shape[-1] != side:
            pixels = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
        return (pixels.clamp(0, 1) - self.mean) / self.std


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that a user means.

    Raises:
        UserError: Nothing has that name, or what has it is no tokenizer.
    """
    path = Path(name)
    if path.is_dir():
        return _from_run(path)
    if path.is_file():
        return _from_file(path)
    module, colon, class_name = name.partition(":")
    if not colon:
        raise UserError(f"no tokenizer {name}: pixels, {KINDS}")
    try:
        cls = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"tokenizer {name}: {error}; is its folder on PYTHONPATH?") from None
    if not (isinstance(cls, type) and issubclass(cls, Tokenizer)):
        raise UserError(f"tokenizer {name}: no subclass of ssl_bench.models.tokenizers.Tokenizer")
    try:
        return cls()
    except TypeError as error:  # an abstract one, or one that wants arguments
        raise UserError(f"tokenizer {name}: {error}") from None


def _from_run(folder: Path) -> DiscreteVAE:
    """The product of `ssl-bench fit --method dvae`."""
    try:
        spec = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        tokenizer = DiscreteVAE(**spec)
        tokenizer.load_state_dict(read_weights(folder / "tokenizer.safetensors"))
    except FileNotFoundError as error:
        missing = Path(error.filename or "tokenizer.safetensors").name
        raise UserError(f"tokenizer {folder} has no {missing}: name {KINDS}") from None
    except (ValueError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(f"tokenizer {folder} is damaged ({type(error).__name__})") from None
    return tokenizer


def _from_file(path: Path) -> DallE:
    """Weights under OpenAI's names. Their own file is a pickled network, which could run any code when opened."""
    try:
        weights: Any
        if path.suffix == ".safetensors":
            weights = load_file(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # of pickles older and newer than torch's
                weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        remedy = f"torch.save(torch.load({path.name!r}, weights_only=False).state_dict(), 'encoder.pth')"
        raise UserError(
            f"tokenizer {path} is a pickle, which can run any code when opened: save its weights, where you trust it, "
            f"with {remedy} (OpenAI's own needs pip install DALL-E) and name that file"
        ) from None
    except Exception as error:  # whatever a damaged pickle makes torch raise
        raise UserError(f"tokenizer {path} cannot be read ({type(error).__name__}): name {KINDS}") from None
    try:
        if not isinstance(weights, Mapping):
            raise ValueError(f"a {type(weights).__name__} of no named weights")
        return DallE.from_official(weights)
    except ValueError as error:
        raise UserError(f"tokenizer {path} is not DALL-E's encoder: {error}") from None
