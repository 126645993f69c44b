"""How the names in a checkpoint become ours: data that each layout's file fills in. Torch-free.

A file is first laid flat: what stands under `model` or `state_dict` keeps its own name, what stands under `student`,
`teacher` or a loss has that in front; what DDP, torch.compile and FSDP put into names is dropped.
"""

import importlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ssl_bench.checkpoints.official.shapes import Shapes
from ssl_bench.errors import UserError, near

FORMATS = ("mae", "dino", "ibot", "simmim", "cae", "moco-v3", "dinov2", "timm")
ENCODER = "backbone.model."  # where a method's state has its network's, under timm's names
WRAPPERS = ("model", "state_dict", "model_state_dict", "module")  # entries that only hold the weights
AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")  # entries that hold their moving average
# What DDP, torch.compile, FSDP and activation checkpointing put in front of the names of what they wrap.
WRAPPED = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation all of these repositories train with

# Entries beside the weights, and why they are left.
ENTRIES = {
    "optimizer": "optimiser state: a continued run starts its own",
    "optimizer_state_dict": "optimiser state: a continued run starts its own",
    "lr_scheduler": "schedule: a continued run has its own",
    "optimizer_states": "optimiser state: a continued run starts its own",
    "opt": "optimiser state: a continued run starts its own",
    "lr_schedulers": "schedule: a continued run has its own",
    "scheduler": "schedule: a continued run has its own",
    "loops": "progress of a trainer",
    "callbacks": "progress of a trainer",
    "hyper_parameters": "options: none of them is read",
    "scaler": "state of mixed precision",
    "grad_scaler": "state of mixed precision",
    "fp16_scaler": "state of mixed precision",
    "amp": "state of mixed precision",
    "args": "options: read where they say what shapes do not",
    "config": "options: read where they say what shapes do not",
}
CLASSIFIER = "a classifier: not pretrained"
BUFFER = "an index: made again from the window's size"
POOLED = "fine-tuned with a norm after pooling, which no feature here has: import the pretrained file"


@dataclass(frozen=True)
class Rule:
    """What becomes of the tensors whose whole name matches; the first rule that matches counts.

    Args:
        pattern: Regular expression.
        to: Name here, with the pattern's groups; none for a tensor without use.
        reason: Why it has none. Of a name that a file lacks: why, and `to` is the one it starts as.
        refused: Whether such a file cannot be imported at all.
    """

    pattern: str
    to: str = ""
    reason: str = ""
    refused: bool = False


@dataclass(frozen=True)
class Given:
    """What shapes cannot say.

    Args:
        args: The options stored in the file, flat; empty if it has none.
        heads: Attention heads of the encoder, from the user.
        img_size: Pixels of the input, from the user.
        method: Options of the method, from the user.
    """

    args: Mapping[str, Any] = field(default_factory=dict)
    heads: int | None = None
    img_size: int | None = None
    method: Mapping[str, Any] = field(default_factory=dict)

    def stored(self, names: Mapping[str, str]) -> dict[str, Any]:
        """Our options out of the file's, by a table of theirs -> ours."""
        return {ours: self.args[theirs] for theirs, ours in names.items() if theirs in self.args}

    def count(self, *names: str) -> int | None:
        """A whole number of at least 1 among the file's options."""
        found = (self.args.get(name) for name in names)
        return next((value for value in found if type(value) is int and value > 0), None)


@dataclass(frozen=True)
class Kind:
    """One kind of file of a layout.

    Args:
        title: What it is.
        sign: Some name of such a file matches this,
        unlike: and none matches that.
        rules: Of its names.
        evaluated: In front of timm's names in the network that is evaluated.
        method: Whose whole state it holds; None for an encoder.
        options: That method's options, from the shapes of its state and what is given.
        absent: Names of that state which such files lack, and why that is well.
        tied: Names, and others, of tensors that some files hold twice: the first is unused where the two are equal.
        prepare: Makes tensors fit where a new name alone does not.
        interpolation: How positions are resampled where it is not as the layout says.
    """

    title: str
    sign: str
    rules: tuple[Rule, ...]
    unlike: str = "(?!)"
    evaluated: str = ENCODER
    method: str | None = None
    options: Callable[[Shapes, Given], dict[str, Any]] = lambda shapes, given: {}
    absent: tuple[Rule, ...] = ()
    tied: tuple[str, str] = ("(?!)", "")
    prepare: Callable[[dict[str, Any]], dict[str, Any]] = lambda tensors: tensors
    interpolation: Callable[[Shapes], dict[str, Any]] | None = None

    def fits(self, names: Collection[str]) -> bool:
        """Whether these could be the names of such a file."""
        has = (any(re.fullmatch(pattern, name) for name in names) for pattern in (self.sign, self.unlike))
        return next(has) and not next(has)


@dataclass(frozen=True)
class Layout:
    """A repository's checkpoints.

    Args:
        title: The method's name in its paper.
        method: Its name in a table.
        source: Where its files come from.
        paper: Link.
        kinds: Of files, the first that fits is it.
        heads: Width -> attention heads, of the published networks.
        interpolation: How the code resamples a ViT's positions at other sizes, as options of a backbone; from shapes by
            timm's names. None: as DINO.
    """

    title: str
    method: str
    source: str
    paper: str
    kinds: tuple[Kind, ...]
    heads: Mapping[int, int] = field(default_factory=lambda: {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16})
    interpolation: Callable[[Shapes], dict[str, Any]] = lambda shapes: {}


def layout(format: str) -> Layout:
    """The layout of this name.

    Raises:
        UserError: There is none.
    """
    if format not in FORMATS:
        raise UserError(f"--format: no layout {format!r}{near(format, FORMATS)} ({', '.join(FORMATS)})")
    found: Layout = importlib.import_module(f"ssl_bench.checkpoints.official.{format.replace('-', '_')}").LAYOUT
    return found


def matching(rules: tuple[Rule, ...], name: str) -> Rule | None:
    """The rule for a name."""
    return next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)


def vit_rules(before: str = "", to: str = ENCODER) -> tuple[Rule, ...]:
    """A ViT's or BEiT's names, which are timm's."""
    own = r"cls_token|pos_embed|patch_embed\.proj\..+|rel_pos_bias\.relative_position_bias_table|blocks\..+|norm\..+"
    return (
        Rule(rf"{before}.*relative_position_index", reason=BUFFER),
        Rule(rf"{before}fc_norm\..+", reason=POOLED, refused=True),
        Rule(rf"{before}head\.(?:weight|bias)", reason=CLASSIFIER),
        Rule(rf"{before}({own})", rf"{to}\1"),
    )


def resnet_rules(before: str = "", to: str = ENCODER) -> tuple[Rule, ...]:
    """A ResNet's names: torchvision's, and timm's as well."""
    return (
        Rule(rf"{before}fc\.(?:weight|bias)", reason=CLASSIFIER),
        Rule(rf"{before}((?:conv1|bn1|layer\d)\..+)", rf"{to}\1"),
    )


def swin_rules(before: str = "", to: str = ENCODER) -> tuple[Rule, ...]:
    """A Swin's names; the official code merges patches at the end of a stage, timm at the beginning of the next."""
    merging = (Rule(rf"{before}layers\.{i}\.downsample\.(.+)", rf"{to}layers.{i + 1}.downsample.\1") for i in range(3))
    return (
        Rule(rf"{before}.*(?:relative_position_index|attn_mask)", reason=BUFFER),
        Rule(rf"{before}head\.(?:weight|bias)", reason=CLASSIFIER),
        *merging,
        Rule(rf"{before}(absolute_pos_embed|patch_embed\..+|layers\.\d+\.blocks\..+|norm\..+)", rf"{to}\1"),
    )


def blocks(shapes: Mapping[str, tuple[int, ...]], before: str) -> int:
    """How many numbered parts there are under a name."""
    numbers = (re.match(rf"{re.escape(before)}\.(\d+)\.", name) for name in shapes)
    return len({found[1] for found in numbers if found})


def plain(value: Any, before: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Options as pairs of a dotted name and a number, text or list of those; of a mapping, or an object of options."""
    items = value if isinstance(value, Mapping) else vars(value) if hasattr(value, "__dict__") else {}
    for name, inner in items.items():
        if isinstance(inner, Mapping):
            if depth < 8:
                yield from plain(inner, f"{before}{name}.", depth + 1)
        elif all(isinstance(part, bool | int | float | str) for part in (inner if _is_list(inner) else (inner,))):
            yield f"{before}{name}", inner


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)
