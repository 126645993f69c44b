"""timm's names and arguments for our options of a network."""

import math
from dataclasses import asdict
from typing import Any

import timm

from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError, near
from ssl_bench.models.architectures import TINY, timm_names

# timm's arguments that what follows relies on: three channels, no weights, no head, a final norm on the tokens.
FIXED = {"in_chans", "pretrained", "checkpoint_path", "features_only", "num_classes"}
FIXED |= {"fc_norm", "use_fc_norm", "use_post_transformer_norm", "final_norm"}
FIXED |= {"pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
# timm's files of networks whose parts are known here; of all others the pooled features are.
RESNETS = ("resnet", "resnest", "res2net", "sknet")
SWINS = ("swin_transformer", "swin_transformer_v2")
VITS = ("vision_transformer", "deit", "beit", "eva")
# Sizes above these are a slip of the keyboard, or a description that was made to fill the memory.
MOST_PIXELS = 8192  # of an image's side
MOST_BLOCKS = 1024  # of a network, in whatever stages
MOST = 1 << 16  # of anything else that is counted
DEEPEST = 8  # arguments inside one another


def timm_arguments(options: BackboneOptions) -> tuple[str, dict[str, Any]]:
    """timm's name and arguments for our options; options that do not fit the family are refused."""
    name, args = options.name, {}
    if name in TINY:
        name, args = TINY[name][0], dict(TINY[name][1])
    if options.drop_path:
        args["drop_path_rate"] = options.drop_path
    if not timm.is_model(name.partition(".")[0]) or ":" in name:
        known = [*TINY, *(name for names in timm_names().values() for name in names)]
        raise UserError(f"no backbone {options.name!r}{near(options.name, known)} (ssl-bench list backbones)")
    if "." in name:
        name, _, tag = name.partition(".")
        wanted = f"--backbone.pretrained true starts from them, --backbone {name} from random ones"
        raise UserError(f"backbone {options.name}: {tag!r} names weights: {wanted}")
    positions = ("absolute_positions", "interpolate_offset", "interpolate_antialias")
    own = ("name", "drop_path", "timm_args", "pretrained", "weights", "channels", *positions)
    if options.channels not in (None, 3):
        args["in_chans"] = options.channels
    given = {k: v for k, v in asdict(options).items() if v is not None and k not in own}
    for option in ("img_size", "patch_size", "width", "depth", "num_heads"):
        if given.get(option, 1) < 1:
            raise UserError(f"--backbone.{option} {given[option]} must be at least 1")
        _check_size(option, given.get(option))
    for option, value in (options.timm_args or {}).items():
        _check_size(f"timm_args.{option}", value)
    family = family_of(name)
    fixed = FIXED | {"global_pool"} if family in ("beit", "eva", "swin") else FIXED
    if taken := fixed & set(options.timm_args or {}):
        raise UserError(f"--backbone.timm_args: {min(taken)} must stay as it is here: leave it out")
    if options.absolute_positions and family != "swin":
        raise UserError(f"--backbone.absolute_positions is for Swins: {options.name} is not one")
    if family == "resnet":
        for option in ("patch_size", "depth", "num_heads"):
            if option in given:
                raise UserError(f"--backbone.{option} is for ViTs: {options.name} is a ResNet")
        if options.width is not None:
            channels = args.get("channels", (64, 128, 256, 512))
            args["channels"] = tuple(options.width * c for c in channels)
        return name, args | (options.timm_args or {})
    for option in ("small_stem", "selective_kernel"):
        if option in given:
            raise UserError(f"--backbone.{option} is for ResNets: {options.name} is not one")
    if family == "other":
        for option in ("patch_size", "width", "depth", "num_heads"):
            if option in given:
                remedy = "what its constructor takes goes into --backbone.timm_args"
                raise UserError(f"--backbone.{option} is for ViTs: {options.name} is not one; {remedy}")
    if family == "swin":
        for option, example in (("depth", "{depths: [2, 2]}"), ("num_heads", "{num_heads: [3, 6]}")):
            if option in given:
                raise UserError(f"--backbone.{option}: a Swin has one per stage: --backbone.timm_args '{example}'")
        args.setdefault("drop_path_rate", 0.0)  # timm's Swins have 0.1
    theirs = {"patch_size": "patch_size", "width": "embed_dim", "depth": "depth", "num_heads": "num_heads"}
    args |= {name: given[ours] for ours, name in theirs.items() if ours in given}
    if family == "beit":
        args["global_pool"] = "token"  # the norm then stays on the tokens, as in pretraining
    elif family in ("vision_transformer", "deit"):
        args["fc_norm"] = False  # some normalise what they have pooled instead, and their tokens not at all
    elif family == "eva":
        args |= {"use_fc_norm": False, "use_post_transformer_norm": True, "dynamic_img_size": True}  # likewise
    if options.img_size is not None:
        args["img_size"] = options.img_size
    args |= options.timm_args or {}
    if (size := args.get("img_size")) and (patch := args.get("patch_size") or patch_size_in(name)) and size % patch:
        fitting = math.ceil(size / patch) * patch
        raise UserError(f"--backbone.img_size {size} is no multiple of the patch size {patch}: try {fitting}")
    width, heads = args.get("embed_dim"), args.get("num_heads")
    if isinstance(width, int) and isinstance(heads, int) and width % max(1, heads):
        raise UserError(f"--backbone.width {width} is no multiple of --backbone.num_heads {heads}")
    return name, args


def _check_size(option: str, value: Any, depth: int = 0) -> None:
    """Refuse what no network is made of, before timm tries."""
    name = option.rpartition(".")[2]
    if isinstance(value, list | tuple | dict):
        inner = list(value.values()) if isinstance(value, dict) else value
        if depth == DEEPEST or len(inner) > MOST_BLOCKS:
            raise UserError(f"--backbone.{option} holds more than any network has")
        for part in inner:
            _check_size(option, part, depth + 1)
        value = sum(part for part in inner if isinstance(part, int)) if name in ("depths", "layers") else 0
    most = {"img_size": MOST_PIXELS, "depth": MOST_BLOCKS, "depths": MOST_BLOCKS, "layers": MOST_BLOCKS}.get(name, MOST)
    if isinstance(value, int | float) and not abs(value) <= most:
        raise UserError(f"--backbone.{option} {value} is too large: at most {most}")


def blocks_claimed(options: BackboneOptions) -> int:
    """How many blocks the options ask for; 0 where they leave it to the name."""
    found = [options.depth or 0]
    for name in ("depth", "depths", "layers"):
        value = (options.timm_args or {}).get(name, 0)
        found.append(sum(value) if isinstance(value, list | tuple) else value)
    return max(found)


def family_of(architecture: str) -> str:
    """What a network is built like: vision_transformer, deit, beit, eva, swin, resnet, or other."""
    file = str(timm.models.model_entrypoint(architecture).__module__).rpartition(".")[2]
    if file in RESNETS or file in SWINS:
        return "resnet" if file in RESNETS else "swin"
    return file if file in VITS else "other"


def patch_size_in(name: str) -> int | None:
    """16 in vit_tiny_patch16_224."""
    digits = name.partition("patch")[2].partition("_")[0]
    return int(digits) if digits.isdigit() else None
