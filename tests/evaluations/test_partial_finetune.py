"""Partial fine-tuning: what learns, and that sharing the trunk changes nothing."""

import itertools
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TestSplit, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.evaluations.linear import Linear
from ssl_bench.evaluations.partial_finetune import PartialFinetune, area, fewest
from ssl_bench.finetuning.images import Batches
from ssl_bench.finetuning.model import FineTuneModel, Recipe, set_drop_path
from ssl_bench.finetuning.shared_trunk import Top, logits_of_all, states, tune_together
from ssl_bench.finetuning.training import VALIDATION, Diverged, tune
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.stages import blocks

SIZE, CLASSES = 8, 3
OPTIONS = {
    "vit": BackboneOptions("vit_nano_patch4_32", img_size=SIZE, patch_size=2, width=24, depth=3, num_heads=2),
    "beit": BackboneOptions("beit_nano_patch4_32", img_size=SIZE, patch_size=2, width=24, depth=3, num_heads=2),
    "swin": BackboneOptions("swin_pico_patch2_32", img_size=SIZE, timm_args={"window_size": 2}),
    "resnet": BackboneOptions("resnet18", img_size=SIZE, timm_args={"channels": (8, 8, 16, 16)}),
}
# With all that makes batches random but RandAugment, which is slow, and stochastic depth, on which others decide.
RECIPE = Recipe(
    epochs=5, warmup_epochs=1, batch_size=16, lr=0.02, drop_path=0.0, randaugment=None, precision="32-true", seed=3
)
QUICK: dict[str, Any] = {"warmup_epochs": 0.5, "batch_size": 32, "lr": 0.02, "randaugment": None}
QUICK |= {"precision": "32-true", "epochs": (2,)}

Splits = tuple[TrainSplit, ValidationSplit, TestSplit]


def coloured(contrast: float) -> Splits:
    """Noisy images whose colour tells their class: 32 to train on, two steps of an epoch."""
    rng = np.random.default_rng(0)
    labels = np.arange(80) % CLASSES
    bright = contrast * np.eye(CLASSES)[labels][:, :, None, None]  # one channel
    images: np.ndarray = 60.0 + bright + 25 * rng.normal(size=(80, 3, SIZE, SIZE))
    pool = ResidentPool(
        images=torch.tensor(images.clip(0, 255), dtype=torch.uint8), labels=labels, ids=[str(i) for i in range(80)]
    )
    rows = np.arange(80)
    return TrainSplit(pool, rows[:32]), ValidationSplit(pool, rows[32:50]), TestSplit(pool, rows[50:])


@pytest.fixture(scope="module")
def splits() -> Splits:
    return coloured(contrast=120)


def frozen(name: str = "vit", **identity: str) -> FeatureExtractor:
    torch.manual_seed(0)
    network = Backbone(OPTIONS[name])
    with torch.no_grad():
        for parameter in network.parameters():  # relative positions and others start at zero
            parameter += 0.02 * torch.randn_like(parameter)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that a pass in train mode would not give
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return FeatureExtractor(network, (0.5,) * 3, (0.25,) * 3, dict(identity))


def top(target: FeatureExtractor, depth: float, recipe: Recipe = RECIPE, pooling: Any = "avg") -> Top:
    return Top(FineTuneModel(target.trainable(), CLASSES, pooling, recipe.drop_path, recipe.seed), depth, recipe)


def trained(target: FeatureExtractor, depths: list[float], splits: Splits, recipe: Recipe = RECIPE) -> list[Top]:
    tops = [top(target, depth, recipe) for depth in depths]
    tune_together(tops, Batches(splits[0], recipe, CLASSES, target), splits[1], "test")
    return tops


class Still(nn.Module):
    """A part of a network that stays in eval mode and forgets stochastic depth."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part.eval()
        for module in part.modules():
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0  # type: ignore[assignment]

    def train(self, mode: bool = True) -> "Still":
        return self

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.part(*given, **named)


def by_itself(target: FeatureExtractor, name: str, depth: float, splits: Splits, recipe: Recipe) -> dict[str, Tensor]:
    """A depth trained on the whole network by `finetuning.tune`, with what must not learn frozen by hand: its weights.

    Blocks below the cut are wrapped; ``.part`` goes from their names again.
    """
    model = FineTuneModel(target.trainable(), CLASSES, "avg", recipe.drop_path, recipe.seed)
    network: Any = model.backbone.model
    every = blocks(model.backbone)
    learns = ["fc_norm.", "head.", "backbone.model.norm."]
    if depth == 0.5:
        prefix = next(n for n, m in model.named_modules() if m is every[-1])
        learns += [f"{prefix}.norm2", f"{prefix}.mlp", f"{prefix}.ls2", f"{prefix}.gamma_2"]
    else:
        kept = every[len(every) - int(depth) :]
        learns += [f"{n}." for n, m in model.named_modules() if any(m is block for block in kept)]
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter_name.startswith(tuple(learns)))
    below = every[: len(every) - int(np.ceil(depth))]
    for parent in list(model.modules()):
        for child_name, child in list(parent.named_children()):
            if any(child is block for block in below):
                setattr(parent, child_name, Still(child))
    if name == "resnet":
        network.bn1 = Still(network.bn1)
    if depth == 0.5:
        every[-1].drop_path1 = nn.Identity()
    tune(model, Batches(splits[0], recipe, CLASSES, target), recipe)
    return {n.replace(".part", ""): v for n, v in model.state_dict().items()}


# --- what learns, and how


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "depths"), [("vit", [0.5, 1, 2]), ("beit", [0.5, 2]), ("swin", [0.5, 2, 3]), ("resnet", [1, 2, 4])]
)
def test_together_is_as_one_by_one(name: str, depths: list[float], splits: Splits) -> None:
    """Ten steps of every depth on a shared trunk, against whole networks trained one by one."""
    target = frozen(name)
    before = target.state_hash()
    start = target.network.state_dict()
    tops = trained(target, depths, splits)
    assert target.state_hash() == before
    for some, depth in zip(tops, depths, strict=True):
        alone = by_itself(target, name, depth, splits, RECIPE)
        own, learns = some.model.state_dict(), {n for n, p in some.model.named_parameters() if p.requires_grad}
        for parameter, value in own.items():
            torch.testing.assert_close(value, alone[parameter], atol=1e-5, rtol=0, msg=f"{depth} {parameter}")
            source = start.get(parameter.removeprefix("backbone."))
            if source is None:
                continue
            if parameter in learns:
                assert not torch.equal(value, source), f"{depth}: {parameter} has not learned"
            elif "running" not in parameter and "num_batches" not in parameter:
                assert torch.equal(value, source), f"{depth}: {parameter} has changed"


@pytest.mark.integration
@pytest.mark.parametrize("name", OPTIONS)
def test_all_blocks_are_full_fine_tuning(name: str, splits: Splits) -> None:
    """Ten steps with stochastic depth and clipped gradients, bit for bit, next to a depth that shares the batches."""
    target, recipe = frozen(name), _with(drop_path=0.3, clip=0.05)
    total = len(blocks(target.network))  # type: ignore[arg-type]
    found = trained(target, [1, total], splits, recipe)[1]
    model = FineTuneModel(target.trainable(), CLASSES, "avg", recipe.drop_path, recipe.seed)
    curve = tune(model, Batches(splits[0], recipe, CLASSES, target), recipe, splits[1])
    assert curve["epoch"] == [1, 2, 3, 4, 5]
    assert found.curve["loss"] == pytest.approx(curve["loss"]) and found.curve[VALIDATION] == curve[VALIDATION]
    for parameter, value in model.state_dict().items():
        assert torch.equal(found.model.state_dict()[parameter], value), parameter


def test_stochastic_depth_of_the_blocks_that_learn_alone(splits: Splits) -> None:
    recipe = _with(drop_path=0.4)
    target = frozen()
    for some, depth in zip(trained(target, [0.5, 2], splits, recipe), (0.5, 2), strict=True):
        alone = by_itself(target, "vit", depth, splits, recipe)
        for parameter, value in some.model.state_dict().items():
            torch.testing.assert_close(value, alone[parameter], atol=1e-5, rtol=0, msg=f"{depth} {parameter}")
    # Different from no stochastic depth, so that it was there.
    assert not torch.equal(some.model.head.weight, trained(target, [2], splits)[0].model.head.weight)


def test_the_trunk_knows_no_stochastic_depth_and_moves_no_statistics(splits: Splits) -> None:
    target = frozen()
    set_drop_path(target.network, 0.9)  # type: ignore[arg-type]  # as if pretrained with it
    plain = frozen()
    with_it, without = (trained(some, [1], splits)[0].model.state_dict() for some in (target, plain))
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_at_half_a_block_exactly_these_tensors_learn() -> None:
    mlp = {f"{part}.{feature_type}" for part in ("norm2", "mlp.fc1", "mlp.fc2") for feature_type in ("weight", "bias")}
    expected = {f"backbone.model.blocks.2.{name}" for name in mlp} | {"head.weight", "head.bias"}
    norms = {"avg": "fc_norm", "cls": "backbone.model.norm"}
    for name, (pooling, norm) in itertools.product(("vit", "beit"), norms.items()):
        some = top(frozen(name), 0.5, pooling=pooling)
        more = {"backbone.model.blocks.2.gamma_2"} if name == "beit" else set()
        learns = {n for n, p in some.model.named_parameters() if p.requires_grad}
        assert learns == expected | more | {f"{norm}.weight", f"{norm}.bias"}
        assert some.optimizer is not None
        grouped = [n for group in some.optimizer.param_groups for n in group["names"]]
        assert sorted(grouped) == sorted(learns)
        assert some.trainable == sum(p.numel() for n, p in some.model.named_parameters() if n in learns)


def test_rates_are_those_of_full_fine_tuning() -> None:
    """Block i of L has decay^(L - i), the head 1, whatever k is."""
    for depth in (0.5, 1, 2):
        some = top(frozen(), depth, _with(layer_decay=0.5))
        assert some.optimizer is not None
        scales = {name: group["lr_scale"] for group in some.optimizer.param_groups for name in group["names"]}
        expected = {0.5: {"2"}, 1: {"2"}, 2: {"1", "2"}}[depth]
        assert {name.split(".")[3] for name in scales if "blocks" in name} == expected
        for name, scale in scales.items():
            assert scale == (0.5 ** (3 - int(name.split(".")[3])) if "blocks" in name else 1.0), name


def test_shared_relative_positions_learn_with_all_blocks_alone() -> None:
    for depth in (0.5, 2, 3):
        table = top(frozen("beit"), depth).model.backbone.model.rel_pos_bias  # type: ignore[union-attr]
        assert all(p.requires_grad == (depth == 3) for p in table.parameters())  # type: ignore[union-attr]


def test_batch_norms_below_the_cut_keep_their_statistics_above_it_they_learn(splits: Splits) -> None:
    target = frozen("resnet")
    start = target.network.state_dict()
    own = trained(target, [2], splits)[0].model.backbone.state_dict()
    for name, value in own.items():
        if "running" in name:
            assert torch.equal(value, start[name]) == (not name.startswith("model.layer4.")), name


def test_fewer_epochs_end_earlier_as_if_alone(splits: Splits) -> None:
    target, short = frozen(), _with(epochs=2)
    tops = [top(target, 1, RECIPE), top(target, 1, short)]
    tune_together(tops, Batches(splits[0], RECIPE, CLASSES, target), splits[1], "test")
    alone = trained(target, [1], splits, short)[0]
    assert tops[0].curve["epoch"][-1] == 5 and tops[1].curve["epoch"][-1] == 2
    for parameter, value in alone.model.state_dict().items():
        assert torch.equal(tops[1].model.state_dict()[parameter], value), parameter
    assert not torch.equal(tops[0].model.head.weight, tops[1].model.head.weight)


def test_logits_do_not_depend_on_the_company(splits: Splits) -> None:
    """Nor on which other depths look at the same images."""
    target = frozen("resnet")
    tops = trained(target, [1, 4], splits)
    together = logits_of_all(tops, target, splits[2])
    for some, logits in zip(tops, together, strict=True):
        assert torch.equal(logits_of_all([some], target, splits[2])[0], logits)
    one = logits_of_all(tops, target, TestSplit(splits[2].pool, splits[2].rows[4:5]))
    torch.testing.assert_close(one[1][0], together[1][4], atol=1e-5, rtol=0)


def test_one_pass_of_the_trunk_for_all_depths(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []

    def counted(network: Backbone, images: Tensor, depths: Collection[float]) -> dict[float, Tensor]:
        passes.append(len(images))
        return states(network, images, depths)

    monkeypatch.setattr("ssl_bench.finetuning.shared_trunk.states", counted)
    trained(frozen(), [0.5, 1, 2, 3], splits)
    assert passes.count(16) == 10 and len(passes) == 15  # ten steps, and the validation split after each epoch


def test_a_depth_that_diverges_is_left_out_and_all_are_an_error(splits: Splits) -> None:
    """The others learn as if it had not been there."""
    target = frozen()
    wild, tame = top(target, 1, _with(lr=float("inf"))), top(target, 2, RECIPE)
    tune_together([wild, tame], Batches(splits[0], RECIPE, CLASSES, target), splits[1], "test")
    assert wild.diverged is not None and wild.diverged <= 2 and tame.diverged is None
    (alone,) = trained(frozen(), [2], splits)
    assert tame.curve == alone.curve
    with pytest.raises(Diverged, match="test diverged by epoch .*: give a smaller lr"):
        trained(frozen(), [1, 2], splits, _with(lr=float("inf")))


@pytest.mark.parametrize("depth", [1.0, 2.0])
def test_the_page_goes_on_without_a_depth_that_diverged(
    depth: float, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not without that whose number is the protocol's, k = 2 here."""
    original = PartialFinetune._top

    def wild(self: Any, backbone: Any, classes: int, k: float, pooling: Any, recipe: Recipe) -> Top:
        lr = float("inf") if k == depth else recipe.lr
        return original(self, backbone, classes, k, pooling, replace(recipe, lr=lr))

    monkeypatch.setattr(PartialFinetune, "_top", wild)
    page, target = PartialFinetune(**QUICK, depths=(0.5, 1.0, 2.0, float("inf"))), frozen(method="mae")
    if depth == 2:
        with pytest.raises(Diverged, match="of k2, its number, diverged"):
            page.fit(target, *splits[:2])
        return
    fit = page.fit(target, *splits[:2])
    variants = [prediction.variant for prediction in page.predict(target, fit, splits[2])]
    assert variants == ["k2", "k0.5", "all", "k2-cls"]
    assert fit.curve["k"] == [0.5, 2, 3] and len(fit.curve[VALIDATION]) == 3
    assert fit.curve["k1 diverged by epoch"][0] in (1, 2) and "k1 loss" not in fit.curve


def _with(**changes: Any) -> Recipe:
    return Recipe(**{name: getattr(RECIPE, name) for name in RECIPE.__dataclass_fields__} | changes)


# --- the evaluation


def test_variants_and_curve(splits: Splits) -> None:
    target = frozen(method="mae")
    page = PartialFinetune(**QUICK)
    fit = page.fit(target, *splits[:2])
    variants = [prediction.variant for prediction in page.predict(target, fit, splits[2])]
    assert variants == ["k2", "k0.5", "k1", "all", "k2-cls", "k0"]  # the most blocks below 4 that are not all
    curve = fit.curve
    assert curve["k"] == [0, 0.5, 1, 2, 3]
    counts = [fit.state.tops[name].trainable for name in ("k0.5", "k1", "k2", "all")]
    assert curve["trainable"] == [24 * 3 + 3, *counts] == sorted(curve["trainable"])
    # Width 24: an MLP of 96, norms of 48; attention of 3 x 24 and 24 outputs.
    mlp, head, norm = 24 * 96 + 96 + 96 * 24 + 24, 24 * 3 + 3, 48
    block = mlp + 2 * norm + 4 * (24 * 24 + 24)
    assert counts[:3] == [mlp + norm + norm + head, block + norm + head, 2 * block + norm + head]
    for place, name in enumerate(("k0.5", "k1", "k2", "all"), start=1):
        assert len(curve[f"{name} {VALIDATION}"]) == len(curve[f"{name} epoch"]) == 2
        assert curve[f"{name} {VALIDATION}"][-1] == curve[VALIDATION][place]
    assert curve["area"] == [area([int(count) for count in curve["trainable"]], curve[VALIDATION])]
    assert curve["k*"] == [fewest(curve["k"], curve[VALIDATION])]
    assert not fit.chosen and not fit.grid


def test_selection_accuracies_are_those_of_its_predictions(splits: Splits) -> None:
    """What is stored as accuracy on the validation split is what the same heads predict there."""
    target, page = frozen("resnet"), PartialFinetune(**QUICK)
    fit = page.fit(target, *splits[:2])
    as_test = TestSplit(splits[1].pool, splits[1].rows)
    found = {p.variant: float((p.labels.numpy() == as_test.labels).mean()) for p in page.predict(target, fit, as_test)}
    assert list(found) == ["k4", "k1", "k2", "all", "k0"]
    by_depth = dict(zip(fit.curve["k"], fit.curve[VALIDATION], strict=True))
    assert by_depth == {0: found["k0"], 1: found["k1"], 2: found["k2"], 4: found["k4"], 8: found["all"]}


def test_area_by_hand() -> None:
    # At log2(1 + n) = 2, 4 and 5: trapezoids of 2 x 0.5 and 1 x 0.7.
    assert area([3, 15, 31], [0.4, 0.6, 0.8]) == pytest.approx(1.0 + 0.7)


def test_fewest_blocks_within_half_a_point() -> None:
    assert fewest([0, 0.5, 1, 2], [0.7, 0.794, 0.795, 0.8]) == 1
    assert fewest([0, 1, 2], [0.9, 0.7, 0.8]) == 0
    assert fewest([0, 1, 2], [0.1, 0.2, 0.8]) == 2


@pytest.mark.integration
def test_epochs_are_chosen_on_the_selection_split() -> None:
    target, splits = frozen(), coloured(contrast=5)  # so faint that epochs matter
    page = PartialFinetune(**QUICK | {"epochs": (6, 1), "depths": (0.5, 1, np.inf), "warmup_epochs": 0.0})
    fit = page.fit(target, *splits[:2])
    last = {}
    for epochs in (1, 6):
        alone = PartialFinetune(**QUICK | {"epochs": (epochs,), "depths": (0.5, 1, np.inf), "warmup_epochs": 0.0})
        curve = alone.fit(target, *splits[:2]).curve
        last[epochs] = {name: curve[f"{name} {VALIDATION}"][-1] for name in ("k0.5", "k1", "all")}
    for name in ("k0.5", "k1", "all"):
        better = 6 if last[6][name] > last[1][name] else 1  # of equals the shorter
        assert fit.chosen[f"epochs {name}"] == better and fit.grid[f"epochs {name}"] == [1, 6]
        assert fit.curve[f"{name} {VALIDATION}"][-1] == last[better][name] and fit.curve[f"{name} epoch"][-1] == better
    assert fit.at_grid_boundary
    assert last[1] != last[6], "a problem on which the choice matters"


def test_no_blocks_is_the_linear_probe_of_mae(splits: Splits) -> None:
    target = frozen()
    page = PartialFinetune(**QUICK | {"depths": (0, 0.5)})
    fit = page.fit(target, *splits[:2])
    linear = Linear(iterations=1, lrs=(0.1,), feature_types=("cls",))
    other = linear.fit(target, *splits[:2]).state["mae"]
    assert fit.state.probe is not None
    torch.testing.assert_close(fit.state.probe.weight, other.weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(fit.state.probe.bias, other.bias, atol=1e-6, rtol=1e-5)
    assert fit.features == ("cls",)
    expected = {p.variant: p.labels for p in linear.predict(target, linear.fit(target, *splits[:2]), splits[2])}
    found = {p.variant: p.labels for p in page.predict(target, fit, splits[2])}
    assert torch.equal(found["k0"], expected["mae"])


@pytest.mark.parametrize(
    ("method", "option", "pooled"),
    [
        ("mae", "auto", "avg"),
        ("simmim", "auto", "avg"),
        ("random", "auto", "avg"),
        ("dino", "auto", "cls"),
        ("simclr", "auto", "cls"),
        ("dino", "avg", "avg"),
        ("mae", "cls", "cls"),
    ],
)
def test_pooling(method: str, option: Any, pooled: str) -> None:
    page = PartialFinetune(**QUICK | {"pooling": option})
    primary, wanted = page._wanted(frozen(method=method), (0, 0.5, 1, 3))
    other = "cls" if pooled == "avg" else "avg"
    own = {"k0.5": (0.5, pooled), "k1": (1, pooled), "all": (3, pooled)}
    assert primary == "k1" and wanted == own | {f"k1-{other}": (1, other)}
    assert page._wanted(frozen("resnet", method=method), (1, 8))[1] == {"k1": (1, "avg"), "all": (8, "avg")}


def test_the_headline_is_four_blocks_or_the_most_below() -> None:
    page, deep = PartialFinetune(**QUICK), frozen("resnet")  # eight blocks
    assert page._wanted(deep, (0, 0.5, 1, 2, 4, 6, 8))[0] == "k4"
    assert page._wanted(deep, (0, 1, 3, 6, 8))[0] == "k3"
    assert page._wanted(frozen(), (0, 0.5, 1, 2, 3))[0] == "k2"  # three are all
    assert page._wanted(deep, (0, 8))[0] == "all"
    assert page._wanted(deep, (6, 8))[0] == "k6"


def test_depths_that_do_not_exist_are_left_out() -> None:
    page = PartialFinetune(**QUICK | {"depths": (np.inf, 12.0, 2.0, 0.5, 1.5)})
    assert page._depths(frozen()) == (0.5, 2, 3)
    assert page._depths(frozen("resnet")) == (2, 8)
    with pytest.raises(UserError, match="none of the depths"):
        PartialFinetune(**QUICK | {"depths": (0.0, 12.0)})._depths(frozen())


def test_what_it_refuses(splits: Splits) -> None:
    assert PartialFinetune().refusal(FeatureExtractor(Pixels(8), (0.5,) * 3, (0.5,) * 3, {})) is not None
    assert all(PartialFinetune().refusal(frozen(name)) is None for name in OPTIONS)
    assert PartialFinetune(pooling="cls").refusal(frozen("swin")) is not None
    for options in ({"depths": (0.0,)}, {"epochs": ()}, {"epochs": (3,)}):  # fewer than the warm-up
        with pytest.raises(ValueError):
            PartialFinetune(**options)
    empty = ValidationSplit(splits[1].pool, splits[1].rows[:0])
    with pytest.raises(UserError, match="validation split"):
        PartialFinetune(**QUICK).fit(frozen(), splits[0], empty)
