"""A Trainer of one's own on two devices: steps, views and the run that is saved."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import json, os, sys
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
import ssl_bench

pl.seed_everything(0, verbose=False)
images = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8)
backbone = {"name": "vit_pico_patch4_32", "patch_size": 4, "depth": 1}
method = ssl_bench.create_method("simclr", backbone, image_size=8, optim={"warmup_epochs": 0})
seen = []
loss = method.loss
method.loss = lambda views: (seen.append(float(views[0].sum())), loss(views))[1]
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = pl.Trainer(max_epochs=2, accelerator="cpu", devices=2, strategy="ddp", **quiet)
trainer.fit(method, DataLoader(TensorDataset(images), batch_size=8, shuffle=True))
run = ssl_bench.save_run(method, sys.argv[1] + "/run")
found = {"steps": trainer.global_step, "total": method.schedule.total, "images": method.schedule.images_per_step}
found |= {"seen": seen, "status": run.info.status, "images_seen": run.info.images_seen}
found["weights"] = float(sum(p.double().sum() for p in method.parameters()))
with open(f"{sys.argv[1]}/rank{trainer.global_rank}.json", "w") as file:
    json.dump(found, file)
"""


@pytest.mark.slow
def test_two_devices_share_the_images_and_keep_the_same_weights(tmp_path: Path) -> None:
    """48 images, 8 on each device: 3 steps of 16 images an epoch; each device has views of its own."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", program, tmp_path], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text(encoding="utf-8")) for rank in (0, 1))
    assert (first["steps"], first["total"], first["images"]) == (6, 6, 16)
    assert first["weights"] == pytest.approx(second["weights"], rel=1e-12)
    assert len(first["seen"]) == 6 and not set(first["seen"]) & set(second["seen"])
    assert first["status"] == second["status"] == "finished" and first["images_seen"] == 96
