"""Tokenizers against plain arithmetic, and what may be named as one."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_files import assert_close
from safetensors.torch import save_file
from torch import Tensor

from ssl_bench.errors import UserError
from ssl_bench.models.dall_e import DallE
from ssl_bench.models.discrete_vae import DiscreteVAE
from ssl_bench.models.tokenizer import Tokenizer
from ssl_bench.models.tokenizers import PatchTokens, load_tokenizer


def official_weights(hidden: int = 8, vocabulary: int = 16, blocks: int = 2) -> dict[str, Tensor]:
    """Random weights under the names of OpenAI's encoder."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}

    def convolution(name: str, into: int, out: int, kernel: int) -> None:
        weights[f"{name}.w"] = (
            torch.randn(out, into, kernel, kernel, generator=generator) / (into * kernel**2 / 2) ** 0.5
        )
        weights[f"{name}.b"] = 0.1 * torch.randn(out, generator=generator)

    convolution("blocks.input", 3, hidden, 7)
    before = hidden
    for group in (1, 2, 3, 4):
        width = hidden * 2 ** (group - 1)
        for block in range(1, blocks + 1):
            name = f"blocks.group_{group}.block_{block}"
            if before != width:
                convolution(f"{name}.id_path", before, width, 1)
            convolution(f"{name}.res_path.conv_1", before, width // 4, 3)
            convolution(f"{name}.res_path.conv_2", width // 4, width // 4, 3)
            convolution(f"{name}.res_path.conv_3", width // 4, width // 4, 3)
            convolution(f"{name}.res_path.conv_4", width // 4, width, 1)
            before = width
    convolution("blocks.output.conv", before, vocabulary, 1)
    return weights


def official_logits(weights: dict[str, Tensor], images: Tensor, blocks: int = 2) -> Tensor:
    """The published encoder, written out in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def convolve(x: Tensor, name: str) -> Tensor:
        return F.conv2d(x, w[f"{name}.w"], w[f"{name}.b"], padding=w[f"{name}.w"].shape[2] // 2)

    x = convolve((1 - 2 * 0.1) * images.double() + 0.1, "blocks.input")
    for group in (1, 2, 3, 4):
        for block in range(1, blocks + 1):
            name = f"blocks.group_{group}.block_{block}"
            branch = x
            for number in (1, 2, 3, 4):
                branch = convolve(F.relu(branch), f"{name}.res_path.conv_{number}")
            x = (convolve(x, f"{name}.id_path") if f"{name}.id_path.w" in w else x) + branch / (4 * blocks) ** 2
        if group < 4:
            x = F.max_pool2d(x, 2)
    return convolve(F.relu(x), "blocks.output.conv")


@pytest.mark.parametrize("blocks", [2, 1])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_the_published_encoder(blocks: int, ending: str, tmp_path: Path) -> None:
    weights, images = official_weights(blocks=blocks), torch.rand(3, 3, 24, 40)
    weights["blocks.output.conv.b"] -= (
        official_logits(weights, images, blocks).mean((0, 2, 3)).float()
    )  # all visual tokens
    file = tmp_path / f"encoder.{ending}"
    torch.save(weights, file) if ending == "pth" else save_file(weights, file)
    encoder = load_tokenizer(str(file))
    expected = official_logits(weights, images, blocks)
    assert_close(encoder.logits(images), expected)
    visual_tokens = encoder.visual_tokens(images)
    assert visual_tokens.shape == (3, 3, 5)
    assert torch.equal(visual_tokens, expected.argmax(1))
    assert len(visual_tokens.unique()) > 3
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.logits(images).dtype == torch.float32  # or visual tokens would tie


def test_the_published_size() -> None:
    with torch.device("meta"):
        encoder = DallE()
    assert sum(p.numel() for p in encoder.parameters()) == 53_786_240
    assert (encoder.vocabulary, encoder.stride) == (8192, 8)


def test_discrete_vae_goes_to_words_and_back() -> None:
    vae = DiscreteVAE(vocabulary=10, dim=6, hidden_dim=8, layers=3, blocks=1)
    images = torch.rand(2, 3, 16, 32)
    logits = vae.logits(images)
    assert logits.shape == (2, 10, 2, 4) and vae.stride == 8
    assert torch.equal(vae.visual_tokens(images), logits.argmax(1))
    one = F.one_hot(vae.visual_tokens(images), 10).movedim(-1, 1).float()
    assert vae.decode(one).shape == images.shape
    embedded = vae.codebook(vae.visual_tokens(images)).movedim(-1, 1)
    torch.testing.assert_close(vae.decode(one), (vae.decoder(embedded) + 1) / 2)


class Brightness(Tokenizer):
    """A plug-in: how bright, in 256 steps, the middle of each 4 x 4 cell is."""

    vocabulary, stride = 256, 4

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1)

    def visual_tokens(self, images: Tensor) -> Tensor:
        assert not self.training and not self.norm.training
        return (images.mean(1)[:, 1::4, 1::4] * 255).round().long()


def test_a_class_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    assert load_tokenizer("test_tokenizers:Brightness").vocabulary == 256


def test_words_of_patches_are_row_by_row_at_any_size() -> None:
    frozen = PatchTokens(Brightness(), grid=4, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    frozen.train()
    level = torch.arange(16) * 16  # each patch its own
    cells = (level / 255).view(1, 1, 4, 4).expand(2, 3, 4, 4)
    for patch, tolerance in ((4, 0), (8, 8), (3, 12)):  # as many pixels as the tokenizer's, more, fewer
        pixels = cells.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
        visual_tokens = frozen((pixels - 0.5) / 0.25)
        assert visual_tokens.shape == (2, 16)
        assert (visual_tokens - level).abs().max() <= tolerance
    assert not frozen.state_dict() and not list(frozen.parameters())
    assert frozen(torch.full((1, 3, 16, 16), 9.0)).max() == 255  # beyond white is white


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    file, trace = tmp_path / "encoder.pkl", tmp_path / "it ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (trace,)  # type: ignore[return-value]

    for save in (lambda o: torch.save(o, file), lambda o: file.write_bytes(pickle.dumps(o))):
        save(Trap())  # type: ignore[no-untyped-call]
        with pytest.raises(UserError, match="is a pickle, which can run any code.*state_dict") as refusal:
            load_tokenizer(str(file))
        assert "\n" not in str(refusal.value)
        assert not trace.exists()


def test_what_is_no_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    weights = official_weights()
    folder = tmp_path / "run"
    folder.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text(json.dumps({"visual_tokens": 1}))
    unfit = tmp_path / "unfit"
    unfit.mkdir()
    (unfit / "tokenizer.json").write_text(json.dumps(DiscreteVAE(4, 4, 4, 1, 0).spec))
    save_file({"x": torch.zeros(1)}, unfit / "tokenizer.safetensors")
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save([1], tmp_path / "list.pth")
    torch.save({"blocks.input.w": torch.zeros(8, 3, 7, 7)}, tmp_path / "half.pth")
    torch.save({**weights, "more.w": torch.zeros(1)}, tmp_path / "more.pth")
    torch.save({**weights, "blocks.input.b": torch.zeros(9)}, tmp_path / "shape.pth")
    cases = {
        "nothing": "no tokenizer nothing: pixels, ",
        "no.module:Class": "PYTHONPATH",
        "test_tokenizers:Nothing": "PYTHONPATH",
        "pathlib:Path": "no subclass of ssl_bench.models.tokenizer.Tokenizer",
        str(folder): "has no tokenizer.json",
        str(broken): "is damaged",
        str(unfit): "is damaged",
        str(tmp_path / "text.pth"): "text.pth",
        str(tmp_path / "text.safetensors"): "cannot be read",
        str(tmp_path / "list.pth"): "a list of no named weights",
        str(tmp_path / "half.pth"): "blocks.output.conv.w",
        str(tmp_path / "more.pth"): "more.weight is no part of it",
        str(tmp_path / "shape.pth"): r"blocks.input.bias is \(9,\), not \(8,\)",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as refusal:
            load_tokenizer(name)
        assert "\n" not in str(refusal.value), name
