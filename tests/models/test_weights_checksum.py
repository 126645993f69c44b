"""Weights are read as they were written, or refused."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.models.weights_files import checksum, read_tensors, write_weights

WEIGHTS = {"a": torch.arange(600.0).view(20, 30), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(4)}


def flip_bits(path: Path, count: int = 16) -> None:
    """Of bytes that end the file: they are weights."""
    content = bytearray(path.read_bytes())
    for place in range(count):
        content[-200 - 7 * place] ^= 1 << place % 8
    path.write_bytes(content)


def test_what_is_written_is_read_by_us_and_others(tmp_path: Path) -> None:
    write_weights(tmp_path / "w.safetensors", WEIGHTS)
    for read in (read_tensors, load_file):
        found = read(tmp_path / "w.safetensors")
        assert found.keys() == WEIGHTS.keys()
        assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_equal_weights_make_equal_files(tmp_path: Path) -> None:
    for number in range(8):
        write_weights(tmp_path / f"{number}", WEIGHTS)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, WEIGHTS)
    flip_bits(path)
    with pytest.raises(ValueError, match="w.safetensors does not match its checksum"):
        read_tensors(path)


def test_a_file_of_others_has_no_checksum_and_is_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "w.safetensors", metadata={"format": "pt"})
    assert torch.equal(read_tensors(tmp_path / "w.safetensors")["a"], WEIGHTS["a"])


def test_the_checksum_is_of_names_shapes_and_types_too() -> None:
    a = WEIGHTS["a"]
    others = [{"b": a}, {"a": a.view(30, 20)}, {"a": a.int()}, {"a": a + 1}]
    assert len({checksum(weights) for weights in ({"a": a}, *others)}) == 5


def test_others_may_read_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_weights(tmp_path / "w.safetensors", WEIGHTS)
        os.umask(0o027)
        write_weights(tmp_path / "private.safetensors", WEIGHTS)
    finally:
        os.umask(before)
    assert [(tmp_path / f"{n}.safetensors").stat().st_mode & 0o777 for n in ("w", "private")] == [0o644, 0o640]


def test_a_run_with_flipped_bits_is_not_evaluated(tiny_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip_bits(tiny_run / "backbone.safetensors")
    with pytest.raises(UserError, match=r"the backbone is damaged .*backbone.safetensors does not match its checksum"):
        load_backbone(tiny_run)
    assert main(["evaluate", str(tiny_run), "--protocols=knn"]) == 2
    assert "backbone.safetensors" in capsys.readouterr().err
    assert not list(tiny_run.glob("results/*.json"))
