"""Every line of Python in docs/python.md runs, in the order of the page; only sizes are smaller here."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paths import ROOT
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

SMALLER = {  # what the page says -> what costs no minutes
    '"resnet18", image_size=32': '{"name": "vit_pico_patch4_32", "patch_size": 8, "depth": 1}, image_size=16',
    "max_epochs=10)": "max_epochs=1, accelerator='cpu', logger=False, enable_checkpointing=False, "
    "enable_progress_bar=False, enable_model_summary=False)",
    'backbone="vit_small_patch16_224", max_epochs=100': "**small",
    "image_size=32)": "image_size=8)",
}


class MyNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.first(images).relu().mean((2, 3))


def test_every_line_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["notebook"])
    rng = np.random.default_rng(0)
    for name in range(12):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    x, y = load_digits(return_X_y=True)
    network = {"name": "vit_pico_patch4_32", "img_size": 16, "patch_size": 4, "depth": 1}
    names: dict[str, Any] = {
        "loader": DataLoader(list(torch.rand(16, 3, 16, 16)), batch_size=8),  # type: ignore[arg-type]
        "MyNetwork": MyNetwork,
        "X_train": x[:300],
        "y_train": y[:300],
        "X_test": x[1500:],
        "y_test": y[1500:],
        "small": {
            "backbone": network,
            "max_epochs": 1,
            "batch_size": 8,
            "decoder_dim": 16,
            "decoder_depth": 1,
            "decoder_heads": 2,
            "optim": {"warmup_epochs": 0},
            "probe": {"every_n_epochs": 0},
            "trainer": {"accelerator": "cpu"},
        },
    }
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 8
    used = set()
    for block in blocks:
        for said, instead in SMALLER.items():
            used |= {said} if said in block else set()
            block = block.replace(said, instead)
        exec(compile(block, "docs/python.md", "exec"), names)
    assert used == set(SMALLER)
    assert names["table"].protocol.unique().tolist() == ["knn", "ridge", "logistic"]
    assert len(names["df"]) > 0 and (tmp_path / "page" / "index.html").is_file()
    assert names["run"].info.status == "finished" and len(names["run"].metrics) > 0
    assert {"mine", "pixels-digits"} <= {Path(run).name.split("-none")[0] for run in names["df"].run} | {"mine"}


def test_the_table_of_pieces_is_what_there_is() -> None:
    """Each module's row names all that it exports."""
    import ssl_bench

    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    for name in ("losses", "heads", "views", "optim", "schedules"):
        row = next(line for line in text.splitlines() if line.startswith(f"| `ssl_bench.{name}`"))
        named = set(re.findall(r"`(\w+)`", row.partition("` |")[2]))
        there = set(getattr(ssl_bench, name).__all__)
        assert named <= there, named - there
        if name not in ("schedules", "views"):  # whose variants and types the row does not list
            assert named == there, there - named
