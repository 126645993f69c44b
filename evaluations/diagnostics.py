"""Diagnostics: what features look like without labels. Never ranked: they miss what a task needs.

All are of the pretrained network's primary features after the final norm, not of a projection head's embeddings, on
which RankMe and LiDAR were proposed; and they tell checkpoints of one method apart better than methods. A network at
random can have a high rank.

- rankme (Garrido et al., ICML 2023, https://arxiv.org/abs/2210.02885) of features as they are, from singular values;
  effective_rank is the same of centred features, effective_rank_variance from their variances (Roy & Vetterli 2007).
- participation_ratio and stable_rank of the variances; below_noise: how many of RankMe's singular values are smaller
  than what storing features as float16 adds.
- alpha (alpha-ReQ, Agrawal et al., NeurIPS 2022): decay of the variances over ranks 5 to 99, with alpha_r2. Left out
  below an R^2 of 0.95: there is no power law then.
- lidar (Thilak et al., ICLR 2024, https://arxiv.org/abs/2312.04000) over random crops, the same for every network.
  Left out where crops of an image hardly differ.
- alignment of such crops, and uniformity (Wang & Isola, ICML 2020, https://arxiv.org/abs/2005.10242): less is better.
- mean_cosine of two images, nearest_cosine of an image and the one nearest to it, hubness (skewness of how often an
  image is among the 10 nearest of others): they explain a k-NN that fails.
- cka (Kornblith et al., ICML 2019, https://arxiv.org/abs/1905.00414), linear and unbiased, with another run's features.

Shapes: N images, D features, V views.
"""

from pathlib import Path
from typing import Annotated, final

import torch
from torch import Tensor

from ssl_bench.config.constraints import PathText, Range, Seed
from ssl_bench.data.splits import TestImages, TrainSplit, ValidationSplit
from ssl_bench.errors import UserError
from ssl_bench.evaluation import representation_metrics as metrics
from ssl_bench.evaluation.evaluation import Evaluation, Fit, Prediction
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.models.saved_backbone import load_backbone
from ssl_bench.records.run import read_run
from ssl_bench.runtime.seeds import derive

POWER_LAW_R2 = 0.95  # below it there is no exponent to report


@final
class Diagnostics(Evaluation[None]):
    """Ranks, spectral decay, LiDAR, alignment, uniformity, hubness and CKA, on training images without their labels.

    Args:
        images: Training images for the spectra and CKA, drawn at random; all if there are fewer.
        pair_images: How many of these are compared with one another.
        view_images: How many of these are looked at in random crops. LiDAR cannot exceed their number less 1.
        views: Random crops of each of those.
        against: Folder of another run: CKA with its features of the same images.
        seed: Of the draw.
    """

    def __init__(
        self,
        images: Annotated[int, Range(min=4)] = 25_600,
        pair_images: Annotated[int, Range(min=4)] = 5000,
        view_images: Annotated[int, Range(min=4)] = 1000,
        views: Annotated[int, Range(min=2)] = 10,
        against: PathText | None = None,
        seed: Seed = 0,
    ) -> None:
        if min(images, pair_images, view_images) < 4 or views < 2:
            raise ValueError("images, pair_images and view_images must be at least 4, views at least 2")
        self.images = images
        self.pair_images = pair_images
        self.view_images = view_images
        self.views = views
        self.against = against
        self.seed = seed

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[None]:
        if len(train) < 4:
            raise UserError(f"--protocols diagnostics: {len(train)} training images are too few, 4 are needed")
        other = self._other(backbone)
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(derive(self.seed)))
        feature_type = backbone.primary_feature_type
        rows = order[: self.images].sort().values
        features = backbone.features(train, feature_type, rows)  # (N, D)
        found = {"images": float(len(rows)), **spectrum_monitors(features)}
        if other is not None:
            found["cka"] = metrics.cka(features, other.features(train, other.primary_feature_type, rows))
        near = metrics.neighbourhood(
            backbone.features(train, feature_type, order[: min(self.images, self.pair_images)])
        )
        found |= vars(near)
        few = TrainSplit(train.pool, train.rows[order[: min(self.images, self.view_images)].sort().values.numpy()])
        views = torch.stack(
            [backbone.features(few, feature_type, view=view) for view in range(self.views)], 1
        )  # (N, V, D)
        found["alignment"] = metrics.alignment(views)
        rank = metrics.lidar(views)
        if rank is not None:
            found["lidar"] = rank
        return Fit(None, features=(feature_type,), diagnostics=found)

    def predict(self, backbone: FeatureExtractor, fit: Fit[None], test: TestImages) -> list[Prediction]:
        return []

    def _other(self, backbone: FeatureExtractor) -> FeatureExtractor | None:
        """The network of `against`, with its features cached in its own folder as its own evaluation does."""
        if self.against is None:
            return None
        folder = Path(self.against)
        if not (folder / "run.json").is_file():
            raise UserError(f"--diagnostics.against {folder}: no run folder (it has no run.json)")
        info = read_run(folder)
        if info.kind in ("baseline", "tokenizer"):
            raise UserError(f"--diagnostics.against {folder}: a {info.kind}'s folder holds no backbone; name a run")
        network, mean, std = load_backbone(folder)
        identity = {"method": info.method, "branch": info.branch or "encoder"}
        workers = backbone.num_workers
        return FeatureExtractor(network, mean, std, identity, folder / "features", backbone.device, num_workers=workers)


def spectrum_monitors(features: Tensor) -> dict[str, float]:
    """Those of the spectrum of (N, D) features; without those of centred features where these are rounding alone."""
    singular, floor = metrics.singular_values(features), metrics.noise_floor(features)
    found = {"rankme": metrics.effective_rank(singular, eps=1e-7), "below_noise": float((singular < floor).sum())}
    centred = metrics.singular_values(features, centred=True)
    if float(centred[0]) <= floor:
        return found
    variances = centred.square()
    found["effective_rank"] = metrics.effective_rank(centred)
    found["effective_rank_variance"] = metrics.effective_rank(variances)
    found["participation_ratio"] = metrics.participation_ratio(variances)
    found["stable_rank"] = float(variances.sum() / variances[0])
    law = metrics.power_law(variances, least=floor**2)
    if law is not None:
        found["alpha_r2"] = law.r2
        if law.r2 >= POWER_LAW_R2:
            found["alpha"] = law.alpha
    return found
