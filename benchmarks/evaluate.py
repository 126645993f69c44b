"""What evaluations save by sharing work: each against the same protocols run one after another, in one process.

    python benchmarks/evaluate.py --what knn suite partial

The two sides take turns, so that whatever else the machine does slows both; a ratio is the median over rounds, with its
lowest and highest.

knn: 10,000 queries against a bank of 50,000 x 768 at k = 200, votes included, against lightly's `knn_predict` in
batches of 128, the fastest of those tried; both on one thread and in processor time. Once with vectors in ten
overlapping clusters, and once with such that all cosines are 0.98. Extra memory is what a process of its own needs at
most beyond the float16 bank and the queries.
Measured on one core of an Intel Xeon with AMX (2.6 GHz, the machine busy with other work), torch 2.13, 7 or 9 rounds:
spread out 4.0 times (medians of four runs 3.9 to 4.6, 1.8 to 2.1 s against 7.2 to 8.5 s), cosines of 0.98 2.5 to 2.7
times; 281 MiB for a bank of 50,000, 361 MiB for 200,000. Of our 1.8 s a third is the bfloat16 product and almost a
third are the 390 float32 products per query. Processors without bfloat16 instructions search coarsely in float32: the
product then takes as long as lightly's.

suite: k-NN, ridge, logistic regression, few shots, 1 % and 10 % of the labels, diagnostics and the linear probe's 13
learning rates on ten crops, all on features computed once, against the same one after another, each computing its own,
a learning rate at a time.

partial: partial fine-tuning at k = 0, 0.5, 1, 2, 4 and 6 of a ViT's 12 blocks with the default recipe and augmentation,
one frozen trunk for all of them against six runs with one k each. k = 0 is the linear probe on ten cached crops per
image: it costs both sides the same, is measured once and counted once per 50 epochs.
Measured on one core of an Intel Xeon (the machine busy with other work, so in processor time), torch 2.13, 12 blocks of
`vit_nano_patch4_32`, 4 rounds: 0.55 (0.54 to 0.56) of the time of six runs, 0.53 (0.52 to 0.54) without k = 0. Passes
through blocks alone would be 0.60 without k = 0; the rest is augmentation done once.
"""

import argparse
import functools
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightly.utils.benchmarking.knn import knn_predict
from torch import Tensor

from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.evaluation.evaluation import Evaluation
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.solvers.knn_search import neighbours
from ssl_bench.evaluations.diagnostics import Diagnostics
from ssl_bench.evaluations.fewshot import Fewshot
from ssl_bench.evaluations.knn import BANK_VALUES, Knn, votes
from ssl_bench.evaluations.labels import Labels
from ssl_bench.evaluations.linear import Linear
from ssl_bench.evaluations.logistic import Logistic
from ssl_bench.evaluations.partial_finetune import probed
from ssl_bench.evaluations.ridge import Ridge
from ssl_bench.finetuning.images import Batches
from ssl_bench.finetuning.model import FineTuneModel, Recipe
from ssl_bench.finetuning.shared_trunk import Top, tune_together
from ssl_bench.models.backbone import Backbone
from ssl_bench.runtime.acceleration import keep_freed_memory

CLASSES = 10
NEIGHBOURS, TEMPERATURE, DIM = 200, 0.07, 768  # of knn


def main() -> None:
    measures: dict[str, Callable[[argparse.Namespace], None]] = {
        "knn": knn_against_lightly,
        "suite": suite,
        "partial": partial,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", choices=measures, nargs="+", default=list(measures))
    parser.add_argument("--backbone", default="vit_nano_patch4_32", help="made 12 blocks deep; of partial")
    parser.add_argument("--images", type=int, default=256, help="training images; of partial")
    parser.add_argument("--batch", type=int, default=128, help="of partial")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    for what in given.what:
        measures[what](given)


def knn_against_lightly(given: argparse.Namespace) -> None:
    """The same predictions from the same unit vectors, and the most memory that ours takes."""
    torch.set_num_threads(1)
    for name, offset in (("spread out", 0.0), ("cosines of 0.98", 4.0)):
        labels = torch.arange(60_000) % CLASSES
        vectors = F.normalize(clusters(labels, offset).float(), dim=1)
        bank, queries = vectors[:50_000], vectors[50_000:]
        columns, known = bank.T.contiguous(), labels[:50_000]

        def ours(bank: Tensor = bank, queries: Tensor = queries, known: Tensor = known) -> Tensor:
            similarity, row = neighbours(lambda: [queries], bank.split(BANK_VALUES // DIM), NEIGHBOURS)
            return votes(similarity, known[row], CLASSES, [NEIGHBOURS], TEMPERATURE)[NEIGHBOURS]

        def theirs(columns: Tensor = columns, queries: Tensor = queries, known: Tensor = known) -> Tensor:
            parts = queries.split(128)
            return torch.cat([knn_predict(q, columns, known, CLASSES, NEIGHBOURS, TEMPERATURE)[:, 0] for q in parts])

        agree = float((ours() == theirs()).double().mean())  # warms both up
        rounds = [(processor_time(ours), processor_time(theirs)) for _ in range(given.rounds)]
        our, their = (statistics.median(column) for column in zip(*rounds, strict=True))
        ratio = spread([their / our for our, their in rounds])
        print(f"k-NN, {name}: ours {our:.2f} s, lightly {their:.2f} s, {ratio} times; {agree:.2%} predicted alike")
    for images in (50_000, 200_000):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            print(f"  extra memory, bank of {images:,}: {pool.apply(extra_memory, (images,)) / 2**20:,.0f} MiB")


def clusters(labels: Tensor, offset: float) -> Tensor:
    """(N, DIM) float16 features around the centres of their classes."""
    generator = torch.Generator().manual_seed(0)
    centres = 0.5 * torch.randn(CLASSES, DIM, generator=generator) + offset * torch.randn(DIM, generator=generator)
    features = torch.empty(len(labels), DIM, dtype=torch.float16)
    for some, out in zip(labels.split(4096), features.split(4096), strict=True):
        out.copy_(centres[some] + torch.randn(len(some), DIM, generator=generator) * (1 if offset == 0 else 0.4))
    return features


def extra_memory(images: int) -> int:
    """Bytes at most beyond the bank, in a fresh process."""
    torch.set_num_threads(1)
    bank = clusters(torch.arange(images) % CLASSES, 0.0)
    queries = F.normalize(clusters(torch.arange(10_000) % CLASSES, 0.0).float(), dim=1)

    def chunks() -> Iterator[Tensor]:
        for half in bank.split(BANK_VALUES // DIM):
            rows = half.float()
            yield rows.div_(rows.norm(dim=1, keepdim=True))
            del rows

    def memory(name: str) -> int:
        return 1024 * int(re.findall(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))[0])

    before = memory("VmRSS")
    neighbours(lambda: [queries], chunks(), NEIGHBOURS)
    return memory("VmHWM") - before


def processor_time(work: Callable[[], object]) -> float:
    """Seconds of this process, whatever else the machine does."""
    start = time.process_time()
    work()
    return time.process_time() - start


def suite(given: argparse.Namespace) -> None:
    """The protocols on frozen features, shared against separate."""
    train, validation = splits(8 * given.images)
    test = TestSplit(train.pool, validation.rows)
    network = Backbone(BackboneOptions(given.backbone, img_size=32, depth=12))
    rates = Linear().lrs
    small = {"iterations": 300, "batch_size": 256, "epochs": 0, "seeds": 1}
    pages: dict[str, list[Evaluation[Any]]] = {
        "knn": [Knn()],
        "ridge": [Ridge()],
        "logistic": [Logistic()],
        "fewshot": [Fewshot()],
        "labels-1pct": [Labels(0.01)],
        "labels-10pct": [Labels(0.1)],
        "diagnostics": [Diagnostics()],
        "linear": [Linear(lrs=(rate,), **small) for rate in rates],  # type: ignore[arg-type]
    }
    together = [*(page for name, group in pages.items() if name != "linear" for page in group), Linear(**small)]  # type: ignore[arg-type]

    def fresh() -> FeatureExtractor:
        return FeatureExtractor(network, (0.5,) * 3, (0.25,) * 3, {}, device=given.device)

    def run(page: Evaluation[Any], target: FeatureExtractor) -> None:
        page.predict(target, page.fit(target, train, validation), test)

    def alone(page: Evaluation[Any]) -> float:
        target = fresh()
        return seconds(lambda: run(page, target), target)

    def on_one() -> list[float]:
        target = fresh()
        return [seconds(functools.partial(run, page, target), target) for page in together]

    ratios = []
    for _ in range(given.rounds):
        separate = {name: sum(map(alone, group)) for name, group in pages.items()}
        shared = on_one()
        ratios.append(sum(separate.values()) / sum(shared))
    print(
        f"{given.backbone}, 12 blocks, {len(train):,} training images; seconds of the last round, separate and shared:"
    )
    for (name, spent), own in zip(separate.items(), shared, strict=True):
        print(f"  {name:14}{spent:8.1f}{own:8.1f}")
    print(f"  {'all':14}{sum(separate.values()):8.1f}{sum(shared):8.1f}   separate over shared: {spread(ratios)}")


def partial(given: argparse.Namespace) -> None:
    """Six depths of partial fine-tuning, shared against separate."""
    train, validation = splits(given.images)
    network = Backbone(BackboneOptions(given.backbone, img_size=32, depth=12))
    depths, recipe = (0.5, 1, 2, 4, 6), Recipe(epochs=1, warmup_epochs=0.5, batch_size=given.batch)

    def fresh() -> FeatureExtractor:
        return FeatureExtractor(network, (0.5,) * 3, (0.25,) * 3, {}, device=given.device)

    def tuning(*together: float) -> float:
        """Seconds of an epoch."""
        target = fresh()
        tops = [
            Top(FineTuneModel(target.trainable(), CLASSES, "avg", recipe.drop_path), depth, recipe)
            for depth in together
        ]
        return seconds(
            lambda: tune_together(tops, Batches(train, recipe, CLASSES, target), validation, "an epoch"), target
        )

    def probing() -> float:
        """Seconds of k = 0, features included."""
        target = fresh()
        return seconds(lambda: probed(target, train, validation, 0), target)

    rounds = []
    for _ in range(given.rounds + 1):
        separate = {depth: tuning(depth) for depth in depths}
        rounds.append((tuning(*depths), separate))
    epochs, ratios, tuned, probe = 50, [], [], probing()
    for shared, separate in rounds[1:]:  # the first warms up
        tuned.append(shared / sum(separate.values()))
        ratios.append((epochs * shared + probe) / (epochs * sum(separate.values()) + probe))
    shared, separate = rounds[-1]
    each = ", ".join(f"k = {depth:g} {1e3 * spent / given.images:.2f}" for depth, spent in separate.items())
    print(f"partial fine-tuning of {given.backbone}, 12 blocks, batches of {given.batch}; ms per image and epoch:")
    print(f"  {each}; together {1e3 * shared / given.images:.2f}; k = 0, once, {1e3 * probe / given.images:.2f}")
    print(f"  shared over separate: {spread(tuned)} for k > 0, {spread(ratios)} for all six over {epochs} epochs")


def seconds(work: Callable[[], object], target: FeatureExtractor) -> float:
    """Of a GPU by the clock; of the processor what this process had of it, whatever else the machine does."""
    gpu = target.device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    work()
    if gpu:
        torch.cuda.synchronize()
    return clock() - start


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def splits(images: int) -> tuple[TrainSplit, ValidationSplit]:
    """Smooth noise of 32 px to train on, a tenth as many to choose on."""
    generator = torch.Generator().manual_seed(0)
    count = images + images // 10
    coarse = torch.rand(count, 3, 8, 8, generator=generator) * 255
    pixels = torch.nn.functional.interpolate(coarse, 32, mode="bilinear").byte()
    pool = ResidentPool(images=pixels, labels=np.arange(count) % CLASSES, ids=[str(row) for row in range(count)])
    return TrainSplit(pool, np.arange(images)), ValidationSplit(pool, np.arange(images, count))


if __name__ == "__main__":
    main()
