"""The discrete VAE against plain arithmetic, and its way through the command line into a CAE."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small import GivenViews, trainer, views_of
from torch import Tensor

from ssl_bench.cli.main import main
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.options import Optim
from ssl_bench.errors import UserError
from ssl_bench.methods.dvae import DVAE
from ssl_bench.models.tokenizers import load_tokenizer
from ssl_bench.pretraining.building import build
from ssl_bench.records.run import read_run
from ssl_bench.records.run_folder import identity


def dvae(**given: Any) -> DVAE:
    torch.manual_seed(0)
    sizes = {"vocabulary": 6, "dim": 5, "hidden_dim": 8, "layers": 2, "blocks": 1}
    return DVAE(**sizes | given)


def smooth(method: DVAE, images: int = 4) -> Tensor:
    return views_of(method, images)[0].clamp(0, 1)


@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_loss_place_by_place(distance: Any) -> None:
    method = dvae(img_size=8, kl_weight=0.3, temperature=0.7, distance=distance).double()
    images = smooth(method, 2).double()
    noise = -torch.empty(2, 6, 2, 2, dtype=torch.float64).exponential_().log()
    logits = method.tokenizer.encoder(2 * images - 1).detach()
    embedded = torch.zeros(2, 5, 2, 2, dtype=torch.float64)
    divergence = 0.0
    for b in range(2):
        for y in range(2):
            for x in range(2):
                here = logits[b, :, y, x]
                exponentials = [math.exp((float(here[v]) + float(noise[b, v, y, x])) / 0.7) for v in range(6)]
                for v in range(6):
                    embedded[b, :, y, x] += exponentials[v] / sum(exponentials) * method.tokenizer.codebook.weight[v]
                q = [math.exp(float(value)) / sum(math.exp(float(other)) for other in here) for value in here]
                divergence += sum(p * math.log(p * 6) for p in q) / 8
    error = (method.tokenizer.decoder(embedded) + 1) / 2 - images
    expected = (error**2 if distance == "l2" else error.abs()).mean() + 0.3 * divergence
    assert method.loss([images], noise=noise).item() == pytest.approx(expected.item(), rel=1e-5)


def test_divergence_by_hand() -> None:
    method = dvae()
    assert method.divergence(torch.full((2, 6, 3, 3), 4.0)).item() == pytest.approx(0, abs=1e-6)
    certain = torch.zeros(1, 6, 1, 1)
    certain[0, 2] = 1e4
    assert method.divergence(certain).item() == pytest.approx(math.log(6))
    two = torch.full((1, 6, 1, 1), -1e4)
    two[0, :2] = 0
    assert method.divergence(two).item() == pytest.approx(math.log(3))


def test_noise_is_gumbel() -> None:
    """Words drawn with it follow their softmax."""
    method = dvae(vocabulary=3, temperature=1e-4, final_temperature=1e-4, img_size=64, layers=1)
    method.tokenizer.encoder[-1].weight.data.zero_()
    method.tokenizer.encoder[-1].bias.data = torch.tensor([0.6, 0.3, 0.1]).log()
    seen: list[Tensor] = []
    decode = method.tokenizer.decode
    method.tokenizer.decode = lambda weights: seen.append(weights) or decode(weights)  # type: ignore[func-returns-value]
    method.loss([torch.rand(8, 3, 64, 64)])
    share = seen[0].mean((0, 2, 3))  # of 8192 places
    assert share.tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.015)


def test_temperature_follows_a_cosine_over_the_run() -> None:
    method = dvae(img_size=8, optim=Optim("adamw", scaling="none", warmup_epochs=0))
    assert method.temperature_now() == 1.0  # without a trainer
    seen: list[float] = []
    loss = method.loss

    def recorded(views: list[Tensor], **drawn: Any) -> Tensor:
        seen.append(method.temperature_now())
        return loss(views, **drawn)

    method.loss = recorded  # type: ignore[method-assign]
    trainer().fit(method, datamodule=GivenViews([[smooth(method)]] * 4))
    ways = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert seen == pytest.approx([1 / 16 + way * 15 / 16 for way in ways])


@pytest.mark.integration
def test_it_learns_words_that_differ_between_patches() -> None:
    method = dvae(img_size=16, vocabulary=12, hidden_dim=24, temperature=0.5, final_temperature=0.5)
    images = smooth(method, 16)
    optimizer = torch.optim.AdamW(method.parameters(), lr=3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        method.loss([images]).backward()
        optimizer.step()
    visual_tokens = method.tokenizer.visual_tokens(images)
    hard = torch.nn.functional.one_hot(visual_tokens, 12).movedim(-1, 1).float()
    assert len(visual_tokens.unique()) >= 3
    assert torch.nn.functional.mse_loss(method.tokenizer.decode(hard), images) < 0.7 * images.var()


def test_the_views_size_is_asked_for_or_the_datas() -> None:
    assert DVAE(image_size=24).views()[0].size == 24
    assert DVAE(img_size=16, image_size=24).views()[0].size == 16


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"img_size": 30}, "--method.img_size 30 is no multiple"),
        ({"vocabulary": 1}, "--method.vocabulary 1"),
        ({"final_temperature": 0.0}, "--method.final_temperature 0.0"),
        ({"final_temperature": 2.0}, "--method.final_temperature 2.0"),
    ],
)
def test_mistakes_are_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        dvae(**given)
    assert "\n" not in str(refusal.value)


# A tokenizer's run

SHORT = (
    *("--data=digits", "--data.batch_size=32", "--trainer.max_epochs=1", "--trainer.limit_train_batches=3"),
    *("--trainer.accelerator=cpu", "--trainer.precision=32-true", "--probe.images=64"),
)
VAE = ("fit", "--method=dvae", "--method.img_size=32", *SHORT, "--method.vocabulary=16", "--method.dim=8")
VAE = (*VAE, "--method.hidden_dim=8", "--method.layers=2")
CAE = ("fit", "--method=cae", *SHORT, "--backbone=vit_pico_patch4_32", "--backbone.drop_path=0")
CAE = (*CAE, "--backbone.img_size=32", "--method.decoder_dim=16", "--method.regressor_depth=1")
CAE = (*CAE, "--method.decoder_depth=1", "--method.decoder_heads=2")


@pytest.mark.integration
def test_from_digits_to_a_tokenizer_to_a_backbone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runs = f"--runs={tmp_path}"

    def done(*argv: str) -> Path:
        assert main([*argv, runs]) == 0
        return Path(capfd.readouterr().out.strip().splitlines()[-1])

    def refused(*argv: str) -> str:
        assert main([*argv, runs]) == 2
        error = capfd.readouterr().err.strip()
        assert error.count("\n") == 0
        return error

    vocabulary = done(*VAE)
    assert vocabulary.name.startswith("dvae-digits-s0-")
    info = read_run(vocabulary)
    assert (info.kind, info.status, info.backbone) == ("tokenizer", "finished", None)
    assert info.steps == 3 and info.cost.flops > 0
    assert not list(vocabulary.glob("backbone.*"))
    assert json.loads((vocabulary / "tokenizer.json").read_text())["vocabulary"] == 16
    checkpoint = torch.load(vocabulary / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    saved = load_file(vocabulary / "tokenizer.safetensors")
    assert {f"tokenizer.{name}" for name in saved} == set(checkpoint)
    assert all(torch.equal(tensor, checkpoint[f"tokenizer.{name}"]) for name, tensor in saved.items())
    assert "knn" not in (vocabulary / "metrics.csv").read_text()
    assert done(*VAE) == vocabulary  # is done already

    assert "is a tokenizer, which has no features" in refused("evaluate", str(vocabulary))
    assert "is a tokenizer's run, which has no backbone" in refused("evaluate", f"random:{vocabulary}")
    assert "no option --backbone.name" in refused(*VAE, "--backbone=resnet_nano")

    pretrained = done(*CAE, f"--method.tokenizer={vocabulary}")
    assert (pretrained / "backbone.safetensors").exists()
    head = torch.load(pretrained / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert head["pretext_neck.head.weight"].shape == (16, 16)
    done("evaluate", str(pretrained), "--protocols=knn")
    assert main(["leaderboard", str(tmp_path)]) == 0
    assert "a tokenizer" in capfd.readouterr().out


def test_a_cae_sees_the_words_of_its_views_pixels(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*VAE, f"--runs={tmp_path}"]) == 0
    vocabulary = Path(capfd.readouterr().out.strip().splitlines()[-1])
    config = parse_fit([*CAE[1:], f"--method.tokenizer={vocabulary}"], {}).config
    data, method, module = build(config)
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    assert mean.min() > 0.05
    assert torch.equal(
        method.tokenizer((pixels - mean) / std), load_tokenizer(str(vocabulary)).visual_tokens(pixels).flatten(1)
    )


def test_where_a_tokenizer_lies_is_not_what_it_is() -> None:
    def run(path: str) -> str:
        return identity(parse_fit([*CAE[1:], f"--method.tokenizer={path}"], {}).config)

    assert run("here/dvae-digits-s0-1a2b3c4d") == run("/there/dvae-digits-s0-1a2b3c4d")
    assert run("here/dvae-digits-s0-1a2b3c4d") != run("here/dvae-digits-s1-2b3c4d5e")


def test_a_benchmark_does_not_evaluate_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("methods: [dvae]\ndata: [digits]\n")
    assert main(["benchmark", "-c", str(plan), "--dry-run"]) == 2
    error = capfd.readouterr().err
    assert "dvae makes a tokenizer, which is not evaluated" in error and error.strip().count("\n") == 0
