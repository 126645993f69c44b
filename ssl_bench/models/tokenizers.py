"""Tokenizers as methods use them: found by what a user names, and applied to the patches of a view.

Shapes: B images of H x W pixels, g x g tokens, N = g * g, V visual tokens, s pixels of a token's side.
"""

import importlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from ssl_bench.errors import UserError
from ssl_bench.models.dall_e import DallE
from ssl_bench.models.discrete_vae import DiscreteVAE
from ssl_bench.models.tokenizer import Tokenizer
from ssl_bench.models.weights_files import read_json, read_pickled, read_tensors, shapes_of, tensor_shapes

KINDS = "the folder of a finished dvae run, DALL-E's encoder (.pth, .safetensors) or a class package.module:Class"


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
        raise UserError(f"tokenizer {name}: no subclass of ssl_bench.models.tokenizer.Tokenizer")
    try:
        return cls()
    except TypeError as error:  # an abstract one, or one that wants arguments
        raise UserError(f"tokenizer {name}: {error}") from None


def _from_run(folder: Path) -> DiscreteVAE:
    """The product of `ssl-bench fit --method dvae`."""
    try:
        spec = read_json(folder / "tokenizer.json", folder)
        deepest = max(spec["layers"], spec["blocks"])
        file = folder / "tokenizer.safetensors"
        shapes = tensor_shapes(file, folder)
        if deepest > len(shapes) or shapes_of(lambda: DiscreteVAE(**spec), str(file)) != shapes:
            raise ValueError("tokenizer.json describes another one")
        tokenizer = DiscreteVAE(**spec)
        tokenizer.load_state_dict(read_tensors(file, folder))
    except FileNotFoundError as error:
        missing = Path(error.filename or "tokenizer.safetensors").name
        raise UserError(f"tokenizer {folder} has no {missing}: name {KINDS}") from None
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, OSError, SafetensorError) as error:
        raise UserError(f"tokenizer {folder} is damaged ({type(error).__name__})") from None
    return tokenizer


def _from_file(path: Path) -> DallE:
    """Weights under OpenAI's names. Their own file is a pickled network, which could run any code when opened."""
    try:
        weights: Any
        if path.suffix == ".safetensors":
            weights = read_tensors(path)
        else:
            with warnings.catch_warnings(action="ignore"):  # of pickles older and newer than torch's
                weights = read_pickled(path)
    except pickle.UnpicklingError:
        remedy = f"torch.save(torch.load({path.name!r}, weights_only=False).state_dict(), 'encoder.pth')"
        raise UserError(
            f"tokenizer {path} is a pickle, which can run any code when opened: save its weights, where you trust it, "
            f"with {remedy} (OpenAI's own needs pip install DALL-E) and name that file"
        ) from None
    except UserError:
        raise
    except Exception as error:  # whatever a damaged pickle makes torch raise
        raise UserError(f"tokenizer {path} cannot be read ({type(error).__name__}): name {KINDS}") from None
    try:
        if not isinstance(weights, Mapping):
            raise ValueError(f"a {type(weights).__name__} of no named weights")
        if other := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
            raise ValueError(f"{other[0]} is no tensor")
        return DallE.from_official(weights)
    except ValueError as error:
        raise UserError(f"tokenizer {path} is not DALL-E's encoder: {error}") from None
