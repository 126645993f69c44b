"""Layers of options: later over earlier, whatever they hold, and written as flags without loss."""

import json

import hypothesis.strategies as st
from hypothesis import given

from ssl_bench.config.layers import flatten, split_argv, stack

KEYS = st.sampled_from(["optim.base_lr", "optim.betas", "trainer.max_epochs", "data.root", "seed", "method.mask_ratio"])
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False, allow_infinity=False),
    st.text("ab 1=~'\n", max_size=6), st.lists(st.floats(0, 1), max_size=3),
)  # fmt: skip
LAYERS = st.lists(st.dictionaries(KEYS, VALUES, max_size=5), min_size=1, max_size=4)


@given(LAYERS)
def test_the_last_layer_that_names_an_option_decides(layers: list[dict[str, object]]) -> None:
    found = stack((f"layer {i}", layer) for i, layer in enumerate(layers))
    assert found.values.keys() == found.origins.keys() == {key for layer in layers for key in layer}
    for key, value in found.values.items():
        last = max(i for i, layer in enumerate(layers) if key in layer)
        assert found.origins[key] == f"layer {last}" and value == layers[last][key]


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_options_become_flags_and_flags_options(values: dict[str, object]) -> None:
    tokens = stack([("file", values)]).tokens()
    files, named, rest = split_argv(tokens)
    assert not files and not named
    back = {}
    for token in rest:
        key, _, text = token.removeprefix("--").partition("=")
        back[key] = text if isinstance(values[key], str) else json.loads(text)
    assert back == values


@given(
    st.dictionaries(
        st.sampled_from(["optim", "trainer", "probe"]), st.dictionaries(st.text("abc_", min_size=1), VALUES)
    )
)
def test_nested_and_flat_files_say_the_same(tree: dict[str, dict[str, object]]) -> None:
    flat = flatten(tree, "file.yaml")
    assert flat == {f"{group}.{key}": value for group, options in tree.items() for key, value in options.items()}
    assert flatten(flat, "file.yaml") == flat


@given(st.sampled_from(["vit_tiny_patch16_224", "resnet50"]), st.integers(1, 9), st.integers(1, 9))
def test_another_backbone_forgets_the_options_of_the_one_before(name: str, depth: int, patch: int) -> None:
    first = {"backbone": "vit_tiny_patch16_224", "backbone.depth": depth, "optim.base_lr": 1.0}
    found = stack([("recipe", first), ("flags", {"backbone.name": name, "backbone.patch_size": patch})]).values
    assert found["optim.base_lr"] == 1.0 and found["backbone.patch_size"] == patch
    assert ("backbone.depth" in found) == (name == "vit_tiny_patch16_224")
