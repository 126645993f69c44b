"""Parallel heads against heads trained one by one, and against the official probe and optimiser."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load
from torch import Tensor, nn

from ssl_bench.evaluation.solvers import probe_heads
from ssl_bench.evaluation.solvers.probe_heads import Head, Heads, Norm, side_by_side


def blobs(count: int, dim: int = 12, classes: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (count,), generator=generator)
    centres = torch.randn(classes, dim, generator=generator)
    return (centres[labels] + 1.5 * torch.randn(count, dim, generator=generator)).to(dtype), labels


class OfficialLARS:
    """MAE's util/lars.py, line by line, without weight decay."""

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.9, trust: float = 0.001) -> None:
        self.params, self.lr, self.momentum, self.trust = params, lr, momentum, trust
        self.buffers = [torch.zeros_like(p) for p in params]

    @torch.no_grad()
    def step(self, schedule: float) -> None:
        for p, mu in zip(self.params, self.buffers, strict=True):
            dp = p.grad
            assert dp is not None
            if p.ndim > 1:
                param_norm, update_norm = torch.norm(p), torch.norm(dp)
                one = torch.ones_like(param_norm)
                q = torch.where(
                    param_norm > 0.0, torch.where(update_norm > 0, self.trust * param_norm / update_norm, one), one
                )
                dp = dp.mul(q)
            mu.mul_(self.momentum).add_(dp)
            p.add_(mu, alpha=-self.lr * schedule)


class TorchSGD:
    """PyTorch's own."""

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        self.lr, self.inner = lr, torch.optim.SGD(params, lr, momentum=0.9)

    def step(self, schedule: float) -> None:
        self.inner.param_groups[0]["lr"] = self.lr * schedule
        self.inner.step()


def alone(start: Tensor, optimizer: Callable, lr: float, batches: list[tuple[Tensor, Tensor]]) -> nn.Linear:
    """One head by PyTorch's own layer, loss and gradients; a cosine to 0."""
    head = nn.Linear(start.shape[1], len(start), dtype=start.dtype)
    nn.init.zeros_(head.bias)
    head.weight.data.copy_(start)
    steps = optimizer([head.weight, head.bias], lr)
    for step, (inputs, labels) in enumerate(batches):
        head.zero_grad()
        F.cross_entropy(head(inputs), labels).backward()
        steps.step(0.5 * (1 + math.cos(math.pi * step / len(batches))))
    return head


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    ("optimizer", "trust", "rates"),
    [(TorchSGD, None, (1e-4, 0.01, 0.3, 0.05)), (OfficialLARS, 0.001, (0.1, 3.0, 1.0, 0.3))],
)
def test_parallel_heads_equal_heads_trained_alone(
    optimizer: Callable, trust: float | None, rates: tuple[float, ...], dtype: torch.dtype, tolerance: float
) -> None:
    inputs, labels = blobs(300, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    huge = 1e38 if dtype == torch.float32 else 1e308
    lrs = [rates[0], huge, *rates[1:]]  # the second diverges
    starts = 0.01 * torch.randn(len(lrs), 4, 12, generator=generator).to(dtype)
    chosen = [torch.randperm(300, generator=generator)[:64] for _ in range(150)]
    batches = [(inputs[rows], labels[rows]) for rows in chosen]
    heads = Heads(starts, lrs, trust=trust)
    for step, batch in enumerate(batches):
        heads.step(*batch, 0.5 * (1 + math.cos(math.pi * step / len(batches))))
    accuracy, loss = heads.score(inputs, labels)
    norm = Norm(torch.zeros(12, dtype=dtype), torch.ones(12, dtype=dtype))
    for h, lr in enumerate(lrs):
        expected, found = alone(starts[h], optimizer, lr, batches), heads.head(h, "cls", norm)
        if lr == huge:
            assert not expected.weight.isfinite().all() and not found.weight.isfinite().all()
            assert accuracy[h].isnan() and not loss[h].isfinite()
            continue
        assert (found.weight - expected.weight).abs().max() < tolerance
        assert (found.bias - expected.bias).abs().max() < tolerance
        moved = (found.weight - starts[h]).norm() / starts[h].norm()
        assert moved > 0.05 or lr < 1e-3, "nothing was learned that could differ"
        logits = expected(inputs)
        torch.testing.assert_close(found.logits(inputs), logits, rtol=1e-4, atol=1e-4)
        assert loss[h].item() == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
        assert accuracy[h].item() == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    assert 0.5 < accuracy[2] < 1


def test_lars_of_the_official_mae() -> None:
    """Its fully connected layer as the second of two heads; weight decay, which a probe has not, is in the gradient."""
    record, tensors = load("mae_lars")
    c = record["config"]
    weight, bias = tensors["w0.fc.weight"], tensors["w0.fc.bias"]
    other = torch.randn(*weight.shape, generator=torch.Generator().manual_seed(0))
    heads = Heads(torch.stack([10 * other, weight]), [3.0, 1.0], c["mom"], trust=c["tc"])
    heads.bias[:, 1] = bias
    for step, lr in enumerate(c["lrs"]):
        decayed = tensors[f"g{step}.fc.weight"] + c["wd"] * heads.weight[:, 1]
        gradient, bias_gradient = torch.stack([other, decayed], 1), tensors[f"g{step}.fc.bias"]
        heads.update(gradient, torch.stack([2 * bias_gradient, bias_gradient], 1), lr)
        for name, found in (("weight", heads.weight[:, 1]), ("bias", heads.bias[:, 1])):
            official = f"w{step + 1}.fc.{name}"
            assert_close(found, tensors[official], record["noise"][official]["max_abs"])
    assert_close(heads.weight_buffer[:, 1], tensors["mu.fc.weight"], record["noise"]["mu.fc.weight"]["max_abs"])
    assert_close(heads.bias_buffer[:, 1], tensors["mu.fc.bias"], record["noise"]["mu.fc.bias"]["max_abs"])


def test_a_head_whose_weights_are_0_takes_the_plain_step() -> None:
    heads = Heads(torch.zeros(2, 3, 2), [1.0, 2.0], trust=0.001)
    heads.update(torch.ones(3, 2, 2), torch.ones(3, 2), 0.5)
    assert torch.equal(heads.weight[:, 0], torch.full((3, 2), -0.5)) and (heads.weight[:, 1] == -1).all()
    assert torch.equal(heads.bias, torch.tensor([[-0.5, -1.0]] * 3))


def test_logits_of_the_official_mae() -> None:
    """Batch norm and layer of its probe: batch statistics in training, running ones in evaluation, before and after.

    The running statistics on record are those after the training pass, 0.9 times those before and 0.1 the batch's.
    """
    record, tensors = load("mae_features")
    features, layer = tensors["out.cls"], (tensors["w.head.weight"], tensors["w.head.bias"])
    after = tensors["bn_head.after.running_mean"], tensors["bn_head.after.running_var"]
    batch = features.mean(0), features.var(0)  # unbiased, as PyTorch keeps it
    moments = {
        "train_logits": (batch[0], features.var(0, correction=0)),
        "eval_logits_before": ((after[0] - 0.1 * batch[0]) / 0.9, (after[1] - 0.1 * batch[1]) / 0.9),
        "eval_logits_after": after,
    }
    for case, (mean, variance) in moments.items():
        found = Head("cls", Norm.of(mean, variance), *layer).logits(features)
        assert_close(found, tensors[f"bn_head.{case}"], record["noise"]["logits_cls"]["max_abs"])


def test_norm_is_an_affine_free_batch_norm() -> None:
    features = blobs(200)[0] * torch.logspace(-2, 2, 12) + 100
    features[:, 5] = 3.0  # no variance
    theirs = nn.BatchNorm1d(12, eps=1e-6, affine=False).double().train()
    ours = Norm.of(features.double().mean(0), features.double().var(0, correction=0))
    torch.testing.assert_close(ours(features), theirs(features.double()).float(), rtol=1e-4, atol=1e-3)
    still = Norm.of(torch.zeros(2), torch.tensor([0.0, 3e-6]))
    torch.testing.assert_close(still(torch.tensor([[1e-3, 1e-3]])), torch.tensor([[1.0, 0.5]]))  # epsilon is 1e-6


def test_scores_do_not_depend_on_how_many_images_are_scored_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = blobs(101)
    heads = Heads(torch.randn(3, 4, 12, generator=torch.Generator().manual_seed(0)), [1.0] * 3)
    whole = heads.score(inputs, labels)
    logits = torch.einsum("nd,khd->hnk", inputs, heads.weight)
    assert torch.equal(whole[0], (logits.argmax(2) == labels).double().mean(1))
    for values in (1, 12 * 7):
        monkeypatch.setattr(probe_heads, "LOGITS", values)
        found = heads.score(inputs, labels)
        assert torch.equal(found[0], whole[0])
        torch.testing.assert_close(found[1], whole[1])


def test_heads_keep_nothing_of_one_another() -> None:
    """What is taken out does not move on with the others."""
    inputs, labels = blobs(64)
    heads = Heads(torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0)), [1.0, 0.5])
    taken = heads.head(1, "avg", Norm(torch.zeros(12), torch.ones(12)))
    before = taken.logits(inputs).clone()
    torch.testing.assert_close(before, heads.logits(inputs)[:, 1].T)
    heads.step(inputs, labels, 1.0)
    assert torch.equal(taken.logits(inputs), before) and taken.feature_type == "avg"


def test_features_side_by_side() -> None:
    embedded = {"cls": torch.ones(2, 3), "avg": torch.zeros(2, 2), "cls_4": torch.full((2, 5), 4.0)}
    assert torch.equal(side_by_side(embedded, "cls+avg"), torch.tensor([[1.0, 1, 1, 0, 0]] * 2))
    assert side_by_side(embedded, "cls_4") is embedded["cls_4"]
