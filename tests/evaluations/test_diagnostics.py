"""What the diagnostics are taken of: which images, views and network. Their mathematics: tests/test_spectra.py."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssl_bench.cli.main import main
from ssl_bench.config.options import BackboneOptions
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation import representation_metrics as spectra
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.evaluations.diagnostics import Diagnostics, spectrum_monitors
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.saved_backbone import write_backbone
from ssl_bench.records.result import read_result
from ssl_bench.records.run import DataRecord, RunInfo, write_run
from ssl_bench.runtime.seeds import derive

VIT = BackboneOptions(name="vit_nano_patch4_32", img_size=8, patch_size=4, width=24, depth=1, num_heads=2)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture
def splits() -> tuple[TrainSplit, ValidationSplit]:
    """Smooth images without labels: crops of one are like it. The first ten are held out."""
    rng = np.random.default_rng(0)
    coarse = torch.tensor(rng.normal(size=(210, 3, 3, 3)), dtype=torch.float32)
    images = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear")
    images = (128 + 60 * images + 10 * torch.tensor(rng.normal(size=(210, 3, 8, 8)))).clamp(0, 255).to(torch.uint8)
    pool = ResidentPool(images=images, labels=None, ids=[str(i) for i in range(210)])
    return TrainSplit(pool, np.arange(10, 210)), ValidationSplit(pool, np.arange(10))


def pixels() -> FeatureExtractor:
    return FeatureExtractor(Pixels(8), MEAN, STD, {})


def vit(seed: int = 0) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(VIT)


def diagnostics(backbone: FeatureExtractor, splits: Any, **options: Any) -> dict[str, float]:
    return Diagnostics(**options).fit(backbone, *splits).diagnostics


def drawn(count: int, among: int = 200, seed: int = 0) -> Tensor:
    """The images that diagnostics draw: more of them include the fewer."""
    return torch.randperm(among, generator=torch.Generator().manual_seed(derive(seed)))[:count]


def test_spectra_are_of_the_drawn_training_images(splits: Any) -> None:
    found = diagnostics(pixels(), splits, images=120, pair_images=50, seed=3)
    train, rows = splits[0], drawn(120, seed=3)
    images = (train.pool.images[torch.as_tensor(train.rows)].float() / 255).flatten(2)
    features = ((images - torch.tensor(MEAN)[:, None]) / torch.tensor(STD)[:, None]).flatten(1)  # (N, D)
    x = features[rows].double().numpy()
    for name, z, eps in (("rankme", x, 1e-7), ("effective_rank", x - x.mean(0), 0.0)):
        values = np.linalg.svd(z, compute_uv=False)
        share = values[values > 1e-9] / values.sum() + eps
        assert found[name] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)  # kept as float16
    variances = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    assert found["participation_ratio"] == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=1e-3)
    assert found["stable_rank"] == pytest.approx(variances.sum() / variances[0], rel=1e-3)
    share = variances / variances.sum()
    share = share[share > 1e-20]
    assert found["effective_rank_variance"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-3)
    unit = features[drawn(50, seed=3)] / features[drawn(50, seed=3)].norm(dim=1, keepdim=True)
    cosine = (unit @ unit.T)[~torch.eye(50, dtype=torch.bool)]
    assert found["mean_cosine"] == pytest.approx(float(cosine.mean()), abs=1e-4)
    assert found["uniformity"] == pytest.approx(float((4 * cosine - 4).exp().mean().log()), abs=1e-4)
    assert found["images"] == 120


def test_all_images_where_there_are_fewer_than_asked(splits: Any) -> None:
    assert diagnostics(pixels(), splits)["images"] == 200


def test_views_are_keyed_by_image(splits: Any) -> None:
    """LiDAR and alignment of crops that belong together; groups of unrelated images would give other numbers."""
    backbone = pixels()
    found = diagnostics(backbone, splits, view_images=40, views=3)
    rows = drawn(40).sort().values
    crops = torch.stack([backbone.features(splits[0], "pixels", view=v) for v in range(3)], 1)[rows]  # (40, 3, D)
    assert not torch.equal(crops[:, 0], crops[:, 1]), "random crops, not the images"
    assert found["lidar"] == pytest.approx(spectra.lidar(crops), rel=1e-9)
    assert found["alignment"] == pytest.approx(spectra.alignment(crops), rel=1e-9)
    unrelated = crops.flatten(0, 1)[torch.randperm(120, generator=torch.Generator().manual_seed(0))].view(40, 3, -1)
    assert found["alignment"] < 0.8 * spectra.alignment(unrelated)
    wrong = spectra.lidar(unrelated)
    assert wrong is not None and abs(found["lidar"] - wrong) > 1


def test_more_views_include_the_fewer(splits: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = FeatureExtractor.features

    def spy(self: FeatureExtractor, split: Any, kind: str, rows: Any = slice(None), view: int | None = None) -> Tensor:
        asked.extend([] if view is None else [view])
        return original(self, split, kind, rows, view)

    monkeypatch.setattr(FeatureExtractor, "features", spy)
    diagnostics(pixels(), splits, views=4)
    assert asked == [0, 1, 2, 3]


def test_a_collapsed_network(splits: Any) -> None:
    """Every image and view is given the same features: what can be said is said, the rest is left out."""
    network = vit()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0)
        for name, parameter in network.named_parameters():
            if name.endswith("norm.bias"):
                parameter.fill_(0.3)
    found = diagnostics(FeatureExtractor(network, MEAN, STD, {}), splits)
    assert found["rankme"] == pytest.approx(1, abs=1e-4) and found["below_noise"] == 23
    assert found["mean_cosine"] == pytest.approx(1) and found["alignment"] == pytest.approx(0, abs=1e-9)
    assert found.keys().isdisjoint({"effective_rank", "participation_ratio", "alpha", "alpha_r2", "lidar"})
    assert all(np.isfinite(value) for value in found.values())


def of_spectrum(variances: np.ndarray) -> Tensor:
    """400 features with exactly these variances, up to a factor."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, len(variances)))
    axes = np.linalg.qr(x - x.mean(0))[0]
    return torch.tensor(axes * np.sqrt(variances))


def test_alpha_is_withheld_where_there_is_no_power_law() -> None:
    rank = np.arange(1, 101.0)
    law = spectrum_monitors(of_spectrum(rank**-1.3))
    assert law["alpha"] == pytest.approx(1.3, rel=1e-6) and law["alpha_r2"] == pytest.approx(1)
    none = spectrum_monitors(of_spectrum(np.where(rank < 50, 1.0, 0.1)))
    assert "alpha" not in none and 0 < none["alpha_r2"] < 0.95


def test_singular_values_below_the_rounding_are_counted() -> None:
    features = of_spectrum(np.array([1.0] * 6 + [1e-9] * 4))
    assert spectrum_monitors(features)["below_noise"] == 4
    assert spectrum_monitors(of_spectrum(np.ones(10)))["below_noise"] == 0


def test_nothing_is_predicted_or_chosen(splits: Any) -> None:
    protocol, backbone = Diagnostics(), pixels()
    fit = protocol.fit(backbone, *splits)
    assert protocol.predict(backbone, fit, None) == []  # type: ignore[arg-type]
    assert fit.features == ("pixels",) and fit.chosen == {} and fit.grid == {} and not fit.at_grid_boundary


# --- against another run


def run_folder(folder: Path, network: Backbone, kind: str = "pretrained", std: tuple[float, ...] = STD) -> Path:
    folder.mkdir()
    about: dict[str, Any] = {"status": "finished", "method": "mae", "seed": 0, "options": {}, "backbone": None}
    write_run(folder, RunInfo(kind=kind, data=DataRecord("digits", {}), command=[], **about))  # type: ignore[arg-type]
    write_backbone(folder, network, MEAN, std)
    return folder


def test_cka_with_another_run(splits: Any, tmp_path: Path) -> None:
    """Both networks see the same images, each with its own normalisation."""
    here = FeatureExtractor(vit(), MEAN, STD, {})
    assert "cka" not in diagnostics(here, splits)
    same = run_folder(tmp_path / "same", vit())
    assert diagnostics(here, splits, against=str(same))["cka"] == pytest.approx(1, abs=1e-6)
    other = run_folder(tmp_path / "other", vit(seed=1), std=(0.5, 0.6, 0.7))
    there = FeatureExtractor(vit(seed=1), MEAN, (0.5, 0.6, 0.7), {})
    found = diagnostics(here, splits, against=str(other), images=150)["cka"]
    rows = drawn(150)
    own, others = (b.features(splits[0], b.primary_feature_type)[rows] for b in (here, there))
    assert found == pytest.approx(spectra.cka(own, others), rel=1e-6)
    assert 0 < found < 0.99
    assert list((other / "features").glob("train-*.safetensors")), "the other's features are kept for its own use"


def test_what_cannot_be_compared_with(splits: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    run_folder(tmp_path / "baseline", vit(), kind="baseline")
    for name, message in (("empty", "no run folder"), ("nowhere", "no run folder"), ("baseline", "no backbone")):
        with pytest.raises(UserError, match=f"--diagnostics.against.*{message}"):
            diagnostics(pixels(), splits, against=str(tmp_path / name))


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a real data set, against a run; a record with diagnostics and without a number to rank."""
    other = run_folder(tmp_path / "other", vit())
    common = ["--runs", str(tmp_path / "runs"), "--device", "cpu", "--data=digits", "--diagnostics.images=200"]
    options = [*common, "--diagnostics.view_images=50", "--diagnostics.views=2", "--diagnostics.against", str(other)]
    assert main(["evaluate", "pixels", "--protocols", "diagnostics", *options]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    result = read_result(folder / "results" / "diagnostics.json")
    assert result.value is None and result.variants == {}
    assert 0 < result.diagnostics["cka"] < 1 and result.diagnostics["images"] == 200 and "lidar" in result.diagnostics
    assert result.options["against"] == str(other)


@pytest.mark.parametrize("options", [{"images": 3}, {"view_images": 0}, {"pair_images": 1}, {"views": 1}])
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        Diagnostics(**options)  # type: ignore[arg-type]


def test_too_few_images(splits: Any) -> None:
    with pytest.raises(UserError, match="too few"):
        diagnostics(pixels(), (TrainSplit(splits[0].pool, np.arange(3)), splits[1]))
