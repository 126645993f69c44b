"""The classifier that a run left beside its backbone: counted as it is, on the images it knows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.evaluations.classifier import Classifier as Protocol
from ssl_bench.models.classifier import Classifier, load_classifier, save_classifier


def network() -> tuple[Pixels, Classifier]:
    torch.manual_seed(0)
    backbone = Pixels(8)
    classifier = Classifier(backbone.dim, 4, layers=2)
    with torch.no_grad():
        for tensor in classifier.state_dict().values():
            if tensor.is_floating_point():
                tensor += 0.3 * torch.randn_like(tensor).abs() if tensor.ndim == 1 else torch.randn_like(tensor)
    return backbone, classifier


def splits() -> tuple[TrainSplit, ValidationSplit, TestSplit]:
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pool = ResidentPool(labels=np.arange(40) % 4, ids=[str(i) for i in range(40)], images=images)
    return TrainSplit(pool, np.arange(10)), ValidationSplit(pool, np.arange(10, 20)), TestSplit(pool, np.arange(20, 40))


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_it_is_the_networks_own_answer(batch_size: int) -> None:
    backbone, classifier = network()
    train, validation, test = splits()
    frozen = FeatureExtractor(
        backbone, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), {}, batch_size=batch_size, classifier=classifier.train()
    )
    protocol, before = Protocol(), frozen.state_hash()
    assert protocol.refusal(frozen) is None
    (found,) = protocol.predict(frozen, protocol.fit(frozen, train, validation), test)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    pixels = test.pool.images[20:].float() / 255  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = classifier.eval()(((pixels - mean) / std).flatten(1)).argmax(1)
    assert found.labels.tolist() == expected.tolist() and len(set(expected.tolist())) > 1
    assert frozen.state_hash() == before


def test_a_network_without_one_is_refused_in_one_line() -> None:
    frozen = FeatureExtractor(network()[0], (0,) * 3, (1,) * 3, {})
    why = Protocol().refusal(frozen)
    assert why is not None and "simclrv2-finetune" in why and "\n" not in why
    with pytest.raises(UserError, match="--protocols classifier: this network has no classifier"):
        Protocol().fit(frozen, *splits()[:2])


def test_another_classifier_is_another_state_and_none_leaves_it_as_it_was() -> None:
    backbone, classifier = network()
    hashes = [FeatureExtractor(backbone, (0,) * 3, (1,) * 3, {}, classifier=c).state_hash() for c in (None, classifier)]
    assert hashes[0] == FeatureExtractor(backbone, (0,) * 3, (1,) * 3, {}).state_hash() != hashes[1]


def test_a_saved_classifier_is_the_same(tmp_path: Path) -> None:
    _, classifier = network()
    assert load_classifier(tmp_path) is None
    save_classifier(tmp_path, classifier, ("a", "b", "c", "d"))
    loaded = load_classifier(tmp_path)
    assert loaded is not None and loaded.names == ("a", "b", "c", "d")
    features = torch.randn(5, 192)
    assert torch.equal(loaded.eval()(features), classifier.eval()(features))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.json", "classifier.safetensors"]
    save_classifier(tmp_path / "other", Classifier(8, 3), ("a", "b", "c"))
    (tmp_path / "other" / "classifier.json").replace(tmp_path / "classifier.json")
    with pytest.raises(UserError, match="the classifier is damaged"):
        load_classifier(tmp_path)
