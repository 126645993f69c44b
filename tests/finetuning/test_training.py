"""Fine-tuning's pieces against MAE's and SimMIM's code, timm, and plain loops."""

import io
import math
import random
from dataclasses import replace
from typing import Any

import golden_files
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from golden_files import assert_close
from PIL import Image
from timm.optim._param_groups import param_groups_layer_decay
from torch import nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.pool import EncodedPool, ResidentPool
from ssl_bench.data.splits import TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.finetuning.images import Batch, Batches, drawing, posterize
from ssl_bench.finetuning.model import (
    FineTuneModel,
    Recipe,
    blocks,
    groups,
    layer_ids,
    optimizer,
    rate,
    set_drop_path,
    set_rate,
)
from ssl_bench.finetuning.training import Diverged, accuracy, cross_entropy, logits_of, mean_loss, tune
from ssl_bench.models.backbone import Backbone

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
VIT = BackboneOptions("vit_nano_patch4_32", img_size=8, patch_size=4, width=24, depth=3, num_heads=2)
SWIN = BackboneOptions(
    "swin_tiny_patch4_window7_224",
    img_size=32,
    patch_size=2,
    width=24,
    timm_args={"depths": [2, 2], "num_heads": [2, 3], "window_size": 4},
)
BEIT = BackboneOptions(
    "beit_base_patch16_224",
    img_size=32,
    patch_size=4,
    width=40,
    depth=2,
    num_heads=4,
    timm_args={"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, "use_abs_pos_emb": False},
)
RESNET = BackboneOptions("resnet18", img_size=8, timm_args={"channels": (8, 12, 16, 24)})
PLAIN = Recipe(
    epochs=4,
    warmup_epochs=1,
    batch_size=6,
    lr=2e-2,
    layer_decay=1.0,
    drop_path=0.0,
    mixup=0.0,
    cutmix=0.0,
    smoothing=0.0,
    randaugment=None,
    erase=0.0,
    scale=None,
    precision="32-true",
)


def built(options: BackboneOptions) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Backbone(options)


def frozen(options: BackboneOptions = VIT) -> FeatureExtractor:
    return FeatureExtractor(built(options), MEAN, STD, {}, batch_size=5, num_workers=0)


def images(count: int = 24, size: int = 8) -> ResidentPool:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    return ResidentPool(images=pixels, labels=np.arange(count) % 3, ids=[str(i) for i in range(count)])


def split(count: int = 24) -> TrainSplit:
    return TrainSplit(images(count), np.arange(count)[::-1].copy())


def theirs(name: str) -> str:
    """Our name of a parameter as the papers' code has it."""
    return name.removeprefix("backbone.model.")


# --- groups


def ours(model: FineTuneModel, decay: float) -> dict[str, dict[str, float]]:
    found = groups(model, decay, 0.05)
    return {
        theirs(name): {"lr_scale": group["lr_scale"], "weight_decay": group["weight_decay"]}
        for group in found
        for name in group["names"]
    }


@pytest.mark.parametrize("pooling", ["avg", "cls"])
def test_groups_are_those_of_maes_code(pooling: Any) -> None:
    record, _ = golden_files.load("mae_optim_groups")
    expected = record["layer_decay_groups"][f"global_pool_{pooling == 'avg'}.no_wd_timm"]["groups"]
    found = ours(FineTuneModel(built(VIT), 5, pooling), 0.75)
    assert found.keys() == expected.keys()
    for name, group in expected.items():
        assert found[name] == pytest.approx(group), name


@pytest.mark.parametrize(("case", "options"), [("simmim_vit", BEIT), ("simmim_swin", SWIN)])
def test_groups_are_those_of_simmims_code(case: str, options: BackboneOptions) -> None:
    record, _ = golden_files.load(case)
    expected = record["finetune_layer_decay_0p8"]["groups"]
    backbone = built(options)
    found = ours(FineTuneModel(backbone, 5, "cls" if case == "simmim_vit" else "avg"), 0.8)
    if backbone.is_swin:  # timm merges patches when a stage begins, SimMIM when one ends
        found = {name.replace("layers.1.downsample", "layers.0.downsample"): group for name, group in found.items()}
    head = {name: found.pop(name) for name in ("head.weight", "head.bias")}
    assert head["head.weight"] == {"lr_scale": 1.0, "weight_decay": 0.05}
    assert head["head.bias"] == {"lr_scale": 1.0, "weight_decay": 0.0}
    assert found.keys() == expected.keys() - {"mask_token"}  # which a method keeps, not the network
    for name, group in found.items():
        assert group == pytest.approx(expected[name]), name


def test_groups_are_timms() -> None:
    model: Any = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, num_classes=5)
    expected = {}
    named = {id(p): name for name, p in model.named_parameters()}
    for group in param_groups_layer_decay(
        model, weight_decay=0.05, layer_decay=0.7, no_weight_decay_list=model.no_weight_decay()
    ):
        for parameter in group["params"]:
            expected[named[id(parameter)]] = {name: group[name] for name in ("lr_scale", "weight_decay")}
    options = BackboneOptions("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4)
    found = ours(FineTuneModel(built(options), 5, "cls"), 0.7)
    for name in ("norm.weight", "norm.bias"):  # which timm counts to the last block, MAE and SimMIM to the head
        assert expected.pop(name)["lr_scale"] == pytest.approx(0.7) and found.pop(name)["lr_scale"] == 1
    assert found.keys() == expected.keys()
    for name, group in found.items():
        assert group == pytest.approx(expected[name]), name


@pytest.mark.parametrize("options", [VIT, BEIT, SWIN, RESNET], ids=lambda o: o.name)
def test_each_parameter_is_in_one_group_and_gets_a_gradient(options: BackboneOptions) -> None:
    model = FineTuneModel(built(options), 5)
    names = [name for group in groups(model, 0.5, 0.05) for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    for parameter in model.head.parameters():
        nn.init.normal_(parameter)  # so that something reaches the trunk
    model(torch.randn(4, 3, model.backbone.img_size, model.backbone.img_size)).square().sum().backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None]


def test_layers_of_a_resnet_are_its_stages() -> None:
    ids, top = layer_ids(FineTuneModel(built(RESNET), 5))
    assert top == 5
    found = {theirs(name): layer for name, layer in ids.items()}
    assert found["conv1.weight"] == found["bn1.bias"] == 0
    assert found["layer1.0.conv1.weight"] == found["layer1.1.bn2.weight"] == 1
    assert found["layer4.0.downsample.0.weight"] == 4 and found["head.weight"] == found["head.bias"] == 5


@pytest.mark.parametrize(
    ("options", "layers"), [(VIT, 4), (BEIT, 3), (SWIN, 5), (RESNET, 5)], ids=["vit", "beit", "swin", "resnet"]
)
def test_layer_decay_changes_the_steps(options: BackboneOptions, layers: int) -> None:
    """With SGD and the same gradient for all, a step is the rate: each layer's is 0.5 of the one above."""
    model = FineTuneModel(built(options), 5)
    recipe = replace(PLAIN, optimizer="sgd", momentum=0.0, weight_decay=0.0, layer_decay=0.5)
    sgd = optimizer(model, recipe)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_rate(sgd, 1.0)
    sgd.step()
    ids, top = layer_ids(model)
    assert top == layers and set(ids.values()) == set(range(layers + 1))
    for name, parameter in model.named_parameters():
        step = before[name] - parameter.detach()
        assert_close(step, torch.full_like(step, 0.5 ** (layers - ids[name])), relative=1e-5)


def test_weight_decay_spares_what_it_should() -> None:
    model = FineTuneModel(built(VIT), 5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adamw = optimizer(model, replace(PLAIN, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    set_rate(adamw, 0.1)
    adamw.step()
    for name, parameter in model.named_parameters():
        kept = parameter.ndim < 2 or theirs(name) in ("cls_token", "pos_embed")
        assert_close(parameter, before[name] * (1.0 if kept else 1 - 0.1 * 0.5))


def test_rates_are_those_of_maes_code() -> None:
    record, _ = golden_files.load("mae_optim_groups")
    model = FineTuneModel(built(VIT), 5)
    for case in record["lr_sched"]:
        steps = case["iters_per_epoch"]
        recipe = Recipe(case["epochs"], case["warmup"], lr=case["lr"], min_lr=case["min_lr"], layer_decay=0.5)
        adamw = optimizer(model, recipe)
        last = next(g for g in adamw.param_groups if g["lr_scale"] == 0.5)  # the last block
        head = next(g for g in adamw.param_groups if g["lr_scale"] == 1.0)
        for step, (_, plain, half) in enumerate(case["values"]):
            set_rate(adamw, rate(recipe, step, steps, 256))
            assert head["lr"] == pytest.approx(plain, rel=1e-9) and last["lr"] == pytest.approx(half, rel=1e-9)


def test_rate_begins_at_nothing_peaks_and_ends_at_the_least() -> None:
    recipe = Recipe(epochs=10, warmup_epochs=2.5, lr=1e-3, min_lr=1e-6)
    rates = [rate(recipe, step, 4, 512) for step in range(41)]
    assert rates[0] == 0 and rates[10] == max(rates) == pytest.approx(2e-3) and rates[40] == pytest.approx(1e-6)
    assert rates[5] == pytest.approx(1e-3)  # half of the warm-up
    assert rates[25] == pytest.approx((2e-3 + 1e-6) / 2)  # half of the cosine


# --- the network


@pytest.mark.parametrize("options", [VIT, BEIT, SWIN, RESNET], ids=["vit", "beit", "swin", "resnet"])
def test_drop_path_grows_linearly_whatever_there_was(options: BackboneOptions) -> None:
    backbone = built(replace(options, drop_path=0.5))
    set_drop_path(backbone, 0.3)
    every = blocks(backbone)
    found = [[m.drop_prob for m in block.modules() if hasattr(m, "drop_prob")] for block in every]
    for index, chances in enumerate(found):
        places = 1 if options is RESNET else 2
        assert chances == pytest.approx([0.3 * index / (len(every) - 1)] * (places if index else 0))
    set_drop_path(backbone, 0.0)
    assert not [m for m in backbone.modules() if hasattr(m, "drop_prob")]


def test_mean_patch_goes_through_a_fresh_norm_as_in_maes_fine_tuning() -> None:
    backbone = built(VIT)
    nn.init.normal_(backbone.model.get_parameter("norm.weight"))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        raw = backbone.features(x, ("avg_raw",))["avg_raw"]
        model = FineTuneModel(backbone, 5)
        expected = F.layer_norm(raw, (24,), eps=1e-6) @ model.head.weight.T
        assert_close(model(x), expected)
        embedded = backbone._embed(x, None, None, None)
        tokens = backbone._trunk(embedded, backbone.block_arguments(backbone._grid_of(x)))
        assert_close(model.classify(tokens), expected)
    assert model.pooling == "avg"


@pytest.mark.parametrize(("options", "feature_type"), [(VIT, "cls"), (SWIN, "avg"), (RESNET, "gap")])
def test_other_poolings_keep_the_networks_own_norm(options: BackboneOptions, feature_type: str) -> None:
    backbone = built(options).eval()
    x = torch.randn(2, 3, backbone.img_size, backbone.img_size)
    model = FineTuneModel(backbone, 5, "cls" if options is VIT else "avg").eval()
    with torch.no_grad():
        expected = backbone.features(x, (feature_type,))[feature_type] @ model.head.weight.T
        assert_close(model(x), expected)
    assert model.pooling == feature_type and isinstance(model.fc_norm, nn.Identity)


def test_head_starts_small_and_from_the_seed() -> None:
    weights = [FineTuneModel(built(VIT), 500, seed=seed).head.weight for seed in (0, 0, 1)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    assert weights[0].std().item() == pytest.approx(2e-5, rel=0.05)
    assert not FineTuneModel(built(VIT), 5).head.bias.any()


def test_a_pretrained_layer_lies_between_primary_features_and_head() -> None:
    first = nn.Sequential(nn.Linear(24, 40), nn.ReLU())
    backbone = built(VIT)
    x = torch.randn(2, 3, 8, 8)
    model = FineTuneModel(backbone, 5, first=first)
    assert model.head.in_features == 40 and model.pooling == "cls"
    with torch.no_grad():
        assert_close(model(x), first(backbone(x)) @ model.head.weight.T)
    assert layer_ids(model)[0]["first.0.weight"] == 4  # as fast as the head


def test_no_class_token_no_cls_pooling() -> None:
    backbone = built(replace(VIT, timm_args={"class_token": False, "global_pool": "avg"}))
    with pytest.raises(UserError, match="no class token"):
        FineTuneModel(backbone, 5, "cls")


# --- the images


def all_of(batches: Batches, epoch: int = 0) -> list[Batch]:
    return list(batches.epoch(epoch))


def test_untouched_images_are_normalised_and_targets_one_hot() -> None:
    some = split()
    found = all_of(Batches(some, PLAIN, 3, frozen()))
    assert [len(batch.images) for batch in found] == [6, 6, 6, 6]
    seen = torch.cat([batch.images for batch in found])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    expected = (some.pool.images.float() / 255 - mean) / std  # type: ignore[attr-defined]
    distance = (seen[:, None] - expected[None]).abs().amax((2, 3, 4))  # (24, 24)
    assert distance.amin(1).max() < 1e-5
    order = distance.argmin(1)
    assert sorted(order.tolist()) == list(range(24)) and order.tolist() != sorted(order.tolist())
    assert torch.cat([batch.targets for batch in found]).equal(F.one_hot(order % 3, 3).float())


def test_batches_follow_from_seed_epoch_and_batch_alone() -> None:
    recipe = Recipe(epochs=20, batch_size=6)
    first, second = (Batches(split(), recipe, 3, frozen()) for _ in range(2))
    torch.manual_seed(5)
    once = all_of(first, 1)
    torch.randn(3)
    all_of(second, 0)
    again = all_of(second, 1)
    assert all(a.images.equal(b.images) and a.targets.equal(b.targets) for a, b in zip(once, again, strict=True))
    other = all_of(second, 2)
    assert not any(a.images.equal(b.images) for a, b in zip(once, other, strict=True))
    reseeded = all_of(Batches(split(), replace(recipe, seed=1), 3, frozen()), 1)
    assert not any(a.images.equal(b.images) for a, b in zip(once, reseeded, strict=True))


def test_order_differs_from_epoch_to_epoch() -> None:
    batches = Batches(split(), PLAIN, 3, frozen())
    assert not torch.cat([b.images for b in all_of(batches, 0)]).equal(
        torch.cat([b.images for b in all_of(batches, 1)])
    )


@pytest.mark.parametrize("change", [{"scale": (0.08, 1.0)}, {"erase": 1.0}], ids=["crops", "erasing"])
def test_draws_differ_from_batch_to_batch_and_epoch_to_epoch(change: Any) -> None:
    """Of images that are all the same, so that nothing else tells batches apart."""
    pool = images(12)
    same = replace(pool, images=pool.images[:1].repeat(12, 1, 1, 1))
    batches = Batches(TrainSplit(same, np.arange(12)), replace(PLAIN, **change), 3, frozen())
    found = [batch.images for epoch in (0, 1) for batch in all_of(batches, epoch)]
    assert len(found) == 4 and not any(a.equal(b) for i, a in enumerate(found) for b in found[:i])


def test_random_numbers_of_the_process_stay_as_they_were() -> None:
    def drawn() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    model, recipe = (
        FineTuneModel(frozen().trainable(), 3, drop_path=0.5),
        Recipe(epochs=1, warmup_epochs=0, batch_size=6),
    )
    tune(model, Batches(split(), recipe, 3, frozen()), recipe)
    assert drawn() == expected


def test_each_epoch_sees_each_image_once_in_even_batches() -> None:
    batches = Batches(split(23), replace(PLAIN, mixup=0.8), 3, frozen())
    assert (batches.steps, batches.batch_size) == (4, 4)  # 23 = 4 x 5 + 3, and mixing wants pairs
    plain = Batches(split(23), PLAIN, 3, frozen())
    assert (plain.steps, plain.batch_size) == (4, 5)
    seen = torch.cat([batch.images for batch in all_of(plain)])
    assert len(seen) == 20 and len({tuple(image.flatten().tolist()) for image in seen}) == 20


def test_workers_prepare_the_same_photographs_as_this_process() -> None:
    """In this process and in two others: RandAugment's draws do not depend on where it runs."""
    pool = images(12, 16)
    photographs = EncodedPool(encoded=[png(pool.image(row)) for row in range(12)], labels=pool.labels, ids=pool.ids)
    recipe = Recipe(batch_size=6)
    found = []
    for workers in (0, 2):
        backbone = frozen()
        backbone.num_workers = workers
        batches = Batches(TrainSplit(photographs, np.arange(12)), recipe, 3, backbone)
        found.append([*all_of(batches, 0), *all_of(batches, 1)])
        batches.close()
    assert all(a.images.equal(b.images) for a, b in zip(*found, strict=True))
    # Left alone, photographs and images in memory are the same.
    alike = [all_of(Batches(TrainSplit(p, np.arange(12)), replace(PLAIN, batch_size=6), 3, frozen())) for p in (pool,)]
    assert alike[0][0].images.shape == (6, 3, 8, 8)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_broken_photographs_are_named() -> None:
    pool = EncodedPool(encoded=[b"no image"] * 6, labels=np.arange(6) % 3, ids=[f"photo{i}.png" for i in range(6)])
    with pytest.raises(UserError, match=r"broken image photo\d\.png"):
        all_of(Batches(TrainSplit(pool, np.arange(6)), PLAIN, 3, frozen()))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0)])
def test_mixed_images_and_targets_follow_the_formula(mixup: float, cutmix: float) -> None:
    """targets = lam smooth(y) + (1 - lam) smooth(y reversed), lam that of the pixels: for cutmix, the kept area."""
    recipe = replace(PLAIN, mixup=mixup, cutmix=cutmix, smoothing=0.1)
    batches = Batches(split(), recipe, 3, frozen())
    crops = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    crops[2:] = 255
    labels = torch.tensor([0, 1, 2, 2])
    smooth = torch.where(F.one_hot(labels, 3) > 0, 1 - 0.1 + 0.1 / 3, 0.1 / 3)
    for seed in range(5):
        images, targets = batches.finish(crops, labels, seed)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        pixels = images * std + mean  # 0 black, 1 white
        lam = 1 - pixels[0, 0].mean()  # the share that the black image kept
        assert 0 <= lam <= 1
        assert_close(targets, lam * smooth + (1 - lam) * smooth.flip(0), relative=1e-4)
        assert_close(targets.sum(1), torch.ones(4))
        share = pixels[0, 0]
        if cutmix:  # a box of whites
            assert ((share - share.round()).abs() < 1e-5).all()
            rows, columns = (share > 0.5).any(1).sum(), (share > 0.5).any(0).sum()
            assert (share > 0.5).sum() == rows * columns
        else:
            assert_close(share, torch.full_like(share, float(1 - lam)), relative=1e-4)


def test_half_of_the_batches_are_cut_and_the_lambdas_are_beta() -> None:
    batches = Batches(split(), replace(PLAIN, mixup=0.8, cutmix=1.0), 2, frozen())
    crops = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    crops[1] = 255
    cut, mixed = 0, []
    for seed in range(600):
        image = batches.finish(crops, torch.tensor([0, 1]), seed).images[0, 0] * STD[0] + MEAN[0]
        if image.min() < image.max() or image.min() in (0, 1):
            cut += 1
        else:
            mixed.append(float(image[0, 0]))
    assert abs(cut / 600 - 0.5) < 0.07
    assert np.var(mixed) == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.15)  # of Beta(0.8, 0.8)


def test_erasing_fills_a_rectangle_with_noise_in_a_quarter_of_the_images() -> None:
    batches = Batches(split(), replace(PLAIN, erase=0.25), 3, frozen())
    crops = torch.full((400, 3, 8, 8), 200, dtype=torch.uint8)
    images = batches.finish(crops, torch.zeros(400, dtype=torch.int64), 0).images
    untouched = batches.frozen.normalized(crops[:1] / 255)
    changed = (images != untouched).all(1)  # (400, 8, 8)
    erased = changed.flatten(1).any(1)
    assert abs(erased.float().mean() - 0.25) < 0.07
    area = changed[erased].float().mean((1, 2))
    assert area.min() > 0.01 and area.max() < 0.4
    noise = images.permute(0, 2, 3, 1)[changed]
    assert abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.1


def test_images_without_label_have_no_target() -> None:
    labelled = np.arange(24) < 8
    found = all_of(Batches(split(), PLAIN, 3, frozen(), labelled))
    assert int(torch.cat([batch.targets for batch in found]).sum()) == 8


def test_posterize_to_no_bits_is_black() -> None:
    image = Image.new("RGB", (2, 2), (200, 100, 50))
    assert not np.asarray(posterize(image, 0)).any()
    assert np.asarray(posterize(image, 1))[0, 0].tolist() == [128, 0, 0]


def test_unknown_randaugment_is_refused() -> None:
    with pytest.raises(UserError, match="randaugment 'strong'"):
        Batches(split(), replace(PLAIN, randaugment="strong"), 3, frozen())


# --- the loop


def test_ten_steps_are_those_of_a_plain_loop() -> None:
    recipe = replace(PLAIN, epochs=3, warmup_epochs=0.5, lr=0.1, weight_decay=0.1, min_lr=1e-4)
    batches = Batches(split(), recipe, 3, frozen())
    model = FineTuneModel(frozen().trainable(), 3)
    plain = FineTuneModel(frozen().trainable(), 3)
    bare = [p for n, p in plain.named_parameters() if p.ndim < 2 or n.endswith(("cls_token", "pos_embed"))]
    rest = [p for p in plain.parameters() if not any(p is other for other in bare)]
    adamw = torch.optim.AdamW([{"params": rest, "weight_decay": 0.1}, {"params": bare, "weight_decay": 0.0}], lr=0.1)
    peak, step, losses = 0.1 * 6 / 256, 0, []
    for epoch in range(3):
        for batch in all_of(batches, epoch):
            lr = peak * step / 2
            if step >= 2:
                lr = 1e-4 + (peak - 1e-4) * 0.5 * (1 + math.cos(math.pi * (step - 2) / 10))
            for group in adamw.param_groups:
                group["lr"] = lr
            loss = F.cross_entropy(plain(batch.images), batch.targets.argmax(1))
            adamw.zero_grad()
            torch.autograd.backward(loss)
            adamw.step()
            losses.append(loss.item())
            step += 1
    curve = tune(model, batches, recipe)
    assert step == 12 and curve["epoch"] == [1, 2, 3]
    assert curve["loss"] == pytest.approx([float(np.mean(losses[at : at + 4])) for at in (0, 4, 8)], rel=1e-4)
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if "qkv.bias" not in name:  # the gradient of the keys' bias is nothing but rounding
            assert_close(ours, theirs, relative=1e-3)


def test_training_twice_gives_the_same_and_ends_in_eval_mode() -> None:
    recipe = Recipe(epochs=2, warmup_epochs=1, batch_size=6, precision="32-true")
    some = split()
    validation = ValidationSplit(some.pool, np.arange(5))
    found = []
    for _ in range(2):
        model = FineTuneModel(frozen(RESNET).trainable(), 3, drop_path=0.5)
        curve = tune(model, Batches(some, recipe, 3, frozen(RESNET)), recipe, validation)
        assert not model.training
        found.append((curve, model.state_dict()))
    assert found[0][0] == found[1][0] and len(found[0][0]["validation accuracy"]) == 2
    assert all(found[0][1][name].equal(tensor) for name, tensor in found[1][1].items())


def test_running_statistics_are_learned_in_training_and_used_afterwards() -> None:
    model = FineTuneModel(frozen(RESNET).trainable(), 3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    batches = Batches(split(), PLAIN, 3, frozen(RESNET))
    tune(model, batches, PLAIN)
    assert int(model.get_buffer("backbone.model.bn1.num_batches_tracked")) == 16
    moved = [name for name, buffer in model.named_buffers() if not buffer.equal(before[name])]
    assert len(moved) == len(before)
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    together = logits_of(model, frozen(RESNET), split())
    alone = frozen(RESNET)
    alone.batch_size = 1
    assert_close(together, logits_of(model, alone, split()), relative=1e-4)
    assert all(buffer.equal(after[name]) for name, buffer in model.named_buffers())


def test_logits_come_in_the_splits_order_and_leave_the_mode() -> None:
    backbone, some = frozen(), split()
    model = FineTuneModel(backbone.trainable(), 3, drop_path=0.9)
    nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    found = logits_of(model, backbone, some)
    assert model.training
    model.eval()
    pixels = some.pool.images[torch.as_tensor(some.rows)].float() / 255  # type: ignore[attr-defined]
    with torch.no_grad():
        assert_close(found, model(backbone.normalized(pixels)))
    labels = found.argmax(1).numpy()
    assert accuracy(found, some) == (labels == some.labels).mean()
    assert mean_loss(found, some) == pytest.approx(float(F.cross_entropy(found, torch.as_tensor(some.labels))))


def test_a_rate_too_high_is_said() -> None:
    recipe = replace(PLAIN, lr=1e20, optimizer="sgd", epochs=3)
    with pytest.raises(Diverged, match="smaller lr"):
        tune(FineTuneModel(frozen().trainable(), 3), Batches(split(), recipe, 3, frozen()), recipe)


def test_gradients_are_clipped() -> None:
    steps = []
    for clip in (None, 1e-3):
        recipe = replace(PLAIN, optimizer="sgd", momentum=0.0, epochs=1, warmup_epochs=0, batch_size=24, clip=clip)
        recipe = replace(recipe, weight_decay=0.0, lr=1.0)
        model = FineTuneModel(frozen().trainable(), 3)
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        tune(model, Batches(split(), recipe, 3, frozen()), recipe)
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        steps.append(float((after - before).norm() / (24 / 256)))
    assert steps[0] > 0.01 and steps[1] == pytest.approx(1e-3, rel=0.01)


def test_loss_is_the_mean_over_images_with_a_target() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[1.0, 0, 0], [0.2, 0.3, 0.5], [0, 0, 0], [0, 0, 0]])
    expected = F.cross_entropy(logits[:2], targets[:2])
    assert_close(cross_entropy(logits, Batch(torch.empty(0), targets)), expected)
    assert cross_entropy(logits, Batch(torch.empty(0), torch.zeros(4, 3))) == 0


def test_drawing_restores_after_an_error() -> None:
    state = random.getstate()
    with pytest.raises(KeyError), drawing(3):
        random.random()
        raise KeyError
    assert random.getstate() == state


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"warmup_epochs": 100},
        {"batch_size": 0},
        {"lr": 0.0},
        {"layer_decay": 1.5},
        {"drop_path": 1.0},
        {"precision": "16"},
    ],
)
def test_impossible_recipes_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Recipe(**wrong)
