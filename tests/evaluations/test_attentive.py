"""The attentive probe's heads against CAE's own code, loops and heads trained alone; its protocol on small images."""

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load, weights
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.pool import EncodedPool, ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.evaluation.solvers.attention_heads import (
    AttentiveHeads,
    CrossAttentionPool,
    HeadOptimizer,
    QueryPool,
    exact_statistics,
)
from ssl_bench.evaluation.token_bank import TokenBank, rounded
from ssl_bench.evaluations import attentive
from ssl_bench.evaluations.attentive import Attentive, Head, divisor
from ssl_bench.models.backbone import Backbone
from ssl_bench.runtime.seeds import derive

D, K = 12, 3
VIT = BackboneOptions(name="vit_pico_patch4_32", img_size=8, patch_size=4, width=24, depth=1, num_heads=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cae_heads(heads: int = 1, dim: int = D, num_heads: int = 3, classes: int = K, seed: int = 0) -> AttentiveHeads:
    generator = seeded(seed)
    return AttentiveHeads(CrossAttentionPool(heads, dim, num_heads, generator), heads, dim, classes, 1e-5, generator)


def ep_heads(heads: int = 1, dim: int = D, queries: int = 4, classes: int = K, seed: int = 0) -> AttentiveHeads:
    generator = seeded(seed)
    return AttentiveHeads(QueryPool(heads, dim, queries, generator), heads, dim, classes, 1e-6, generator)


def perturbed(module: nn.Module) -> nn.Module:
    """The same with random numbers in all parameters, so that none is at a value that hides an error."""
    generator = seeded(9)
    for parameter in module.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return module


# --- CAE's head


@pytest.fixture
def golden() -> tuple[AttentiveHeads, dict[str, Tensor], dict[str, Any]]:
    """CAE's probe with the official weights, and the running statistics it had at first."""
    record, tensors = load("cae_probe")
    probe = weights(tensors, "probe.")
    heads = cae_heads(dim=32, num_heads=record["config"]["heads"], classes=record["config"]["nc"])
    pool = heads.pool
    block = weights(probe, "attentive_blocks.0.")
    theirs = {name: block[f"{name[:7]}.{name[8:]}"] for name in dict(pool.named_parameters()) if name[:4] == "norm"}
    attention = weights(block, "cross_attn.")
    theirs |= {name: attention[name] for name in ("q_bias", "v_bias")}
    theirs |= {name: attention[f"{name}.weight"] for name in ("q", "k", "v", "proj")}
    theirs |= {"proj_bias": attention["proj.bias"], "query_token": probe["query_token"][0, 0]}
    pool.load_state_dict({name: tensor[None] for name, tensor in theirs.items()})
    # Their running statistics are on record after one call in train mode: r' = 0.9 r + 0.1 of the batch's.
    after = [tensors[f"out.running_{name}_after_one_train_call"] for name in ("mean", "var")]
    found = tensors["out.query_out"]
    before = [(a - 0.1 * b) / 0.9 for a, b in zip(after, (found.mean(0), found.var(0)), strict=True)]
    own = {"weight": probe["head.weight"], "bias": probe["head.bias"], "mean": before[0], "variance": before[1]}
    heads.load_state_dict({name: tensor[None] for name, tensor in own.items()}, strict=False)
    assert (record["fc_norm_eps"], record["fc_norm_momentum"]) == (heads.eps, 0.1)
    return heads, tensors, record["noise"]


def test_caes_probe(golden: Any) -> None:
    heads, tensors, noise = golden
    tokens = tensors["out.tokens"]
    assert_close(heads.pool(tokens)[:, 0], tensors["out.query_out"], noise["query_out"]["max_abs"])
    heads.eval()
    logits = heads(tokens)[:, 0]
    assert_close(logits, tensors["out.logits_eval"], noise["logits_eval"]["max_abs"])
    assert_close(torch.cat([heads(tokens[i : i + 1])[:, 0] for i in range(2)]), logits.detach())


def test_caes_probe_in_train_mode_takes_the_batchs_statistics(golden: Any) -> None:
    """What CAE's own evaluation does, and ours must not; training does."""
    heads, tensors, noise = golden
    heads.train()
    logits = heads(tensors["out.tokens"])[:, 0]
    recorded = noise["logits_default_is_train_call"]["max_abs"]
    assert_close(logits, tensors["out.logits_default_is_train_call"], recorded)
    assert_close(heads.mean[0], tensors["out.running_mean_after_one_train_call"])
    assert_close(heads.variance[0], tensors["out.running_var_after_one_train_call"])
    assert (logits - tensors["out.logits_eval"]).abs().max() > 0.01, "these weights would not tell them apart"


def test_cae_starts_as_a_mean_of_all_tokens() -> None:
    heads = cae_heads()
    tokens = torch.randn(2, 5, D, generator=seeded())
    shuffled = tokens[:, [3, 1, 4, 0, 2]]
    torch.testing.assert_close(heads.pool(tokens), heads.pool(shuffled))
    assert not heads.pool.query_token.any()
    assert 0.015 < heads.pool.q.std() < 0.025 and 0.005 < heads.weight.std() < 0.015


# --- efficient probing's head


def ep_in_loops(tokens: Tensor, queries: Tensor, v: Tensor) -> Tensor:
    """(T, D) tokens, (Q, D) queries, (D, D) values -> (D,), one number at a time."""
    count, dim = tokens.shape
    width = dim // len(queries)
    out = torch.zeros(dim, dtype=tokens.dtype)
    values = [[sum(v[o, i] * tokens[t, i] for i in range(dim)) for o in range(dim)] for t in range(count)]
    for q, query in enumerate(queries):
        scores = [sum(query[i] * tokens[t, i] for i in range(dim)) / math.sqrt(dim) for t in range(count)]
        total = sum(math.exp(score) for score in scores)
        for channel in range(q * width, (q + 1) * width):
            out[channel] = sum(math.exp(scores[t]) / total * values[t][channel] for t in range(count))
    return out


def test_efficient_probing_in_loops() -> None:
    pool = perturbed(QueryPool(2, D, 4, seeded()).double())
    tokens = 2 * torch.randn(3, 5, D, generator=seeded(1), dtype=torch.float64)
    found = pool(tokens)
    assert found.shape == (3, 2, D)
    with torch.no_grad():
        for image in range(3):
            for head in range(2):
                expected = ep_in_loops(tokens[image], pool.queries[head], pool.v[head])
                torch.testing.assert_close(found[image, head], expected, rtol=1e-12, atol=1e-12)


def test_efficient_probings_size() -> None:
    """Parameters at D = 768 and 1000 classes: D^2 + QD + DC + C, 1.383 M."""
    heads = ep_heads(dim=768, queries=32, classes=1000)
    assert sum(p.numel() for p in heads.parameters()) == 768**2 + 32 * 768 + 768 * 1000 + 1000
    assert heads.pool.queries.std().item() == pytest.approx(0.02, rel=0.05) and not heads.bias.any()


# --- many heads at once


class One(nn.Module):
    """A head by itself, of PyTorch's own layers, reading and learning the weights of one of ours."""

    def __init__(self, ours: AttentiveHeads, head: int) -> None:
        super().__init__()
        pool, dim, classes = ours.pool, ours.weight.shape[2], ours.weight.shape[1]
        self.own = nn.ParameterDict({name: p.detach()[head].clone() for name, p in pool.named_parameters()})
        self.groups = pool.num_heads if isinstance(pool, CrossAttentionPool) else pool.queries.shape[1]
        self.norm = nn.BatchNorm1d(dim, eps=ours.eps, affine=False, dtype=ours.weight.dtype)
        self.classifier = nn.Linear(dim, classes, dtype=ours.weight.dtype)
        self.classifier.weight.data, self.classifier.bias.data = (
            t.detach()[head].clone() for t in (ours.weight, ours.bias)
        )

    def pooled(self, tokens: Tensor) -> Tensor:
        w, (images, _, dim) = self.own, tokens.shape
        split = lambda x: x.unflatten(-1, (self.groups, -1)).transpose(1, 2)  # noqa: E731  (B, T, D) -> (B, G, T, D/G)
        if "queries" in w:
            scores = w["queries"] @ tokens.transpose(1, 2) / math.sqrt(dim)  # (B, G, T)
            return (scores.softmax(2)[:, :, None] @ split(tokens @ w["v"].T)).flatten(1)
        normed = [F.layer_norm(tokens, (dim,), w[f"norm1_{x}_weight"], w.get(f"norm1_{x}_bias"), 1e-6) for x in "kv"]
        query = F.layer_norm(w["query_token"], (dim,), w["norm1_q_weight"], w["norm1_q_bias"], 1e-6)
        q = split(F.linear(query, w["q"], w["q_bias"]).expand(images, 1, dim))
        k, v = split(F.linear(normed[0], w["k"])), split(F.linear(normed[1], w["v"], w["v_bias"]))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, 0]
        return F.linear(attended, w["proj"], w["proj_bias"])

    def forward(self, tokens: Tensor) -> Tensor:
        return self.classifier(self.norm(self.pooled(tokens)))


def images_of_tokens(count: int, classes: int = K, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Noise, and somewhere in each image one token that tells its class."""
    generator = seeded(3)
    labels = torch.randint(0, classes, (count,), generator=generator)
    tokens = torch.randn(count, 6, D, generator=generator, dtype=dtype)
    places = torch.randint(0, 6, (count,), generator=generator)
    tokens[torch.arange(count), places] += 4 * torch.randn(classes, D, generator=generator, dtype=dtype)[labels]
    return tokens, labels


@pytest.mark.parametrize("kind", ["cae", "ep"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_parallel_heads_equal_heads_trained_alone(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    tokens, labels = images_of_tokens(64, dtype=dtype)
    rates = [0.03, 1e38 if dtype == torch.float32 else 1e308, 0.1]  # the second diverges
    heads = {"cae": cae_heads, "ep": ep_heads}[kind](3).to(dtype)
    for p in heads.pool.parameters():
        p.data += 0.3 * torch.randn(p.shape[1:], generator=seeded(5)).to(dtype)
    alone = [One(heads, h) for h in range(3)]
    optimizer = HeadOptimizer(heads, rates)
    batches = [torch.randperm(64, generator=seeded(step))[:24] for step in range(20)]
    for step, rows in enumerate(batches):
        optimizer.step(heads.train().loss(tokens[rows], labels[rows]), 1 - step / 20)
    for h in (0, 2):
        one = alone[h]
        own = torch.optim.SGD(one.parameters(), 1.0, 0.9)
        for step, rows in enumerate(batches):
            own.zero_grad()
            F.cross_entropy(one(tokens[rows]), labels[rows]).backward()
            for group in own.param_groups:
                group["lr"] = rates[h] * (1 - step / 20)
            own.step()
        for name, parameter in heads.pool.named_parameters():
            assert (parameter[h] - one.own[name]).abs().max() < tolerance, name
        assert (heads.weight[h] - one.classifier.weight).abs().max() < tolerance
        assert (heads.bias[h] - one.classifier.bias).abs().max() < tolerance
        torch.testing.assert_close(heads.mean[h], one.norm.running_mean, rtol=0, atol=10 * tolerance)
        torch.testing.assert_close(heads.variance[h], one.norm.running_var, rtol=1e-4, atol=10 * tolerance)
        assert (heads.weight[h] - _fresh(kind, dtype).weight[0]).abs().max() > 100 * tolerance, "it has learned"
    accuracy, loss = heads.score([(tokens[:40], labels[:40]), (tokens[40:], labels[40:])])
    assert accuracy[1].isnan() and not loss[1].isfinite()
    picked = heads.pick(2)
    logits = picked(tokens)[:, 0]
    assert loss[2].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert accuracy[2].item() == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert accuracy[[0, 2]].isfinite().all() and not any(p.requires_grad for p in picked.parameters())


def _fresh(kind: str, dtype: torch.dtype) -> AttentiveHeads:
    return {"cae": cae_heads, "ep": ep_heads}[kind]().to(dtype)


@pytest.mark.parametrize("make", [cae_heads, ep_heads])
def test_statistics_are_exact_whatever_the_batches(make: Callable[..., AttentiveHeads]) -> None:
    heads = perturbed(make(2))
    tokens, _ = images_of_tokens(50, dtype=torch.float32)
    with torch.no_grad():
        expected = heads.pool(tokens).double()  # (50, 2, D)
    for sizes in ([50], [1] * 50, [7, 30, 13]):
        heads.mean.fill_(3.0)
        exact_statistics([heads], tokens.split(sizes))
        torch.testing.assert_close(heads.mean.double(), expected.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(heads.variance.double(), expected.var(0, unbiased=False), rtol=1e-5, atol=1e-6)


def test_several_kinds_share_a_pass_over_the_images() -> None:
    tokens, _ = images_of_tokens(20, dtype=torch.float32)
    both = [perturbed(cae_heads()), perturbed(ep_heads())]
    alone = copy.deepcopy(both)
    exact_statistics(both, iter(tokens.split(8)))
    for together, one in zip(both, alone, strict=True):
        exact_statistics([one], tokens.split(8))
        assert torch.equal(together.mean, one.mean) and torch.equal(together.variance, one.variance)


# --- tokens


@pytest.mark.parametrize("power", [-100, -20, 0, 20, 100])
def test_tokens_of_any_size_survive_float16(power: int) -> None:
    tokens = torch.randn(4, 5, 8, generator=seeded()) * 2.0**power
    tokens[1:, 1:3] *= 2.0**-20  # beside others
    halves, scales = rounded(tokens)
    assert halves.dtype == torch.float16 and halves.abs().max() <= 1 and scales.shape == (4, 5, 1)
    back = halves.float() * scales
    assert ((back - tokens).abs() <= tokens.abs().amax(2, keepdim=True) * 2**-10).all()
    assert torch.equal(rounded(torch.zeros(1, 2, 3))[0], torch.zeros(1, 2, 3, dtype=torch.float16))


def coloured(count: int, seed: int = 0) -> tuple[Tensor, np.ndarray]:
    """(N, 3, 8, 8) uint8 noise in which one 4 x 4 corner has the colour of the image's class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % K
    images = 90 + 25 * rng.normal(size=(count, 3, 8, 8))
    for image, label in enumerate(labels):
        top, left = 4 * rng.integers(0, 2, 2)
        images[image, label, top : top + 4, left : left + 4] += 130
    return torch.tensor(np.clip(images, 0, 255), dtype=torch.uint8), labels


def splits(train: int = 72, validation: int = 30, test: int = 30) -> tuple[TrainSplit, ValidationSplit, TestSplit]:
    images, labels = coloured(train + validation + test)
    pool = ResidentPool(images=images, labels=labels, ids=[str(i) for i in range(len(labels))])
    rows = np.arange(len(labels))
    first, second = train, train + validation
    return TrainSplit(pool, rows[:first]), ValidationSplit(pool, rows[first:second]), TestSplit(pool, rows[second:])


def frozen(options: BackboneOptions = VIT, batch_size: int = 32) -> FeatureExtractor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FeatureExtractor(Backbone(options), (0.4,) * 3, (0.2,) * 3, {}, batch_size=batch_size)


def test_tokens_are_the_backbones_in_the_order_asked_for() -> None:
    backbone, train = frozen(), splits()[0]
    train = dataclasses.replace(train, rows=train.rows[::-1].copy())
    images = next(iter(backbone.batches(dataclasses.replace(train, rows=train.rows))))[0]
    order = torch.tensor([5, 0, 31, 7])
    for again, room in ((False, 0), (True, 0), (True, 10**9)):
        found = list(TokenBank(backbone, room, unit=2.0).batches(train, None, order, 3, again))
        assert [len(batch) for batch in found] == [3, 1]
        expected = backbone.tokens(images)[order] / 2
        torch.testing.assert_close(torch.cat(found), expected, rtol=2e-3, atol=2e-3)
    views = [torch.cat(list(TokenBank(backbone, 0).batches(train, v, order, 4))) for v in (None, 0, 1)]
    expected = torch.cat([b for b, _ in backbone.batches(train, view=1)])[order]
    torch.testing.assert_close(views[2], backbone.tokens(expected), rtol=2e-3, atol=2e-3)
    assert not torch.allclose(views[0], views[1], atol=0.1) and not torch.allclose(views[1], views[2], atol=0.1)


def test_tokens_are_computed_once_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as many splits and views as fit: 72 images x 5 tokens x (24 halves and a float32) are 18,720 bytes."""
    backbone, (train, validation, _) = frozen(batch_size=8), splits()
    seen: list[int] = []
    original = FeatureExtractor.tokens
    monkeypatch.setattr(FeatureExtractor, "tokens", lambda self, x: seen.append(len(x)) or original(self, x))

    def images(tokens: TokenBank, *what: Any) -> int:
        seen.clear()
        assert sum(len(batch) for batch in tokens.batches(*what)) == 10
        return sum(n for n in seen if n > 1)  # but for the one that tells how many tokens an image has

    some = torch.arange(10)
    tokens = TokenBank(backbone, 2 * 18_720 - 1)
    assert images(tokens, train, 0, some, 4, False) == 10
    assert images(tokens, train, 0, some, 4, True) == 72
    assert images(tokens, train, 0, some, 4, True) == 0
    assert images(tokens, train, 1, some, 4, True) == 10, "no room for another view"
    assert images(tokens, validation, None, some, 4, True) == 30, "there is for fewer images"
    assert images(tokens, validation, None, some, 4, True) == 0
    assert backbone.used["tokens"].images == 10 + 72 + 10 + 30
    assert backbone.used["tokens"].flops == (10 + 72 + 10 + 30) * backbone.flops_per_image


@pytest.mark.integration
def test_the_same_heads_with_and_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for room in (10**9, 0):
        monkeypatch.setattr(attentive, "MEMORY", room)
        fit = QUICK().fit(frozen(), *splits()[:2])
        found.append(fit)
    for one, other in zip(*(fit.state.best for fit in found), strict=True):
        assert (one.kind, one.lr) == (other.kind, other.lr)
        torch.testing.assert_close(one.heads.weight, other.heads.weight, rtol=1e-3, atol=1e-4)


# --- the protocol


def QUICK(**given: Any) -> Attentive:  # noqa: N802
    lrs = given.pop("lrs", (0.3, 3.0))
    quick = {"iterations": 60, "batch_size": 24, "views": 2, "points": 3, "cae_lrs": lrs, "ep_lrs": lrs}
    return Attentive(**quick | given)


def test_what_it_learns_is_where_to_look() -> None:
    """The class is in one of four corners; and the probe says all that it did."""
    protocol, (train, validation, test) = QUICK(iterations=150, ep_lrs=(0.1,)), splits(180, 60, 60)
    backbone = frozen()
    assert protocol.refusal(backbone) is None
    fit = protocol.fit(backbone, train, validation)
    predictions = {p.variant: p.labels for p in protocol.predict(backbone, fit, test)}
    assert list(predictions) == ["chosen", "cae", "ep"]
    assert torch.equal(predictions["chosen"], predictions[fit.chosen["head"]])
    for labels in predictions.values():
        assert (labels.numpy() == test.labels).mean() > 0.8
    assert fit.grid == {"head": ["cae", "ep"], "lr cae": [0.3, 3.0], "lr ep": [0.1]}
    best, *per_kind = fit.state.best
    assert fit.chosen == {"head": best.kind, "lr cae": per_kind[0].lr, "lr ep": 0.1}
    assert fit.curve["lr of cae"] == [0.3, 3.0] and fit.curve["lr of ep"] == [0.1]
    assert (
        max(fit.curve[f"validation accuracy of {best.kind}"]) == best.accuracy == fit.curve["validation accuracy"][-1]
    )
    assert fit.at_grid_boundary == (best.kind == "cae") and best is min(per_kind, key=lambda head: head.order)
    assert fit.curve["step"] == [50, 100, 150] and len(fit.curve["validation accuracy"]) == 3
    assert fit.curve["validation accuracy"][-1] == best.accuracy == max(h.accuracy for h in fit.state.best)


def test_training_is_plain_sgd_on_batches_of_tokens() -> None:
    """By PyTorch's layers and optimiser: train mode, rate x batch / 256, warm-up and cosine, a permutation an epoch."""
    rates, steps, size = {"cae": 0.3, "ep": 3.0}, 36, 24
    protocol = QUICK(iterations=steps, cae_lrs=(0.3,), ep_lrs=(3.0,), views=0, points=2)
    backbone, (train, validation, _) = frozen(), splits()
    fit = protocol.fit(backbone, train, validation)
    reader = TokenBank(backbone, 0, fit.state.unit)
    tokens = torch.cat(list(reader.batches(train, None, torch.arange(72), 72)))
    orders = [torch.randperm(72, generator=seeded(derive(0, 1, epoch))) for epoch in range(12)]
    batches = [rows for order in orders for rows in order.split(size)]
    labels = torch.tensor(train.labels)
    for head in fit.state.best[1:]:
        one = One(protocol._heads(backbone, K)[head.kind], 0)
        own = torch.optim.SGD(one.parameters(), 1.0, momentum=0.9)
        for step in range(steps):
            schedule = step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / (steps - 4)))
            own.param_groups[0]["lr"] = rates[head.kind] * size / 256 * schedule
            own.zero_grad()
            F.cross_entropy(one(tokens[batches[step]]), labels[batches[step]]).backward()
            own.step()
        found = dict(head.heads.pool.named_parameters())
        assert all((found[name][0] - p).abs().max() < 1e-4 for name, p in one.own.items())
        assert (head.heads.weight[0] - one.classifier.weight).abs().max() < 1e-4
        assert (head.heads.bias[0] - one.classifier.bias).abs().max() < 1e-4
        assert head.heads.weight.abs().max() > 0.1, "it has learned"


@pytest.mark.parametrize("better", ["cae", "ep"])
def test_the_kind_is_chosen_too(better: str) -> None:
    rates = {"cae_lrs": (1e-6,), "ep_lrs": (1e-6,)} | {f"{better}_lrs": (1.0,)}
    protocol, backbone, (train, validation, test) = QUICK(**rates), frozen(), splits()
    fit = protocol.fit(backbone, train, validation)
    assert fit.chosen["head"] == better and fit.state.best[0].kind == better
    predictions = {p.variant: p.labels for p in protocol.predict(backbone, fit, test)}
    assert torch.equal(predictions["chosen"], predictions[better])
    assert not torch.equal(predictions["cae"], predictions["ep"])


def test_the_last_steps_heads_have_the_train_images_statistics() -> None:
    backbone, (train, validation, test) = frozen(), splits()
    protocol = QUICK()
    fit = protocol.fit(backbone, train, validation)
    tokens = TokenBank(backbone, 0, fit.state.unit)
    everyone = torch.cat(list(tokens.batches(train, None, torch.arange(len(train)), 50)))
    held_out = torch.cat(list(tokens.batches(validation, None, torch.arange(len(validation)), 50)))
    for head in fit.state.best:
        pooled = head.heads.pool(everyone).double()
        torch.testing.assert_close(head.heads.mean.double(), pooled.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(head.heads.variance.double(), pooled.var(0, unbiased=False), rtol=1e-4, atol=1e-5)
        accuracy = (head.heads(held_out)[:, 0].argmax(1).numpy() == validation.labels).mean()
        assert head.accuracy == pytest.approx(accuracy)
    before = copy.deepcopy(fit.state.best[0].heads.state_dict())
    protocol.predict(backbone, fit, test)
    assert all(torch.equal(v, before[k]) for k, v in fit.state.best[0].heads.state_dict().items())


def test_the_scale_of_tokens_does_not_matter() -> None:
    train, validation, test = splits()
    protocol, found = QUICK(iterations=30), []
    for scale in (1, 2**10):
        backbone = frozen()
        for parameter in (backbone.network.model.norm.weight, backbone.network.model.norm.bias):
            parameter.data *= scale
        fit = protocol.fit(backbone, train, validation)
        found.append((fit.state.unit, [p.labels for p in protocol.predict(backbone, fit, test)]))
    (unit, labels), (larger, same) = found
    assert larger == pytest.approx(2**10 * unit, rel=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(labels, same, strict=True))


def test_predictions_do_not_depend_on_the_batch() -> None:
    """Of any size, in any order, of one class alone: CAE's own evaluation fails this."""
    protocol, (train, validation, test) = QUICK(iterations=20), splits()
    fit = protocol.fit(frozen(), train, validation)
    labels = {size: [p.labels for p in protocol.predict(frozen(batch_size=size), fit, test)] for size in (1, 7, 256)}
    by_class = np.argsort(test.labels, kind="stable")
    ordered = protocol.predict(frozen(batch_size=10), fit, dataclasses.replace(test, rows=test.rows[by_class]))
    for variant in range(3):
        assert torch.equal(labels[1][variant], labels[7][variant])
        assert torch.equal(labels[1][variant], labels[256][variant])
        assert torch.equal(labels[1][variant][by_class], ordered[variant].labels)


def test_ties_go_to_the_lower_loss_then_the_lower_lr() -> None:
    found = ((1, 0.5, 0.1), (1, 0.6, 0.5), (3, 0.6, 0.4), (2, 0.6, 0.4))  # lr, accuracy, loss
    heads = [Head("cae", cae_heads(), *x, [], []) for x in found]
    assert sorted(heads, key=lambda head: head.order) == [heads[3], heads[2], heads[1], heads[0]]


def test_the_choice_is_the_selection_splits() -> None:
    """Whose labels here are others than the training images': what has learned nothing does better there."""
    train, validation, test = splits()
    pool = dataclasses.replace(validation.pool, labels=validation.pool.labels.copy())
    pool.labels[validation.rows] = (validation.labels + 1) % K
    protocol, backbone = QUICK(lrs=(1e-6, 3.0)), frozen()
    fit = protocol.fit(backbone, train, dataclasses.replace(validation, pool=pool))
    assert fit.chosen["lr cae"] == fit.chosen["lr ep"] == 1e-6
    fit = protocol.fit(backbone, train, validation)
    assert fit.chosen["lr cae"] == fit.chosen["lr ep"] == 3.0


def test_diverged_heads_are_never_chosen() -> None:
    train, validation, _ = splits()
    alone, together = (QUICK(lrs=lrs).fit(frozen(), train, validation) for lrs in ((0.3,), (0.3, 1e38)))
    for one, other in zip(alone.state.best, together.state.best, strict=True):
        assert (one.kind, one.lr) == (other.kind, other.lr) == (one.kind, 0.3)
        torch.testing.assert_close(other.heads.weight, one.heads.weight, rtol=0, atol=1e-5)
    assert together.at_grid_boundary and not alone.at_grid_boundary
    assert together.curve["lr of cae"] == [0.3], "of those that did not diverge"
    with pytest.raises(UserError, match="diverged: give smaller cae_lrs"):
        QUICK(lrs=(1e38,), iterations=5).fit(frozen(), train, validation)


def test_epochs_go_round_the_views(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int | None, int, bool]] = []
    orders: set[tuple[int, ...]] = set()
    train, validation, _ = splits()

    class Spy(TokenBank):  # type: ignore[misc]
        def batches(self, split: Any, view: int | None, order: Tensor, size: int, again: bool = False) -> Any:
            if isinstance(split, TrainSplit):
                asked.append((view, len(order), again))
                assert len(set(order.tolist())) == len(order)
                orders.add(tuple(order.tolist()[:20]))
            return super().batches(split, view, order, size, again)

    monkeypatch.setattr(attentive, "TokenBank", Spy)
    QUICK(iterations=10, batch_size=20).fit(frozen(), train, validation)  # 3 batches an epoch, 12 images left out
    unit, *training = asked
    assert unit[:2] == (None, 20)
    assert training[:4] == [(0, 60, True), (1, 60, True), (0, 60, True), (1, 20, True)]
    assert training[4:] == [(None, 72, False)], "statistics, of all images as they are"
    assert len(orders) == len(asked), "each epoch has its own"
    asked.clear()
    QUICK(iterations=5, batch_size=500, views=0).fit(frozen(), train, validation)  # fewer images than that
    assert [a[:2] for a in asked[1:]] == [(None, 72)] * 6


@pytest.mark.parametrize(
    ("options", "heads", "queries"),
    [
        (VIT, 2, 24),
        (BackboneOptions(name="resnet_micro", img_size=8), 3, 32),
        (BackboneOptions(name="swin_pico_patch2_32", img_size=32), 3, 24),
    ],
)
def test_each_kind_of_network(options: BackboneOptions, heads: int, queries: int) -> None:
    backbone = frozen(options)
    found, other = (QUICK(seed=seed)._heads(backbone, K) for seed in (0, 1))
    assert all(not torch.equal(found[kind].weight, other[kind].weight) for kind in found)
    assert (found["cae"].eps, found["ep"].eps) == (1e-5, 1e-6)
    assert found["cae"].pool.num_heads == heads and found["ep"].pool.queries.shape[1] == queries
    size = backbone.img_size
    tokens = backbone.tokens(torch.rand(2, 3, size, size)).clone()
    assert all(each(tokens).shape == (2, 2, K) for each in found.values())


def test_divisors() -> None:
    assert [divisor(*x) for x in ((768, 32), (24, 32), (100, 32), (7, 3), (192, 3))] == [32, 24, 25, 1, 3]


@pytest.mark.integration
def test_photographs_are_decoded_by_workers(tmp_path: Any) -> None:
    from PIL import Image

    images, labels = coloured(24)
    files = []
    for at, image in enumerate(images):
        files.append(str(tmp_path / f"{at}.png"))
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((16, 12)).save(files[-1])
    pool = EncodedPool(labels=labels, ids=files, encoded=files)
    rows = np.arange(24)
    train, validation, test = (
        TrainSplit(pool, rows[:12]),
        ValidationSplit(pool, rows[12:18]),
        TestSplit(pool, rows[18:]),
    )
    protocol = QUICK(iterations=3, batch_size=6)
    backbone = frozen()
    fit = protocol.fit(backbone, train, validation)
    assert protocol.predict(backbone, fit, test)[0].labels.shape == (6,)


def test_tokens_that_are_not_numbers() -> None:
    backbone = frozen()
    backbone.network.model.norm.weight.data.fill_(math.nan)
    with pytest.raises(UserError, match="not finite"):
        QUICK().fit(backbone, *splits()[:2])


def test_pixels_are_refused() -> None:
    pixels = FeatureExtractor(Pixels(8), (0.5,) * 3, (0.25,) * 3, {})
    assert "raw pixels have no tokens" in str(Attentive().refusal(pixels))


def test_seeds() -> None:
    train, validation, _ = splits()
    first, again, other = (
        QUICK(iterations=5, seed=seed).fit(frozen(), train, validation).state.best[1].heads.weight for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_empty_selection_split() -> None:
    train, validation, _ = splits()
    with pytest.raises(UserError, match="val_fraction"):
        QUICK().fit(frozen(), train, dataclasses.replace(validation, rows=validation.rows[:0]))


@pytest.mark.parametrize(
    "options",
    [
        {"iterations": 0},
        {"queries": 0},
        {"points": 0},
        {"cae_lrs": ()},
        {"ep_lrs": ()},
        {"views": -1},
        {"batch_size": 1},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Attentive(**options)
