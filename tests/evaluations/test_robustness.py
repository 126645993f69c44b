"""Both evaluations of robustness against the corrupted images classified one by one, and what they may look at."""

import inspect
import io
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.config.options import BackboneOptions, DataOptions
from ssl_bench.data.pool import EncodedPool, ResidentPool
from ssl_bench.data.sources import digits
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.evaluation import corrupted_test, feature_extractor
from ssl_bench.evaluation.corruptions import CORRUPTIONS, corrupted, image_seeds
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.evaluations.finetune import Finetune
from ssl_bench.evaluations.linear import Linear
from ssl_bench.evaluations.robustness import Robustness
from ssl_bench.evaluations.robustness_finetune import RobustnessFinetune
from ssl_bench.models.backbone import Backbone
from ssl_bench.runtime.distributed import distributed_context

KINDS = list(CORRUPTIONS)
QUICK_LINEAR: dict[str, Any] = {"iterations": 60, "batch_size": 64, "lrs": (0.01, 0.1), "views": 0, "seeds": 1}
QUICK_TUNING: dict[str, Any] = {
    "epochs": 2,
    "warmup_epochs": 0,
    "search_epochs": 1,
    "batch_size": 32,
    "lrs": (1e-2, 2e-2),
    "layer_decays": (0.75,),
    "drop_paths": (0.5,),
    "mixup": 0.0,
    "cutmix": 0.0,
    "randaugment": None,
    "precision": "32-true",
}
Splits = tuple[TrainSplit, ValidationSplit, TestSplit]


def some_digits(test: int = 60) -> Splits:
    source = digits.load(DataOptions())
    assert isinstance(source.train, ResidentPool) and isinstance(source.test, ResidentPool)
    rows = np.arange(500)
    return TrainSplit(source.train, rows[:400]), ValidationSplit(source.train, rows[400:]), _test(source.test, test)


def _test(pool: ResidentPool, count: int) -> TestSplit:
    return TestSplit(pool, np.random.default_rng(1).permutation(len(pool))[:count])


def frozen() -> FeatureExtractor:
    torch.manual_seed(0)
    network = Backbone(
        BackboneOptions(name="vit_nano_patch4_32", img_size=8, patch_size=2, width=32, depth=2, num_heads=2)
    )
    return FeatureExtractor(network, (0.3,) * 3, (0.4,) * 3, {}, batch_size=9)


def predicted(protocol: Any, backbone: FeatureExtractor, splits: Splits) -> dict[str, Tensor]:
    fit = protocol.fit(backbone, *splits[:2])
    return {p.variant: p.labels for p in protocol.predict(backbone, fit, splits[2])}


def one_by_one(test: TestSplit, kind: str) -> Iterator[tuple[int, int, Tensor]]:
    """Severity, place and (1, 3, s, s) image: each made from the image and its name alone."""
    assert isinstance(test.pool, ResidentPool)
    for place, row in enumerate(test.rows):
        image = test.pool.images[row : row + 1].float() / 255
        for severity, copy in enumerate(corrupted(image, kind, image_seeds([test.pool.ids[row]], kind))):
            yield severity, place, copy


@pytest.mark.integration
@pytest.mark.parametrize("feature_types", [("cls",), ("cls+avg",)])
def test_linear_predictions_are_those_of_the_head_on_each_copy(feature_types: tuple[str, ...]) -> None:
    backbone, splits = frozen(), some_digits(20)
    found = predicted(Robustness(**QUICK_LINEAR, feature_types=feature_types), backbone, splits)
    head = Linear(**QUICK_LINEAR, feature_types=feature_types, epochs=0).fit(backbone, *splits[:2]).state["chosen"]
    mean, deviation, weight, bias = (
        t.double().numpy() for t in (head.norm.mean, head.norm.deviation, head.weight, head.bias)
    )
    for kind in KINDS:
        for severity, place, copy in one_by_one(splits[2], kind):
            tokens = backbone.network.model.forward_features((copy - 0.3) / 0.4)[0].double().numpy()  # (1 + N, D)
            vector = {"cls": tokens[0], "cls+avg": np.concatenate([tokens[0], tokens[1:].mean(0)])}[feature_types[0]]
            logits = weight @ ((vector - mean) / deviation) + bias
            assert found[kind][severity, place] == logits.argmax(), (kind, severity, place)


@pytest.mark.integration
def test_finetuned_predictions_are_those_of_the_network_on_each_copy() -> None:
    backbone, splits = frozen(), some_digits(12)
    protocol = RobustnessFinetune(**QUICK_TUNING)
    fit = protocol.fit(backbone, *splits[:2])
    found = {p.variant: p.labels for p in protocol.predict(backbone, fit, splits[2])}
    network = fit.state.eval()
    for kind in KINDS:
        for severity, place, copy in one_by_one(splits[2], kind):
            with torch.no_grad():
                logits = network((copy - 0.3) / 0.4)[0]
            assert found[kind][severity, place] == logits.argmax(), (kind, severity, place)


@pytest.mark.integration
@pytest.mark.parametrize("page", ["robustness", "robustness_finetune"])
def test_clean_is_the_plain_evaluation(page: str) -> None:
    """Same head or network, same choice, same record; only the test images change."""
    splits = some_digits(300)
    protocol: Any = Robustness(**QUICK_LINEAR) if page == "robustness" else RobustnessFinetune(**QUICK_TUNING)
    plain: Any = Linear(**QUICK_LINEAR, epochs=0) if page == "robustness" else Finetune(**QUICK_TUNING)
    fit, expected = protocol.fit(frozen(), *splits[:2]), plain.fit(frozen(), *splits[:2])
    for name in ("features", "chosen", "grid", "at_grid_boundary", "curve"):
        assert getattr(fit, name) == getattr(expected, name)
    assert fit.grid and fit.chosen
    clean = protocol.predict(frozen(), fit, splits[2])[1]
    assert clean.variant == "clean"
    same = clean.labels == plain.predict(frozen(), expected, splits[2])[0].labels
    assert same.sum() >= 299, "but for features kept as float16"


@pytest.mark.integration
def test_variants_and_their_accuracies() -> None:
    splits, protocol = some_digits(510), Robustness(**QUICK_LINEAR)
    backbone = FeatureExtractor(Pixels(8), (0.3,) * 3, (0.4,) * 3, {})
    predictions = protocol.predict(backbone, protocol.fit(backbone, *splits[:2]), splits[2])
    assert [p.variant for p in predictions] == ["mean", "clean", *KINDS]
    assert [p.labels.shape for p in predictions] == [(50, 510), (510,), *[(5, 510)] * 10]
    assert all(p.repeats == "conditions" for p in predictions if p.variant != "clean")
    found = {p.variant: p.labels for p in predictions}
    assert torch.equal(found["mean"], torch.cat([found[kind] for kind in KINDS]))
    assert torch.equal(found["saturation"], found["clean"].expand(5, -1)), "gray images have no saturation"
    right = {variant: (labels.numpy() == splits[2].labels).mean(-1) for variant, labels in found.items()}
    assert right["clean"] > 0.7 and right["mean"].mean() < right["clean"] - 0.05
    for kind in ("impulse-noise", "gaussian-blur", "motion-blur", "contrast"):
        assert right[kind][4] < right["clean"] - 0.05, f"{kind} at its worst does harm"
        assert right[kind][0] > right[kind][4], f"{kind} at its mildest does less"


def test_fit_makes_no_corrupted_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any) -> Any:
        raise AssertionError("corrupted")

    splits = some_digits(10)
    monkeypatch.setattr(corrupted_test, "corrupted", never)
    for protocol in (Robustness(**QUICK_LINEAR), RobustnessFinetune(**QUICK_TUNING | {"lrs": (0.01,), "epochs": 1})):
        fit = protocol.fit(frozen(), *splits[:2])
        with pytest.raises(AssertionError, match="corrupted"):
            protocol.predict(frozen(), fit, splits[2])


def test_photographs_are_corrupted_as_images_in_memory_are() -> None:
    train, validation, test = some_digits(10)
    assert isinstance(test.pool, ResidentPool)
    files = []
    for row in range(len(test.pool)):
        file = io.BytesIO()
        test.pool.image(row).save(file, "PNG")
        files.append(file.getvalue())
    photographs = EncodedPool(labels=test.pool.labels, ids=test.pool.ids, encoded=files)
    protocol, backbone = Robustness(**QUICK_LINEAR), frozen()
    backbone.num_workers = 0
    fit = protocol.fit(backbone, train, validation)
    resident = protocol.predict(backbone, fit, test)
    for one, other in zip(resident, protocol.predict(backbone, fit, TestSplit(photographs, test.rows)), strict=True):
        assert torch.equal(one.labels, other.labels)


def test_passes_are_counted() -> None:
    backbone, splits = frozen(), some_digits(30)
    protocol = Robustness(**QUICK_LINEAR)
    protocol.predict(backbone, protocol.fit(backbone, *splits[:2]), splits[2])
    cost = backbone.used["corrupted test"]
    assert cost.images == 51 * 30 and cost.flops == 51 * 30 * backbone.flops_per_image


def test_defaults_are_the_plain_evaluations() -> None:
    for page, plain in ((Robustness, Linear), (RobustnessFinetune, Finetune)):
        ours, theirs = inspect.signature(page).parameters, inspect.signature(plain).parameters
        assert all(ours[name] == theirs[name].replace(kind=ours[name].kind) for name in ours)


def test_options_reach_the_plain_evaluation() -> None:
    linear: dict[str, Any] = {
        "iterations": 7,
        "batch_size": 8,
        "lrs": (0.5,),
        "feature_types": ("cls",),
        "views": 2,
        "seeds": 4,
        "seed": 5,
    }
    assert Robustness(**linear)._linear.options() == linear | {"epochs": 0}
    tuning = QUICK_TUNING | {"pooling": "cls", "seed": 3}
    assert Finetune(**tuning).options() == RobustnessFinetune(**tuning)._finetune.options()
    with pytest.raises(ValueError, match="at least 1"):
        Robustness(iterations=0)
    with pytest.raises(ValueError, match="at least"):
        RobustnessFinetune(epochs=0)


def test_what_cannot_be_trained_is_refused() -> None:
    pixels = FeatureExtractor(Pixels(8), (0.5,) * 3, (0.5,) * 3, {})
    assert "no network to train" in str(RobustnessFinetune().refusal(pixels))
    assert Robustness().refusal(pixels) is None and RobustnessFinetune().refusal(frozen()) is None


@pytest.mark.integration
def test_processes_share_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    splits, protocol, parts = some_digits(31), Robustness(**QUICK_LINEAR), []
    fit = protocol.fit(frozen(), *splits[:2])
    alone = protocol.predict(frozen(), fit, splits[2])[0].labels
    monkeypatch.setattr(
        corrupted_test, "all_reduce_sum", lambda found: parts.append(found) or torch.full_like(found, 7)
    )
    monkeypatch.setattr(feature_extractor, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(feature_extractor, "rank", lambda rank=rank: rank)
        assert (protocol.predict(frozen(), fit, splits[2])[0].labels == 7).all(), "the sum's"
    assert not parts[0][:, 1::2].any() and not parts[1][:, ::2].any()
    assert torch.equal((parts[0] + parts[1])[1:], alone)


def _as_one_of_two(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    with distributed_context("cpu"):
        # Networks that have learned differently: the first one's must be everyone's.
        for protocol in (Robustness(**QUICK_LINEAR), RobustnessFinetune(**QUICK_TUNING, seed=rank)):
            found = predicted(protocol, frozen(), some_digits(31))
            torch.save(found, f"{folder}/{rank}-{type(protocol).__name__}.pt")


@pytest.mark.slow
def test_two_processes_predict_as_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_as_one_of_two, (port, str(tmp_path)), nprocs=2)
    for protocol in (Robustness(**QUICK_LINEAR), RobustnessFinetune(**QUICK_TUNING)):
        alone = predicted(protocol, frozen(), some_digits(31))
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{rank}-{type(protocol).__name__}.pt")
            for variant, labels in alone.items():
                assert (found[variant] != labels).double().mean() < 0.005, "batches differ, so may last bits"
