"""The same images trained on by one process, and by two with half of each batch: `python joint_training.py FOLDER`.

Of every method where a device's images meet those of others: negatives, batch norms, centres.
"""

import os
import sys
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from golden_files import load
from small import GivenViews, build, trainer, views_of
from torch import Tensor, multiprocessing

from ssl_bench.config import registry
from ssl_bench.config.options import Optim
from ssl_bench.methods.barlow_twins import distance_from_identity
from ssl_bench.methods.moco_v3 import info_nce
from ssl_bench.methods.simclr import nt_xent
from ssl_bench.methods.vicreg import regularised_distance
from ssl_bench.models.dino_head import Centre
from ssl_bench.models.sinkhorn import sinkhorn
from ssl_bench.pretraining.method import Method
from ssl_bench.runtime.distributed import SyncNorms

IMAGES, STEPS = 8, 2  # of the joint batch
SELF_DISTILLED = {"momentum": 0.9, "freeze_last_layer": 0, "norm_last_layer": False}


class Case(NamedTuple):
    """A method on a network."""

    method: str
    backbone: str
    options: dict[str, Any] = {}

    def __str__(self) -> str:
        return f"{self.method}-{self.backbone}"


CASES = [
    case
    for case in (
        Case("simclr", "resnet_nano"),
        Case("simclrv2", "resnet_nano"),
        Case("byol", "resnet_nano", {"momentum": 0.9}),
        Case("byol", "vit_pico_patch4_32", {"momentum": 0.9}),
        Case("dino", "resnet_nano", SELF_DISTILLED),
        Case("dino", "vit_pico_patch4_32", SELF_DISTILLED),
        Case("ibot", "vit_pico_patch4_32", SELF_DISTILLED),
        # Neighbours are a device's own, and centres of patches weigh devices, not patches.
        Case("dinov2", "vit_pico_patch4_32", {"targets": "sinkhorn", "koleo_weight": 0.0, "freeze_last_layer": 0}),
        Case("simsiam", "resnet_nano"),
        Case("barlow-twins", "resnet_nano", {"exact_gradient": True}),
        Case("vicreg", "resnet_nano"),
        Case("moco-v3", "resnet_nano", {"momentum": 0.9}),
        Case("moco-v3", "vit_pico_patch4_32", {"momentum": 0.9}),
        Case("moby", "swin_pico_patch2_32", {"momentum": 0.9, "queue_length": 24}),
        Case("lejepa", "vit_pico_patch4_32"),
        Case("swav", "resnet_nano", {"queue_length": 8, "queue_start": 0, "freeze_prototypes": 0}),
    )
    if case.method in registry.names("methods")
]


def train(case: Case, part: slice, devices: int) -> dict[str, Tensor]:
    """Losses, gradients of the first step, and the method after some steps of SGD on a part of each joint batch."""
    optim = Optim("sgd", base_lr=0.1, weight_decay=1e-4, warmup_epochs=0)
    method = build(case.method, case.backbone, img_size=16, optim=optim, **case.options)
    found: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    loss, before_step = method.loss, method.on_before_optimizer_step

    def record_loss(views: list[Tensor]) -> Tensor:
        losses.append(loss(views, **drawn(method, len(losses), part)))
        return losses[-1]

    def record_gradients(optimizer: torch.optim.Optimizer) -> None:
        before_step(optimizer)
        if not any(name.startswith("gradient.") for name in found):
            found.update({f"gradient.{n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None})

    method.loss = record_loss  # type: ignore[method-assign, assignment]
    method.on_before_optimizer_step = record_gradients  # type: ignore[method-assign, assignment]
    batches = [[view[part] for view in views_of(method, IMAGES, seed=step)] for step in range(STEPS)]
    strategy = "ddp" if devices > 1 else "auto"
    # In float64, since batch norms and two steps blow rounding up to more than any error would be.
    quiet = trainer(devices=devices, strategy=strategy, plugins=[SyncNorms()], precision="64-true")
    quiet.fit(method, datamodule=GivenViews(batches))
    found["losses"] = torch.stack(losses).detach()
    return found | {f"after.{name}": value for name, value in method.state_dict().items()}


def drawn(method: Method, step: int, part: slice) -> dict[str, Tensor]:
    """What is drawn at random for a part of the joint batch, whoever draws it: masks of both global views."""
    if not hasattr(method, "draw_masks"):
        return {}
    torch.manual_seed(step)
    masks = method.draw_masks(2 * IMAGES)  # (2G, N)
    return {"mask": masks.unflatten(0, (2, IMAGES))[:, part].flatten(0, 1)}


def official_outputs(rank: int) -> dict[str, Tensor]:
    """What our losses make of this rank's part of the case `two_processes`, under its names."""
    record, tensors = load("two_processes")
    c = record["config"]
    found: dict[str, Tensor] = {}

    def note(name: str, loss: Tensor, **inputs: Tensor) -> None:
        found[f"{name}.loss"] = loss.detach()
        gradients = torch.autograd.grad(loss, list(inputs.values()))
        found.update({f"{name}.grad_{key}": g for key, g in zip(inputs, gradients, strict=True)})

    def inputs(name: str) -> list[Tensor]:
        return [view[rank].clone().requires_grad_() for view in tensors[name]]

    z0, z1 = inputs("in.z")
    vicreg = build("vicreg", "resnet_nano", projection_dims=(c["D"],))
    weights = (vicreg.invariance_weight, vicreg.variance_weight, vicreg.covariance_weight)
    assert weights == (c["sim"], c["std"], c["cov"])
    note("vicreg", regularised_distance(z0, z1, *weights), z1=z0, z2=z1)  # the views' official names
    for exact in (False, True):
        barlow = build("barlow-twins", "resnet_nano", projection_dims=(c["D"],), exact_gradient=exact)
        z0, z1 = inputs("in.z_normalized")  # over both ranks
        loss = distance_from_identity(z0, z1, barlow.off_diagonal_weight, torch.nn.Identity(), exact)
        note("barlow_exact" if exact else "barlow", loss, z1=z0, z2=z1)
    z0, z1 = inputs("in.z")
    note("moco", info_nce(z0, z1, c["T"]), q=z0)
    found["swav.q"] = sinkhorn(tensors["in.swav_scores"][rank] / c["eps"], c["it"])
    rows = {"dino": tensors["in.dino_logits"][rank], "ibot": tensors["in.patch_logits"][rank][: c["n"][rank]]}
    for kind, logits in rows.items():
        found[f"dinov2.{kind}_q"] = sinkhorn(logits / c["tt"], c["it"])
        centre = Centre(c["K"])
        centre.update(logits)
        found[f"dinov2.{kind}_center"] = centre.center
    return found


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update({"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"})  # Lightning starts no processes
    store = dist.FileStore(f"{folder}/store", 2)  # rather than a port, which another program may take
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    z = torch.nn.functional.normalize(load("simclr_ntxent")[1][f"two_replicas.rank{rank}"], dim=1)
    half = slice(rank * IMAGES // 2, (rank + 1) * IMAGES // 2)
    found = {str(case): train(case, half, devices=2) for case in CASES}
    golden = {"loss": nt_xent(*z.chunk(2), temperature=0.5)}
    official = official_outputs(rank)
    torch.save(found | {"simclr_ntxent": golden, "two_processes": official}, f"{folder}/rank{rank}.pt")


if __name__ == "__main__":
    multiprocessing.start_processes(one_of_two, (sys.argv[1],), nprocs=2, start_method="fork")
