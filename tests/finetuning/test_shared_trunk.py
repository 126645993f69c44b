"""Networks cut in two: what both parts say together is what the whole says, and only what should learn can."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ssl_bench.config.options import BackboneOptions
from ssl_bench.finetuning.shared_trunk import exists, restrict, resumed, states, usual_depths
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.stages import blocks

SMALL = {"img_size": 8, "patch_size": 2}
OPTIONS = {
    "vit": BackboneOptions("vit_nano_patch4_32", width=24, depth=4, num_heads=2, **SMALL),
    "vit with layer scale": BackboneOptions(
        "vit_nano_patch4_32", width=24, depth=3, num_heads=2, timm_args={"init_values": 0.1}, **SMALL
    ),
    "beit, shared relative positions": BackboneOptions("beit_nano_patch4_32", width=24, depth=3, num_heads=2, **SMALL),
    "beit, own relative positions": BackboneOptions(
        "beit_nano_patch4_32",
        width=24,
        depth=3,
        num_heads=2,
        timm_args={"use_rel_pos_bias": True, "use_shared_rel_pos_bias": False, "use_abs_pos_emb": True},
        **SMALL,
    ),
    "swin": BackboneOptions("swin_pico_patch2_32", img_size=16, timm_args={"window_size": 2}, absolute_positions=True),
    "resnet": BackboneOptions("resnet18", img_size=16, timm_args={"channels": (8, 8, 16, 16)}),
    "bottlenecks": BackboneOptions("resnet50", img_size=16, timm_args={"channels": (4, 4, 8, 8)}),
}


def network(name: str) -> Backbone:
    torch.manual_seed(0)
    built = Backbone(OPTIONS[name])
    with torch.no_grad():
        for parameter in built.parameters():  # relative positions and others start at zero
            parameter += 0.05 * torch.randn_like(parameter)
    return built.eval()


def images(built: Backbone, count: int = 3) -> Tensor:
    return torch.randn(count, 3, built.img_size, built.img_size, generator=torch.Generator().manual_seed(1))


def above(built: Backbone) -> list[float]:
    """Every depth between nothing and the whole network."""
    every = [0.5, *range(1, len(blocks(built)))]
    return [depth for depth in every if exists(built, depth)]


def last(built: Backbone, given: Tensor) -> Tensor:
    """What the last block says, by a look inside."""
    found: list[Tensor] = []
    handle = blocks(built)[-1].register_forward_hook(lambda block, inputs, output: found.append(output))
    built(given)
    handle.remove()
    return found[0]


@pytest.mark.parametrize("name", OPTIONS)
def test_both_parts_together_are_the_whole(name: str) -> None:
    built = network(name)
    given = images(built)
    whole = last(built, given)
    found = states(built, given, above(built))
    assert sorted(found) == above(built)
    for depth, state in found.items():
        output = resumed(built, state, depth)
        assert torch.equal(output.reshape(whole.shape), whole), depth
    others = states(built, given.flip(3), above(built))
    assert all(not torch.equal(others[depth], state) for depth, state in found.items())


def test_states_are_what_a_loop_over_blocks_gives() -> None:
    built = network("vit")
    vit, given = built.model, images(built)
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(given)))
    expected = {}
    for at, block in enumerate(vit.blocks):
        expected[4 - at] = tokens
        middle = tokens + block.attn(block.norm1(tokens))
        tokens = middle + block.mlp(block.norm2(middle))
    found = states(built, given, (0.5, 1, 2, 3, 4))
    for depth in (1, 2, 3):
        torch.testing.assert_close(found[depth], expected[depth])
    torch.testing.assert_close(found[0.5], middle)
    assert found[4] is given  # embeddings learn when all blocks do


def test_one_pass_that_goes_no_further_than_it_must() -> None:
    built = network("vit")
    passed: list[int] = []
    for at, block in enumerate(built.model.blocks):
        block.register_forward_hook(lambda block, inputs, output, at=at: passed.append(at))
    states(built, images(built), (2, 3, 4))
    assert passed == [0, 1]
    passed.clear()
    states(built, images(built), (0.5, 1, 2))
    assert passed == [0, 1, 2]  # and the last one's attention
    passed.clear()
    states(built, images(built), (4,))
    assert not passed
    assert not any(module._forward_pre_hooks for module in built.modules())


def test_an_error_in_the_network_leaves_no_hook() -> None:
    built = network("vit")
    with pytest.raises(RuntimeError):
        states(built, torch.zeros(1, 3, 4, 4, 4), (1,))
    assert not any(module._forward_pre_hooks for module in built.modules())


@pytest.mark.parametrize(
    ("name", "depths"),
    [
        ("vit", (0, 0.5, 1, 2, 4)),
        ("vit with layer scale", (0, 0.5, 1, 2, 3)),
        ("swin", (0, 0.5, 1, 2, 4)),
        ("resnet", (0, 1, 2, 4, 8)),  # last block, stage 4, stages 3 and 4, all
        ("bottlenecks", (0, 1, 3, 9, 16)),  # evaluations.md, section 1.3
    ],
)
def test_usual_depths(name: str, depths: tuple[float, ...]) -> None:
    assert usual_depths(network(name)) == depths


def test_usual_depths_of_deep_networks() -> None:
    for depth, expected in ((12, (0, 0.5, 1, 2, 4, 6, 12)), (24, (0, 0.5, 1, 2, 4, 6, 12, 18, 24))):
        options = BackboneOptions("vit_nano_patch4_32", width=8, depth=depth, num_heads=1, **SMALL)
        assert usual_depths(Backbone(options)) == expected


def test_depths_that_do_not_exist() -> None:
    vit, resnet = network("vit"), network("resnet")
    assert [exists(vit, depth) for depth in (0, 0.5, 1, 1.5, 4, 5, -1)] == [True, True, True, False, True, False, False]
    assert not exists(resnet, 0.5) and exists(resnet, 3)


MLP = {"norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"}


@pytest.mark.parametrize(
    ("name", "block", "more"),
    [
        ("vit", "model.blocks.3.", set()),
        ("vit with layer scale", "model.blocks.2.", {"ls2.gamma"}),
        ("beit, shared relative positions", "model.blocks.2.", {"gamma_2"}),
        ("swin", "model.layers.1.blocks.1.", set()),
    ],
)
def test_at_half_a_block_exactly_its_mlp_and_the_final_norm_learn(name: str, block: str, more: set[str]) -> None:
    built = network(name)
    restrict(built, 0.5)
    learning = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert learning == {f"{block}{part}" for part in MLP | more} | {"model.norm.weight", "model.norm.bias"}


@pytest.mark.parametrize(
    ("name", "depth", "prefixes"),
    [
        ("vit", 1, ("model.blocks.3.", "model.norm.")),
        ("vit", 3, ("model.blocks.1.", "model.blocks.2.", "model.blocks.3.", "model.norm.")),
        ("beit, shared relative positions", 2, ("model.blocks.1.", "model.blocks.2.", "model.norm.")),
        ("beit, own relative positions", 1, ("model.blocks.2.", "model.norm.")),
        ("swin", 2, ("model.layers.1.blocks.", "model.norm.")),  # the merging before it stays frozen
        ("resnet", 4, ("model.layer3.", "model.layer4.")),
        ("bottlenecks", 1, ("model.layer4.2.",)),
    ],
)
def test_whole_blocks_learn_and_nothing_below(name: str, depth: int, prefixes: tuple[str, ...]) -> None:
    built = network(name)
    everything = {name for name, _ in built.named_parameters()}
    restrict(built, depth)
    learning = {name for name, parameter in built.named_parameters() if parameter.requires_grad}
    assert learning == {name for name in everything if name.startswith(prefixes)}


def test_all_blocks_means_everything() -> None:
    for name in ("vit", "beit, shared relative positions", "resnet"):
        built = network(name)
        restrict(built, len(blocks(built)))
        assert all(parameter.requires_grad for parameter in built.parameters())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.integration
def test_the_top_goes_on_without_what_is_below(name: str) -> None:
    built = network(name)
    given = images(built)
    for depth in above(built):
        top = copy.deepcopy(built)
        restrict(top, depth)
        with torch.no_grad():
            state = states(built, given, [depth])[depth]
        output = resumed(top, state, depth)
        assert torch.equal(output, resumed(built, state, depth))
        weight = sum(p.numel() for p in top.parameters())
        assert weight < sum(p.numel() for p in built.parameters())
        output.square().sum().backward()
        final = set() if built.is_resnet else {"model.norm.weight", "model.norm.bias"}
        learned = {name for name, parameter in top.named_parameters() if parameter.grad is not None}
        assert learned == {n for n, p in top.named_parameters() if p.requires_grad} - final


def test_drop_path_is_that_of_the_full_schedule() -> None:
    options = BackboneOptions("vit_nano_patch4_32", width=24, depth=5, num_heads=2, drop_path=0.4, **SMALL)
    top = Backbone(options)
    restrict(top, 2)
    assert [block.drop_path1.drop_prob for block in blocks(top)[3:]] == pytest.approx([0.3, 0.4])
    assert all(type(block) is nn.Identity for block in blocks(top)[:3])
