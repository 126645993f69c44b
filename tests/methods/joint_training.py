"""The same images trained on by one process, and by two with half of each batch: `python joint_training.py FOLDER`."""

import os
import sys

import ssl_bench.torchvision_guard  # noqa: F401  before lightning, which imports torchvision

# isort: split
import torch
import torch.distributed as dist
from golden_files import load
from small import GivenViews, build, trainer, views_of
from torch import Tensor, multiprocessing

from ssl_bench.collectives import SyncNorms
from ssl_bench.methods.simclr import SimCLR
from ssl_bench.options import Optim

IMAGES, STEPS = 8, 2  # of the joint batch


def train(part: slice, devices: int) -> dict[str, Tensor]:
    """Losses, gradients of the first step, and the method after some steps of SGD on a part of each joint batch."""
    optim = Optim("sgd", base_lr=0.1, weight_decay=1e-4, warmup_epochs=0)
    method = build("simclr", "resnet_nano", img_size=16, optim=optim)
    found: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    loss = method.loss

    def record_loss(views: list[Tensor], **drawn: Tensor) -> Tensor:
        losses.append(loss(views, **drawn))
        return losses[-1]

    def record_gradients(_: torch.optim.Optimizer) -> None:
        if not any(name.startswith("gradient.") for name in found):
            found.update({f"gradient.{n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})

    method.loss = record_loss  # type: ignore[method-assign]
    method.on_before_optimizer_step = record_gradients  # type: ignore[method-assign]
    batches = [[view[part] for view in views_of(method, IMAGES, seed=step)] for step in range(STEPS)]
    strategy = "ddp" if devices > 1 else "auto"
    # In float64, since batch norms and two steps blow rounding up to more than any error would be.
    quiet = trainer(devices=devices, strategy=strategy, plugins=[SyncNorms()], precision="64-true")
    quiet.fit(method, datamodule=GivenViews(batches))
    found["losses"] = torch.stack(losses).detach()
    return found | {f"after.{name}": value for name, value in method.state_dict().items()}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update({"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"})  # Lightning starts no processes
    store = dist.FileStore(f"{folder}/store", 2)  # rather than a port, which another program may take
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    z = torch.nn.functional.normalize(load("simclr_ntxent")[1][f"two_replicas.rank{rank}"], dim=1)
    golden = SimCLR.contrast(build("simclr", "vit_pico_patch4_32", temperature=0.5), *z.chunk(2))
    half = IMAGES // 2
    found = train(slice(rank * half, (rank + 1) * half), devices=2)
    torch.save(found | {"golden": golden.detach()}, f"{folder}/rank{rank}.pt")


if __name__ == "__main__":
    multiprocessing.start_processes(one_of_two, (sys.argv[1],), nprocs=2, start_method="fork")
