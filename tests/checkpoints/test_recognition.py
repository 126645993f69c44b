"""Checkpoints as people have them: wrapped, behind a prefix, with several networks, averages, or parts missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_files import FOLDER, weights
from torch import Tensor

from ssl_bench.checkpoints.import_checkpoint import Imported, import_checkpoint
from ssl_bench.checkpoints.import_options import Import
from ssl_bench.checkpoints.recognition import prefixes, role
from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.models.saved_backbone import load_backbone

CHECKPOINTS = FOLDER / "checkpoints"
State = dict[str, Tensor]


def opened(file: str) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(CHECKPOINTS / file, weights_only=True)
    return checkpoint


def encoder() -> State:
    return weights(opened("dino_full.pth")["teacher"], "backbone.")


def imported(checkpoint: Any, folder: Path, format: str = "dino", **given: Any) -> tuple[State, Imported]:
    """The network that was imported, and what was reported."""
    folder.mkdir(exist_ok=True)
    torch.save(checkpoint, folder / "file.pth")
    made = import_checkpoint(Import(folder / "file.pth", format, folder / "run", **{"heads": 3, **given}))
    return load_backbone(folder / "run")[0].model.state_dict(), made


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


def fsdp(state: State) -> State:
    """Names as FSDP, compiled blocks and activation checkpointing leave them."""
    inner = {}
    for name, value in state.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            name = ".".join([*parts[:2], "_fsdp_wrapped_module", "_checkpoint_wrapped_module", *parts[2:]])
        inner[f"_fsdp_wrapped_module._orig_mod.{name}"] = value
    return inner


HELD: dict[str, Callable[[State], Any]] = {
    "flat": lambda state: state,
    "compiled": lambda state: {"model": under("_orig_mod.", state)},
    "compiled inside DDP": lambda state: {"state_dict": under("module._orig_mod.", state)},
    "FSDP": lambda state: {"model": fsdp(state)},
    "Lightning": lambda state: {
        "state_dict": under("model.backbone.", state) | under("head.", {"weight": torch.zeros(2)}),
        "optimizer_states": [{"state": {}}],
        "loops": {"fit_loop": {}},
        "epoch": 3,
    },
    "backbone.": lambda state: under("backbone.", state),
    "encoder.": lambda state: {"model": under("encoder.", state)},
    "teacher.": lambda state: under("teacher.", state),
    "student. alone": lambda state: under("student.network.", state),
    "state_dict of a model": lambda state: {"model": {"state_dict": state}},
    "nested three times": lambda state: {"state_dict": {"model": {"module": under("module.", state)}}},
    "teacher's entry": lambda state: {"teacher": under("module.backbone.", state)},
    "student beside it": lambda state: (
        under("student.", {k: v + 1 for k, v in state.items()}) | under("teacher.", state)
    ),
    "average alone": lambda state: {"model_ema": under("module.", state)},
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("format", ["mae", "timm"])
def test_a_network_is_found_wherever_it_is_held(held: str, format: str, tmp_path: Path) -> None:
    state = encoder()
    found, made = imported(HELD[held](state), tmp_path / "import", format)
    assert same(found, state) and not made.again
    account = json.loads((tmp_path / "import" / "run" / "import.json").read_text())
    assert len(account["loaded"]) + len(account["renamed"]) == len(state) and all(account["unused"].values())


def test_a_whole_checkpoint_may_be_wrapped(tmp_path: Path) -> None:
    checkpoint = opened("mae_pretrain.pth")
    method = {"decoder_heads": "4"}
    plain, _ = imported(checkpoint, tmp_path / "plain", "mae", heads=4, method=method)
    wrapped = {"state_dict": under("model._orig_mod.", checkpoint["model"])}
    found, made = imported(wrapped, tmp_path / "wrapped", "mae", heads=4, method=method)
    assert made.again and same(found, plain)


@pytest.mark.parametrize("entry", ["model_ema", "state_dict_ema"])
def test_weights_or_their_average(entry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = encoder()
    average = {name: value + 1 for name, value in state.items()}
    checkpoint = {"model": state, entry: under("module.", average)}
    for weights_, expected, left in ((None, state, "ema"), ("model", state, "ema"), ("ema", average, "model")):
        found, made = imported(checkpoint, tmp_path / str(weights_), weights=weights_)
        assert same(found, expected) and (entry in made.weights)
        unused = json.loads((tmp_path / str(weights_) / "run" / "import.json").read_text())["unused"]
        assert list(unused.values()) == [f"other weights than were asked for: --weights {left}"]
    argv = ["import", str(tmp_path / "None" / "file.pth"), "--format", "dino", "--heads", "3"]
    assert main([*argv, "-o", str(tmp_path / "cli"), "--weights", "ema"]) == 0
    assert f"weights: {entry}; model left" in capsys.readouterr().out.splitlines()


def test_student_or_teacher(tmp_path: Path) -> None:
    state = encoder()
    student = {name: value + 1 for name, value in state.items()}
    checkpoint = under("student.network.", student) | under("teacher.network.", state)
    for weights_, expected in ((None, state), ("teacher", state), ("student", student)):
        found, made = imported(checkpoint, tmp_path / str(weights_), "mae", weights=weights_)
        assert same(found, expected) and "left" in made.weights
    whole = opened("dino_full.pth")
    for weights_, expected in (
        (None, whole["teacher"]),
        ("student", whole["student"]),
    ):
        folder = tmp_path / f"whole {weights_}"
        found, made = imported(whole, folder, weights=weights_, encoder_only=True)
        assert same(found, weights({k.removeprefix("module."): v for k, v in expected.items()}, "backbone."))
        assert made.weights.startswith(weights_ or "teacher")


@pytest.mark.parametrize(
    ("checkpoint", "given", "message"),
    [
        (lambda: {"model": encoder()}, {"weights": "ema"}, "holds no moving average of its weights"),
        (lambda: encoder(), {"weights": "student"}, "holds one network alone: leave it out"),
        (lambda: under("backbone.", encoder()), {"weights": "teacher"}, "holds the network of model alone"),
        (
            lambda: under("encoder.", encoder()) | under("backbone.", encoder()),
            {},
            "several networks, backbone. and enc",
        ),
        (lambda: encoder() | under("module.", encoder()), {}, "twice, wrapped and not"),
        (lambda: {"model": {"_flat_param": torch.zeros(9)}}, {}, "save its full state dict"),
        (lambda: opened("dino_full.pth"), {"weights": "student"}, "both are imported"),
        (lambda: {"model": {"decoder.x": torch.zeros(2)}}, {}, "it holds decoder.x"),
    ],
)
def test_what_is_refused(checkpoint: Callable[[], Any], given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        imported(checkpoint(), tmp_path / "import", "dino", **given)
    assert not (tmp_path / "import" / "run").exists()


def test_prefixes_are_of_networks_alone() -> None:
    names = ["model.backbone.blocks.0.x", "decoder.blocks.0.x", "teacher_backbone.norm.x", "blocks.0.x"]
    assert prefixes(names) == ["model.", "teacher_backbone.", "model.backbone."]
    roles = {"model.backbone.": "model", "teacher_backbone.": "teacher", "student.": "student", "model_ema.": "ema"}
    assert {prefix: role(prefix) for prefix in roles} == roles


def test_ibots_layer_scale(tmp_path: Path) -> None:
    """`gamma_1` of iBOT's ViT is timm's `ls1.gamma`: whole and encoder alone give the network of the same weights."""
    checkpoint = opened("ibot_full.pth")
    generator = torch.Generator().manual_seed(0)
    scales = {f"blocks.{i}.gamma_{j}": torch.rand(36, generator=generator) for i in (0, 1) for j in (1, 2)}
    for owner in ("student", "teacher"):
        module = "module." if any(name.startswith("module.") for name in checkpoint[owner]) else ""
        checkpoint[owner] |= under(f"{module}backbone.", scales)
    found, made = imported(checkpoint, tmp_path / "whole", "ibot")
    assert made.again
    teacher = weights({k.removeprefix("module."): v for k, v in checkpoint["teacher"].items()}, "backbone.")
    alone, _ = imported({"state_dict": teacher}, tmp_path / "alone", "ibot")
    assert same(found, alone)
    for name, scale in scales.items():
        assert torch.equal(found[name.replace("gamma_", "ls") + ".gamma"], scale)


def test_heads_that_were_stripped_before_sharing(tmp_path: Path) -> None:
    checkpoint = opened("dino_full.pth")
    for owner in ("student", "teacher"):
        checkpoint[owner] = {name: value for name, value in checkpoint[owner].items() if "head" not in name}
    with pytest.raises(UserError, match=r"lacks head\.last_layer\.weight_v, so it cannot be continued: --encoder-only"):
        imported(checkpoint, tmp_path / "import")
    found, _ = imported(checkpoint, tmp_path / "import", encoder_only=True)
    assert same(found, encoder())


WHOLE: list[tuple[str, str, dict[str, Any]]] = [
    ("mae_pretrain.pth", "mae", {"heads": 4, "method": {"decoder_heads": "4"}}),
    ("dino_full.pth", "dino", {}),
    ("ibot_full.pth", "ibot", {}),
    ("simmim_vit.pth", "simmim", {"heads": None}),
    ("simmim_swin.pth", "simmim", {"heads": None}),
    ("cae_pretrain.pth", "cae", {"heads": 4, "method": {"decoder_heads": "4", "tokenizer": "words64:Words64"}}),
    ("moco_v3_vit.pth", "moco-v3", {"heads": 4}),
    ("dinov2_teacher_full.pth", "dinov2", {}),
    ("dinov2_backbone_swiglu_chunked.pth", "dinov2", {}),
]


@pytest.mark.parametrize(("file", "format", "given"), WHOLE, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("damage", ["missing", "flat", "empty"])
def test_incomplete_files_say_what_is_missing(
    file: str, format: str, given: dict[str, Any], damage: str, tmp_path: Path
) -> None:
    """Each of some tensors, in turn, is missing, of one dimension, or empty: a message, never a KeyError."""
    checkpoint = opened(file)
    owners = [value for value in checkpoint.values() if isinstance(value, dict)] or [checkpoint]
    names = [(owner, name) for owner in owners for name in owner if isinstance(owner[name], Tensor)]
    shapes = ("pos_embed", "patch_embed.proj.weight", "table", "last_layer.weight_v", "mlp.fc1.weight", "decoder_embed")
    telling = [pair for pair in names if any(part in pair[1] for part in shapes)]
    for owner, name in [*telling[:6], names[len(names) // 2]]:
        whole = owner[name]
        if damage == "missing":
            del owner[name]
        else:
            owner[name] = whole.flatten() if damage == "flat" else whole[..., :0]
        try:
            imported(checkpoint, tmp_path / "import", format, **given)
        except UserError as error:
            assert "\n" not in str(error)
        else:  # what is never used, or has one dimension anyway
            import shutil

            shutil.rmtree(tmp_path / "import" / "run")
        owner[name] = whole
