"""Whole runs of each method: ours against another implementation, on the same images, network, recipe and steps.

    python benchmarks/parity.py [--methods simclr mae] [--epochs 4] [--seeds 0 1 2] [--runs parity]

Ours is `ssl-bench fit` as users run it, with its default number format. The other (`benchmarks/peers.py`: lightly's
parts, or code written from the paper) is trained here in float32 by a plain loop, with torch's AdamW and lightly's
schedules. Both start from the same weights of the network and see the same views in the same order; heads, masks and
what else a method draws are its own, except that the masks of iBOT and CAE are drawn by ours. Both are then
evaluated by k-NN and ridge regression, and compared as `ssl-bench compare` does: image by image, over seeds.

Every finished run is kept in the folder and not done again; `--report` prints what is there.
"""

import argparse
import copy
import csv
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightly.utils.scheduler import CosineWarmupScheduler, cosine_schedule
from peers import PEERS, Peer
from torch import Tensor, nn

from ssl_bench.cli.main import main as ssl_bench
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.data.files.content import folder_of_run
from ssl_bench.data.loaders import ResidentLoader
from ssl_bench.data.module import DataModule
from ssl_bench.data.order import Order
from ssl_bench.data.pool import ResidentPool
from ssl_bench.leaderboard.significance import build_report
from ssl_bench.methods.cae import CAE
from ssl_bench.methods.ibot import IBOT
from ssl_bench.pretraining.building import build
from ssl_bench.pretraining.checkpoint import save_backbone
from ssl_bench.pretraining.ema_teacher import EMATeacher
from ssl_bench.pretraining.method import Method
from ssl_bench.pretraining.run_record import describe_run, now, training_flops
from ssl_bench.pretraining.training import fit
from ssl_bench.records.files import write_text
from ssl_bench.records.run import RunCost, read_run, write_run
from ssl_bench.runtime.acceleration import keep_freed_memory
from ssl_bench.runtime.environment import describe
from ssl_bench.statistics.intervals import LEVEL, student_t

WARMUP = 0.1  # of the steps
PROTOCOLS = ("knn", "ridge")
HEADS = ["--method.prototypes=512", "--method.hidden_dim=256", "--method.bottleneck_dim=64"]
TEACHER = ["--method.norm_last_layer=true", "--method.momentum=0.97", "--method.teacher_temp=0.04"]
TEACHER += ["--method.warmup_teacher_temp_epochs=0", "--method.freeze_last_layer=0", "--method.blur=[0,0,0]"]
CROPS = ["--method.global_scale=[0.3,1]", "--method.local_scale=[0.15,0.4]", "--method.local_views=2"]
CONTRAST = ["--method.temperature=0.2", "--method.crop_scale=0.2", "--method.blur=0", "--method.standardize=true"]
RECIPES: dict[str, list[str]] = {
    "simclr": [*CONTRAST, "--optim.base_lr=2e-3"],
    "simclrv2": [*CONTRAST, "--optim.base_lr=2e-3"],
    "byol": ["--method.hidden_dim=512", "--method.projection_dim=128", "--method.momentum=0.97"]
    + ["--method.blur=[0,0]", "--method.crop_scale=0.2", "--optim.base_lr=1e-3"],
    "dino": [*HEADS, *TEACHER, *CROPS, "--method.local_size=16", "--method.solarize=0", "--optim.base_lr=2e-3"],
    "ibot": [*HEADS, *TEACHER, *CROPS, "--method.local_views=0", "--method.solarize=0", "--optim.base_lr=2e-3"]
    + ["--method.teacher_patch_temp=0.04"],
    "mae": ["--method.decoder_dim=128", "--method.decoder_depth=1", "--method.decoder_heads=4", "--optim.base_lr=4e-3"],
    "simmim": ["--optim.base_lr=4e-3"],
    "cae": ["--method.tokenizer=pixels", "--method.decoder_dim=128", "--method.regressor_depth=2"]
    + ["--method.decoder_depth=1", "--method.decoder_heads=4", "--method.align_weight=0.1", "--method.crop_scale=0.3"]
    + ["--optim.base_lr=2e-3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--methods", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--data", nargs="+", default=["textures"], help="name of the images, and where they are")
    parser.add_argument("--backbone", default="vit_mini_patch8_32")
    parser.add_argument("--precision", default="auto", help="of ours; the other's is float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=Path, default=Path("parity"))
    parser.add_argument("--report", action="store_true", help="print what is there, and train nothing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    print(HEAD)
    for name in given.methods:
        pairs = []
        for seed in given.seeds:
            config = configuration(name, seed, given)
            ours = folder_of_run(given.runs / name, config)
            theirs = ours.with_name(ours.name.replace(name, f"{name}-peer", 1))
            if not given.report:
                train_and_evaluate(name, config, ours, theirs)
            pairs += [(ours, theirs)] if finished(ours) and finished(theirs) else []
        if pairs:
            print(row(name, pairs), flush=True)


def configuration(name: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """What `ssl-bench fit` does with the recipe."""
    where = [f"--data.root={given.data[1]}"] if given.data[1:] else []
    flags = [f"--method.name={name}", f"--data.name={given.data[0]}", *where, f"--data.batch_size={given.batch}"]
    flags += [f"--backbone.name={given.backbone}", "--optim.name=adamw", "--optim.scaling=linear", f"--seed={seed}"]
    flags += ["--optim.weight_decay=0.05", "--optim.schedule=cosine", "--optim.warmup_lr=0", "--optim.min_lr=0"]
    flags += [f"--optim.warmup_epochs={WARMUP * given.epochs}", "--optim.clip=1", "--optim.clip_per=model"]
    flags += [f"--trainer.max_epochs={given.epochs}", f"--trainer.precision={given.precision}"]
    flags += ["--trainer.log_every_n_steps=1", "--probe.every_n_epochs=0"]
    config = parse_fit([*flags, *RECIPES[name]], {}).config
    config["optim"]["weight_decay_end"] = None
    return config


def train_and_evaluate(name: str, config: dict[str, Any], ours: Path, theirs: Path) -> None:
    """Both, as far as they are not done."""
    fit(copy.deepcopy(config), ours.parent)
    if not finished(theirs):
        fit_peer(name, config, theirs)
    ssl_bench(["evaluate", str(ours), str(theirs), f"--protocols={','.join(PROTOCOLS)}", f"--runs={ours.parent}"])


def finished(folder: Path) -> bool:
    return (folder / "run.json").is_file() and read_run(folder).status == "finished"


def fit_peer(name: str, config: dict[str, Any], folder: Path) -> None:
    """Train the other implementation, and leave a run folder as `ssl-bench fit` does."""
    torch.manual_seed(config["seed"])
    data, method, module = build(config)
    start = copy.deepcopy(method.backbone.model.state_dict())
    torch.manual_seed(config["seed"])
    peer = PEERS[name](copy.deepcopy(method.backbone), **config["method"])
    peer.vit.load_state_dict(start)
    info = describe_run({**config, "method": {**config["method"], "name": f"{name}-peer"}}, data, method, [])
    flops = training_flops(method)
    begun = time.perf_counter()
    losses = train(peer, method, module, config["trainer"]["max_epochs"])
    seconds = time.perf_counter() - begun
    for branch, network in peer.networks().items():
        method.branches[branch].model.load_state_dict(network.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "metrics.csv", "step,loss\n" + "".join(f"{n},{x:.6g}\n" for n, x in enumerate(losses, 1)))
    save_backbone(folder, method, data)
    seen = len(losses) * module.options.batch_size
    cost = RunCost(seconds, flops * seen, 0, str(describe()["device"]))
    epochs = float(config["trainer"]["max_epochs"])
    done = replace(info, status="finished", epochs=epochs, steps=len(losses), images_seen=seen, cost=cost)
    write_run(folder, replace(done, finished=now()))


def train(peer: Peer, method: Method, module: DataModule, epochs: int) -> list[float]:
    """A plain loop in float32; the loss of each step."""
    optim, epoch = method.optim, 0
    loader = batches(module, lambda: epoch)
    total = epochs * len(loader)
    images_per_step = module.options.batch_size
    optimizer = torch.optim.AdamW(groups(peer, method), optim.base_lr * images_per_step / 256, betas=optim.betas)
    warmup = round(optim.warmup_epochs * len(loader))
    schedule = CosineWarmupScheduler(optimizer, warmup, total, end_value=0.0)
    teacher = next((part for part in method.children() if isinstance(part, EMATeacher)), None)
    losses: list[float] = []
    peer.train()
    for epoch in range(epochs):  # noqa: B007 - the loader asks for it
        for raw in loader:
            views = module.on_after_batch_transfer(raw, 0).views
            loss = peer(views, **masks_of(method, len(raw.rows)))
            loss.backward()
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(weights, optim.clip or math.inf)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if teacher is not None:
                peer.follow(cosine_schedule(len(losses), total, teacher.momentum, 1.0))
            losses.append(float(loss.detach()))
    return losses


def batches(module: DataModule, epoch: Any) -> ResidentLoader:
    """The images in the order in which ours sees them."""
    pool = module.data.pretrain
    assert isinstance(pool, ResidentPool), "small images, which stay in memory"
    return ResidentLoader(pool, Order(len(pool), module.options.batch_size, module.seed, epoch=epoch))


def groups(peer: Peer, method: Method) -> list[dict[str, Any]]:
    """Parameters with weight decay, and without: biases, norms, and what of the network ours spares."""
    spared = {f"vit.{name.removeprefix('backbone.model.')}" for name in method.no_weight_decay}
    decayed, plain = [], []
    for name, parameter in peer.named_parameters():
        if parameter.requires_grad:
            bare = parameter.ndim < 2 or name.endswith(".bias") or name in spared
            (plain if bare else decayed).append(parameter)
    decay = method.optim.weight_decay
    return [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}]


def masks_of(method: Method, images: int) -> dict[str, Tensor]:
    """Blocks of hidden patches, drawn as the recipe has them, for those whose `forward` wants them."""
    if isinstance(method, IBOT):
        return {"mask": method.draw_masks(2 * images)}
    if isinstance(method, CAE):
        return {"mask": method.masks(images)[0]}
    return {}


HEAD = """\
| | seeds | loss, first to last tenth: ours | the other's | final difference | k-NN: ours | the other's | \
difference [95 %], p | ridge: ours | the other's | difference [95 %], p |
|---|---|---|---|---|---|---|---|---|---|---|"""


def row(name: str, pairs: list[tuple[Path, Path]]) -> str:
    """A line of Markdown: losses, and each protocol's accuracies with the paired test."""
    report = build_report([folder for pair in pairs for folder in pair])
    cells = [f"{name} ({PEERS[name].source})", str(len(pairs)), *curves(pairs)]
    protocols = {protocol.title: protocol for block in report.blocks for protocol in block.protocols}
    for title in PROTOCOLS:
        protocol = protocols[title]
        scores = {score.name.endswith("-peer"): score for score in protocol.methods}
        for score in (scores[False], scores[True]):
            low, high = score.interval
            cells.append(f"{100 * score.accuracy:.1f} ± {50 * (high - low):.1f}")
        pair = protocol.pairs[0]
        sign = -1 if pair.a.endswith("-peer") else 1
        low, high = sorted(100 * sign * end for end in pair.interval)
        cells.append(f"{100 * sign * pair.difference:+.1f} [{low:+.1f}, {high:+.1f}], {pair.p:.2g}")
    return f"| {' | '.join(cells)} |"


def curves(pairs: list[tuple[Path, Path]]) -> list[str]:
    """Mean losses of the tenths 1, 4, 7 and 10 of training, and the last tenth's difference over seeds."""
    ours, theirs = ([losses(folder) for folder in side] for side in zip(*pairs, strict=True))
    cells = []
    for side in (ours, theirs):
        tenths = [statistics.fmean(tenth(values, part) for values in side) for part in (0, 3, 6, 9)]
        cells.append(" ".join(f"{value:.3f}" for value in tenths))
    differences = [tenth(a, 9) - tenth(b, 9) for a, b in zip(ours, theirs, strict=True)]
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return [*cells, f"{mean:+.4f}"]
    half = student_t(LEVEL, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return [*cells, f"{mean:+.4f} ± {half:.4f}"]


def losses(folder: Path) -> list[float]:
    """Of each step, as metrics.csv has them."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(line["loss"]) for line in csv.DictReader(file) if line.get("loss")]


def tenth(values: list[float], part: int) -> float:
    size = max(1, len(values) // 10)
    return statistics.fmean(values[part * size : (part + 1) * size] if part < 9 else values[-size:])


if __name__ == "__main__":
    main()
