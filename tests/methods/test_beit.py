"""BEiT against the official code: outputs, an epoch of steps, initial weights, the statistics of its blocks."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close, load, weights
from official_steps import check_gradients, check_losses, check_state, our_name, renamed, take_steps
from small import views_of
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions, Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.beit import BEiT
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.tokenizers import Tokenizer
from ssl_bench.optim.optimizers import StepSchedule
from ssl_bench.pretraining.masks import block_masks

NAMES = {"mask_token": "mask_token", "lm_head.": "lm_head.", "": "backbone.model."}
POSITIONS = {  # absolute, a table per block, one table for all
    "absolute": {"use_abs_pos_emb": True, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": False},
    "per block": {"use_abs_pos_emb": False, "use_rel_pos_bias": True, "use_shared_rel_pos_bias": False},
    "shared": {"use_abs_pos_emb": False, "use_rel_pos_bias": False, "use_shared_rel_pos_bias": True},
}


def network(size: int = 32, positions: str = "shared", **given: Any) -> Backbone:
    args = POSITIONS[positions] | {"init_values": 0.1} | given.pop("timm_args", {})
    sizes: dict[str, Any] = {"patch_size": 4, "width": 24, "depth": 2, "num_heads": 3}
    return Backbone(BackboneOptions("beit_base_patch16_224", img_size=size, timm_args=args, **sizes | given))


def beit(size: int = 32, positions: str = "shared", **given: Any) -> BEiT:
    torch.manual_seed(0)
    return BEiT(network(size, positions), **given)


class Brightness(Tokenizer):
    """Names a patch of 2 x 2 pixels by its brightness, and remembers what it saw."""

    vocabulary, stride = 11, 2
    seen: list[Tensor] = []

    def visual_tokens(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        return (10 * F.avg_pool2d(images.mean(1, keepdim=True), 2)[:, 0]).round().long()


# The official code


def official() -> tuple[BEiT, dict[str, Any], dict[str, Tensor]]:
    record, tensors = load("beit_pretrain")
    c = record["config"]
    assert (c["abs"], c["rel"], c["srel"]) == (False, False, True)
    size = {"patch_size": c["patch"], "width": c["dim"], "depth": c["depth"], "num_heads": c["heads"]}
    args = {"mlp_ratio": c["mlp"], "init_values": c["init_values"]}
    rates = {"base_lr": c["lr"], "warmup_lr": c["warmup_lr"], "min_lr": c["min_lr"], "scaling": "none"}
    optim = Optim(
        "adamw",
        betas=tuple(c["betas"]),
        weight_decay=c["wd"],
        schedule="cosine_dino",
        warmup_epochs=c["warm"],
        clip=c["clip"],
        **rates,
    )
    method = BEiT(network(c["img"], timm_args=args, **size), min_block=c["minb"], optim=optim)
    assert method.hidden == c["nm"]
    method.lm_head = nn.Linear(c["dim"], c["V"])  # visual tokens without a tokenizer
    return method, record, tensors


def start_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: w for name, w in renamed(weights(tensors, "w."), NAMES).items() if not name.endswith("_index")}


def drawn(tensors: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    return {
        "mask": tensors[f"in.step{step}.mask"].flatten(1).bool(),
        "visual_tokens": tensors[f"in.step{step}.ids"].flatten(1),
    }


def test_tokens_logits_and_loss_of_the_official_code() -> None:
    method, record, tensors = official()
    left = method.load_state_dict(start_of(tensors), strict=False)
    assert not left.unexpected_keys and not left.missing_keys
    noise = {name: values["max_abs"] for name, values in record["noise"].items()}
    images, given = tensors["in.step0.images"], drawn(tensors, 0)
    tokens = method.backbone.tokens(images, mask=given["mask"], mask_token=method.mask_token)
    assert_close(tokens, tensors["out.latent"], noise["out.latent"])
    logits = method.lm_head(method.predict(images, given["mask"]))
    assert_close(logits, tensors["out.logits_all"])
    assert_close(logits.flatten(0, 1)[given["mask"].flatten()], tensors["out.logits_masked"])
    assert_close(method.loss([images], **given), record["loss_float64"])


def test_two_steps_of_the_official_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients, AdamW with and without weight decay, rates, the norm of all gradients clipped."""
    method, record, tensors = official()
    c = record["config"]
    loss, first = method.loss, record["first_iteration"]
    count = c["niter"]
    monkeypatch.setattr(
        method, "loss", lambda views: loss(views, **drawn(tensors, (method.global_step - first) % count))
    )
    images = [[tensors[f"in.step{step}.images"]] for step in range(count)]
    steps = take_steps(method, images, start_of(tensors), first, count, c["epochs"])
    check_losses(record, steps.losses)
    assert [rates[0] for rates in steps.rates] == pytest.approx(record["lr_schedule"][first : first + count])
    check_gradients(record, tensors, NAMES, steps.gradients)
    norm = torch.stack([g.norm() for g in steps.gradients.values()]).norm().item()
    assert norm == pytest.approx(record["grad_norm_before_clip_float64"][0], rel=1e-6)
    assert norm > c["clip"]
    assert check_state(record, tensors, NAMES, steps.after) == 39


def test_rates_and_what_decays_in_the_official_code() -> None:
    method, record, _ = official()
    c = record["config"]
    schedule = StepSchedule(method.optim, c["B"], c["epochs"] * c["niter"], c["niter"])
    assert [schedule.lr(step) for step in range(schedule.total)] == pytest.approx(record["lr_schedule"])
    names = {id(p): name for name, p in method.named_parameters()}
    found = {g["decay"]: {names[id(p)] for p in g["params"]} for g in method.parameter_groups()}
    official_groups = {
        g["weight_decay"] > 0: {our_name(name, NAMES) for name in g["names"]} for g in record["param_groups"]
    }
    assert found == official_groups
    assert {"mask_token", "backbone.model.rel_pos_bias.relative_position_bias_table"} <= found[True]


def test_absolute_positions_and_class_token_do_not_decay() -> None:
    method = beit(positions="absolute")
    decayed, spared = ({id(p) for p in group["params"]} for group in method.parameter_groups())
    assert {id(method.backbone.model.pos_embed), id(method.backbone.model.cls_token)} <= spared
    assert id(method.mask_token) in decayed
    tables = [p for n, p in beit(positions="per block").named_parameters() if "bias_table" in n]
    assert len(tables) == 2


def test_initial_weights_are_those_of_the_official_code() -> None:
    record, _ = load("beit_pretrain")
    torch.manual_seed(0)
    method = BEiT(network(width=96, depth=3, num_heads=3))
    compared = 0
    for name, (mean, std, largest) in record["param_init_mean_std_absmax"].items():
        if name.startswith("lm_head."):
            values = getattr(method.lm_head, name.partition(".")[2]).detach()
        else:
            values = method.get_parameter(our_name(name, NAMES)).detach()
        compared += 1
        if largest == 0 or std < 1e-6:
            assert values.mean().item() == pytest.approx(mean) and values.std() < 1e-6, name
            continue
        share = 4 / math.sqrt(values.numel())
        assert values.std().item() == pytest.approx(std, rel=share), name
        assert values.abs().max().item() == pytest.approx(largest, rel=share), name
    assert compared == len(record["param_init_mean_std_absmax"]) > 40


@pytest.mark.parametrize(
    ("case", "grid", "target", "least"),
    [
        ("14x14 of 75, min 16", 14, 75, 16),
        ("8x8 of 25, min 4", 8, 25, 4),
        ("8x8 of 25, min 16", 8, 25, 16),
    ],
)
def test_blocks_have_the_statistics_of_the_official_code(case: str, grid: int, target: int, least: int) -> None:
    expected = load("beit_pretrain")[0]["mask_generator_counts"][case]
    torch.manual_seed(0)
    method = beit(4 * grid, min_block=least)
    assert method.hidden == target
    counts = method.draw_mask(4000).sum(1).double()
    assert counts.max() == target == expected["max"]
    assert counts.mean().item() == pytest.approx(expected["mean"], abs=0.12)
    assert (counts < target).double().mean().item() == pytest.approx(expected["share_below_target"], abs=0.035)


def test_published_numbers_are_the_defaults() -> None:
    method = BEiT(network(224, patch_size=16))
    assert (method.hidden, method.min_block) == (75, 16)
    view = method.views()[0]
    assert (view.size, view.scale, view.flip) == (224, (0.08, 1.0), 0.5)
    assert (view.jitter, view.jitter_p, view.grayscale, view.blur) == ((0.4, 0.4, 0.4, 0.0), 1.0, 0.0, 0.0)
    assert beit().hidden == 25


# What is asked for, and of what


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("gammas", [0.1, None])
def test_loss_is_the_mean_over_all_hidden_patches_in_loops(positions: str, gammas: float | None) -> None:
    """Images with fewer hidden patches weigh less; for every kind of positions, with LayerScale and without."""
    torch.manual_seed(0)
    method = BEiT(network(positions=positions, timm_args={"init_values": gammas}))
    method.lm_head = nn.Linear(24, 11)
    images = views_of(method, 3)[0]
    mask = torch.zeros(3, 64, dtype=torch.bool)
    mask[0, :3], mask[1, 10:40] = True, True  # the third image hides nothing
    ids = torch.randint(11, (3, 64))
    logits = method.lm_head(method.predict(images, mask))
    terms = [-logits[i, n].log_softmax(0)[ids[i, n]] for i, n in mask.nonzero().tolist()]
    loss = method.loss([images], mask=mask, visual_tokens=ids)
    assert len(terms) == 33
    assert_close(loss, torch.stack(terms).mean())
    per_image = torch.stack([torch.stack(terms[:3]).mean(), torch.stack(terms[3:]).mean()]).mean()
    assert abs(loss - per_image) > 1e-4


def test_a_hidden_patch_is_not_seen() -> None:
    method = beit()
    images = views_of(method, 1)[0]
    mask = torch.zeros(1, 64, dtype=torch.bool)
    mask[0, 9] = True  # row 1, column 1
    changed = images.clone()
    changed[:, :, 4:8, 4:8] += 1.0
    assert torch.equal(method.predict(images, mask), method.predict(changed, mask))
    changed[:, :, 4:8, 8:12] += 1.0
    assert not torch.equal(method.predict(images, mask), method.predict(changed, mask))


def test_the_tokenizer_sees_pixels_of_the_same_view_and_names_patches_row_by_row() -> None:
    torch.manual_seed(0)
    mean, std = (0.2, 0.3, 0.4), (0.5, 0.6, 0.7)
    method = BEiT(network(), tokenizer=f"{__name__}:Brightness", statistics=(mean, std))
    assert method.lm_head.out_features == Brightness.vocabulary
    pixels = torch.rand(2, 3, 16, 16).repeat_interleave(2, 2).repeat_interleave(2, 3)
    images = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    Brightness.seen.clear()
    mask = block_masks(2, 8, 20, min_area=4)
    found = method.loss([images], mask=mask)
    assert len(Brightness.seen) == 1
    assert Brightness.seen[0].shape == (2, 3, 16, 16)
    assert Brightness.seen[0].min() >= 0 and Brightness.seen[0].max() <= 1
    ids = Brightness().visual_tokens(Brightness.seen[0]).flatten(1)
    assert_close(found, method.loss([images], mask=mask, visual_tokens=ids))
    assert not any("tokenizer.held" in name for name in method.state_dict())


def test_without_a_tokenizer_pixels_normalised_per_patch_are_regressed() -> None:
    method = beit()
    images = views_of(method, 2)[0]
    mask = block_masks(2, 8, 20, min_area=4)
    predicted = method.lm_head(method.predict(images, mask))
    terms = []
    for image, n in mask.nonzero().tolist():
        row, column = divmod(n, 8)
        cell = images[image, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].permute(1, 2, 0).flatten()
        terms.append((predicted[image, n] - (cell - cell.mean()) / (cell.var() + 1e-6).sqrt()).square().mean())
    assert_close(method.loss([images], mask=mask), torch.stack(terms).mean())
    torch.manual_seed(3)
    loss = method.loss([images])
    torch.manual_seed(3)
    assert_close(loss, method.loss([images], mask=method.masks(2)[0]))


def test_reconstruction_shows_visible_patches_as_they_are() -> None:
    method = beit()
    images = views_of(method, 2)[0]
    mask = block_masks(2, 8, 20, min_area=4)
    shown = method.reconstruction(images, mask=mask)
    hidden = mask.view(2, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3).expand_as(images)
    assert torch.equal(shown.prediction[~hidden], images[~hidden])
    assert not torch.allclose(shown.prediction[hidden], images[hidden])


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match="--method.mask_ratio 0.001 must hide some of 64 patches"):
        beit(mask_ratio=0.001)
    with pytest.raises(UserError, match="--method.min_block 26 is more than the 25 patches to hide"):
        beit(min_block=26)
    with pytest.raises(UserError, match="no tokenizer nothing"):
        beit(tokenizer="nothing")
