"""Received files: what blocks, leads elsewhere or claims too much is refused within a second and without its memory."""

import json
import os
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from processes import OWN_PEAK
from safetensors.torch import save_file

from ssl_bench.checkpoints.checkpoint_file import read_checkpoint
from ssl_bench.config.options import BackboneOptions
from ssl_bench.errors import UserError
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import Classifier, load_classifier, save_classifier
from ssl_bench.models.discrete_vae import DiscreteVAE
from ssl_bench.models.saved_backbone import load_backbone, write_backbone
from ssl_bench.models.tokenizers import load_tokenizer
from ssl_bench.models.weights_files import entries, read_json, read_pickled, read_tensors, tensor_shapes

MIB = 1 << 20


@contextmanager
def at_once() -> Iterator[None]:
    """Fails where it takes more than about a second of the processor, or 500 MiB more than the process had."""
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024
    assert time.process_time() - start < 1.5


def run_of(folder: Path, options: BackboneOptions | None = None) -> Path:
    folder.mkdir()
    write_backbone(folder, Backbone(options or BackboneOptions("vit_pico_patch4_32")), (0.5,) * 3, (0.25,) * 3)
    return folder


HUGE: list[tuple[str, dict[str, Any]]] = [
    ("vit_pico_patch4_32", {"depth": 10**9}),
    ("vit_pico_patch4_32", {"depth": 1000}),
    ("vit_pico_patch4_32", {"img_size": 10**6}),
    ("vit_pico_patch4_32", {"img_size": 8192}),
    ("vit_pico_patch4_32", {"width": 10**9, "num_heads": 1}),
    ("vit_pico_patch4_32", {"width": 65520}),
    ("vit_pico_patch4_32", {"width": 1e300}),
    ("vit_pico_patch4_32", {"width": "many"}),
    ("vit_pico_patch4_32", {"patch_size": 10**12}),
    ("vit_pico_patch4_32", {"timm_args": {"depth": 10**9}}),
    ("vit_pico_patch4_32", {"timm_args": {"mlp_ratio": 1e300}}),
    ("vit_pico_patch4_32", {"timm_args": {"reg_tokens": 10**9}}),
    ("vit_pico_patch4_32", {"timm_args": {"init_values": float("nan")}}),
    ("vit_pico_patch4_32", {"timm_args": {"img_size": [10**6, 10**6]}}),
    ("vit_pico_patch4_32", {"timm_args": {"pretrained_cfg": {"url": "http://localhost"}}}),
    ("beit_pico_patch4_32", {"img_size": 4096}),
    ("swin_pico_patch2_32", {"img_size": 8192}),
    ("swin_pico_patch2_32", {"timm_args": {"depths": [10**9, 2]}}),
    ("swin_pico_patch2_32", {"timm_args": {"window_size": 60000}}),
    ("resnet_nano", {"timm_args": {"layers": [10**9, 1, 1, 1]}}),
    ("resnet_nano", {"timm_args": {"channels": [10**9, 1, 1, 1]}}),
    ("resnet_nano", {"width": 10**6}),
    ("resnet_nano", {"timm_args": {"layers": [1] * 10**5}}),
]


@pytest.mark.parametrize(("name", "claim"), HUGE, ids=lambda v: str(v)[:40])
def test_huge_networks_are_refused(name: str, claim: dict[str, Any], tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", BackboneOptions(name, img_size=32))
    described = json.loads((run / "backbone.json").read_text())
    described["options"] |= claim
    (run / "backbone.json").write_text(json.dumps(described))
    with at_once(), pytest.raises(UserError):
        load_backbone(run)


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    "content", ["", "{", "[]", nested(100_000), '{"options": 1}', '{"options": {"name": 5}}', "null"]
)
def test_descriptions_that_are_none(content: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (run / "backbone.json").write_text(content)
    with at_once(), pytest.raises(UserError):
        load_backbone(run)


@pytest.mark.parametrize("file", ["backbone.json", "backbone.safetensors"])
def test_pipes_devices_and_links(file: str, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    whole = (run / file).read_bytes()
    outside = tmp_path / f"elsewhere-{file}"
    outside.write_bytes(whole)
    for make, message in (
        (lambda path: os.mkfifo(path), "is no ordinary file"),
        (lambda path: path.symlink_to("/dev/zero"), "is no ordinary file"),
        (lambda path: path.mkdir(), "is no ordinary file"),
        (lambda path: path.symlink_to(outside), "is a link to .*, out of"),
        (lambda path: path.symlink_to(path), "damaged"),
        (lambda path: path.symlink_to(tmp_path / "none"), "has no backbone"),
    ):
        (run / file).unlink()
        make(run / file)
        with at_once(), pytest.raises(UserError, match=message):
            load_backbone(run)
        (run / file).rmdir() if (run / file).is_dir() and not (run / file).is_symlink() else (run / file).unlink()
        (run / file).write_bytes(whole)
    (run / file).rename(run / "moved")
    (run / file).symlink_to("moved")  # inside its run a link is a file like any other
    load_backbone(run)


def test_headers_of_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    claims = {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
    header = json.dumps(claims).encode()
    for content in (
        struct.pack("<Q", len(header)) + header + bytes(64),
        struct.pack("<Q", 1 << 62),
        struct.pack("<Q", 100 << 20),
        b"",
    ):
        file.write_bytes(content)
        for read in (tensor_shapes, read_tensors):
            with at_once(), pytest.raises(Exception, match=r".") as refusal:
                read(file)
            assert not isinstance(refusal.value, MemoryError)
    with open(file, "wb") as opened:  # a header as large as the file, of nothing
        opened.write(struct.pack("<Q", 1 << 30))
        opened.truncate((1 << 30) + 8)
    with at_once(), pytest.raises(UserError, match="its header claims 1,073,741,824 bytes"):
        tensor_shapes(file)


def test_a_classifier_that_claims_more(tmp_path: Path) -> None:
    save_classifier(tmp_path, Classifier(8, 3, 1), ("a", "b", "c"))
    assert load_classifier(tmp_path) is not None
    whole = json.loads((tmp_path / "classifier.json").read_text())
    for claim in (
        {"dim": 10**9},
        {"classes": 10**12},
        {"layers": 10**9},
        {"layers": "1"},
        {"layers": -5},
        {"dim": None},
        {"names": 5},
    ):
        (tmp_path / "classifier.json").write_text(json.dumps(whole | claim))
        with at_once(), pytest.raises(UserError, match="the classifier is damaged"):
            load_classifier(tmp_path)
    (tmp_path / "classifier.json").unlink()
    os.mkfifo(tmp_path / "classifier.json")
    with at_once(), pytest.raises(UserError, match="is no ordinary file"):
        load_classifier(tmp_path)


def test_a_tokenizer_that_claims_more(tmp_path: Path) -> None:
    tokenizer = DiscreteVAE(16, 8, 8, 1, 1)
    save_file(tokenizer.state_dict(), tmp_path / "tokenizer.safetensors")
    for claim in (
        {"vocabulary": 10**12},
        {"dim": 10**9},
        {"hidden_dim": 10**9},
        {"layers": 10**9},
        {"blocks": 10**9},
        {"layers": 10},
        {"other": 1},
        {"blocks": None},
    ):
        (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.spec | claim))
        with at_once(), pytest.raises(UserError, match="is damaged"):
            load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer.spec))
    assert load_tokenizer(str(tmp_path)).vocabulary == 16


def test_an_encoder_of_dall_e_that_claims_more(tmp_path: Path) -> None:
    weights = {"blocks.input.w": torch.zeros(10**6, 3, 1, 1), "blocks.output.conv.w": torch.zeros(10**6, 1)}
    torch.save(weights, tmp_path / "encoder.pth")
    with at_once(), pytest.raises(UserError, match="is not DALL-E's encoder"):
        load_tokenizer(str(tmp_path / "encoder.pth"))
    torch.save({"blocks.input.w": 5, "blocks.output.conv.w": 6}, tmp_path / "encoder.pth")
    with pytest.raises(UserError, match="is no tensor"):
        load_tokenizer(str(tmp_path / "encoder.pth"))


def bomb(path: Path) -> None:
    """64 MiB of zeros in as many KiB."""
    torch.save({"model": {"a": torch.zeros(4)}}, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith("/0"):
                with new.open(member.filename, "w", force_zip64=True) as file:
                    for _ in range(64):
                        file.write(bytes(MIB))
            else:
                new.writestr(member.filename, data)


def pickled_bomb(path: Path) -> None:
    """As many empty dictionaries as fit in a pickle: a byte each in the file, 64 in memory."""
    torch.save({"a": torch.zeros(4)}, path.with_suffix(".whole"))
    with zipfile.ZipFile(path.with_suffix(".whole")) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            data = b"\x80\x02](" + b"}" * (20 * MIB) + b"e." if member.filename.endswith(".pkl") else old.read(member)
            new.writestr(member.filename, data)


def laughs(path: Path) -> None:
    """Dictionaries that hold one another twice, 60 deep."""
    inner: dict[str, Any] = {"t": torch.zeros(1)}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    torch.save(inner, path)


def endless(path: Path) -> None:
    whole: dict[str, Any] = {}
    whole["whole"] = whole
    torch.save(whole, path)


BOMBS: dict[str, tuple[Callable[[Path], None], str]] = {
    "compressed": (bomb, "torch.save compresses nothing"),
    "objects": (pickled_bomb, "beside its tensors"),
    "laughs": (laughs, "without end"),
    "endless": (endless, "without end"),
    "one value everywhere": (
        lambda path: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path),
        "claims 4,000,000,000,000 bytes",
    ),
    "again and again": (
        lambda path: torch.save(dict.fromkeys(map(str, range(1000)), torch.zeros(1000)), path),
        "claims 4,000 bytes of a file",
    ),
    "no memory": (lambda path: torch.save({"a": torch.zeros(9, device="meta")}, path), "save plain ones"),
    "sparse": (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "save plain ones"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_checkpoints_that_claim_more(name: str, tmp_path: Path) -> None:
    make, message = BOMBS[name]
    file = tmp_path / "file.pth"
    make(file)
    with at_once(), pytest.raises(UserError, match=message):
        read_checkpoint(file)


def test_a_pipe_as_a_checkpoint(tmp_path: Path) -> None:
    for name in ("file.pth", "file.safetensors"):
        os.mkfifo(tmp_path / name)
        with at_once(), pytest.raises(UserError, match="is no ordinary file"):
            read_checkpoint(tmp_path / name)


def test_what_is_right_is_read(tmp_path: Path) -> None:
    whole = {"model": {"a": torch.arange(4.0)}, "tied": {"a": torch.ones(2)}, "epoch": 3, "names": ["x"]}
    for zipped in (True, False):
        torch.save(whole, tmp_path / "file.pth", _use_new_zipfile_serialization=zipped)
        found = read_pickled(tmp_path / "file.pth")
        assert torch.equal(found["model"]["a"], torch.arange(4.0)) and found["epoch"] == 3
    assert dict(entries({"a": {"b": 1}, "c": [2, 3]}, "")) == {"a.b": 1, "c.0": 2, "c.1": 3}
    (tmp_path / "x.json").write_text('{"a": 1}')
    assert read_json(tmp_path / "x.json", tmp_path) == {"a": 1}


@pytest.mark.integration
def test_an_import_of_a_huge_claim(tmp_path: Path) -> None:
    """In a process of its own, whose memory is counted from its start: a small file of a network 60,000 wide."""
    state = {"patch_embed.proj.weight": torch.zeros(60000, 1, 1, 1), "pos_embed": torch.zeros(1, 17, 1)}
    state |= {"cls_token": torch.zeros(1, 1, 1), "blocks.0.attn.qkv.weight": torch.zeros(3, 1)}
    state |= {"blocks.0.mlp.fc1.weight": torch.zeros(60000, 1), "blocks.0.mlp.fc2.weight": torch.zeros(1, 60000)}
    torch.save(state, tmp_path / "file.pth")
    script = (
        "from ssl_bench.cli.main import main;"
        f"code = main(['import', {str(tmp_path / 'file.pth')!r}, '--format', 'mae', '--heads', '4', '-o', 'run']);"
        f"print(code, {OWN_PEAK})"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=600)
    code, memory = map(float, done.stdout.split())
    assert code == 2 and "lacks" in done.stderr and "Traceback" not in done.stderr
    assert memory < 1000  # with torch and timm, which take half of it
