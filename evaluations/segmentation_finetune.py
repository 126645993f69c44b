"""Fine-tuned segmentation: the whole network learns, with a linear decoder on its patches.

The decoder is that of Segmenter's linear variant (Strudel et al., "Segmenter: Transformer for Semantic Segmentation",
ICCV 2021, https://arxiv.org/abs/2105.05633): one layer from each patch of the last block (after the final norm) to the
classes, brought to the image's size by bilinear interpolation; in front of it a batch norm, as DINOv2 has it.
Convolutional networks give the places of their final map. UperNet, with which papers report ADE20K, would add more
parameters than a small backbone has.

The recipe is `finetune`'s where it applies: AdamW, betas 0.9 and 0.999, weight decay 0.05, layer-wise decay of the
rate, stochastic depth, linear warm-up and a cosine per step. The augmentation is the usual one of segmentation: square
crops of half to the whole short side, mirrored half of the time, image and mask together. The learning rate is chosen
by mean IoU on the validation split, from networks that are trained in full; the one that is chosen predicts.

Test images are seen whole, through windows that overlap by a third and whose logits are averaged.

Shapes: B images of a batch, 3 x s x s pixels, D features, K classes, g x g patches of a window.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ssl_bench.config.constraints import Fraction, NonNegativeFloat, PositiveInt, ProperFraction, Rates, Seed
from ssl_bench.data.decode import BrokenImage
from ssl_bench.data.files.left_out import UnreadableImage
from ssl_bench.data.masks import IGNORE, Mask
from ssl_bench.data.pool import ResidentPool
from ssl_bench.data.splits import Split, TestImages, TrainSplit, ValidationSplit
from ssl_bench.data.whole_images import crop_together, whole_images
from ssl_bench.errors import UserError
from ssl_bench.evaluation.cost import progress
from ssl_bench.evaluation.evaluation import Evaluation, Fit
from ssl_bench.evaluation.feature_extractor import FeatureExtractor
from ssl_bench.evaluation.patch_features import grid_of
from ssl_bench.evaluation.segmentations import Segmentations, counts_of, mean_iou
from ssl_bench.evaluations.segmentation_knn import class_count, upsampled
from ssl_bench.finetuning.images import drawing
from ssl_bench.finetuning.model import HEAD, ORDER, STEP, groups, set_drop_path, set_rate
from ssl_bench.models.backbone import Backbone
from ssl_bench.optim.schedules import warmup_cosine
from ssl_bench.runtime.seeds import derive

SCALE = (0.5, 1.0)  # part of the short side that a crop's side has


@final
class SegmentationModel(nn.Module):
    """A backbone that learns, batch norm, and a linear layer on its patches.

    Args:
        backbone: To train, changed in place.
        classes: K.
        drop_path: Stochastic depth at the last block.
        seed: Of the decoder's first weights.
    """

    def __init__(self, backbone: Backbone, classes: int, drop_path: float, seed: int) -> None:
        super().__init__()
        self.backbone = backbone
        set_drop_path(backbone, drop_path)
        with torch.random.fork_rng(devices=[]):  # which layers would otherwise draw from in vain
            self.norm, self.head = nn.BatchNorm1d(backbone.dim), nn.Linear(backbone.dim, classes)
        generator = torch.Generator().manual_seed(derive(seed, HEAD))
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.to(next(backbone.parameters()).device).train()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, s, s) normalised images -> (B, g, g, K) logits of patches."""
        patches = self.backbone.patch_map(images)  # (B, g, g, D)
        logits: Tensor = self.head(self.norm(patches.flatten(0, 2)))
        return logits.view(*patches.shape[:3], -1)


@final
class SegmentationFinetune(Evaluation[SegmentationModel]):
    """Fine-tuning with a linear decoder: mean IoU, frequency-weighted IoU, pixel accuracy.

    Args:
        epochs: Passes over the images.
        warmup_epochs: Of them, with a rate that grows linearly from 0.
        batch_size: Images per step.
        lrs: Learning rates to choose from, of the decoder.
        layer_decay: Factor on the rate per block, from the decoder down to the patch embedding.
        drop_path: Stochastic depth at the last block, growing linearly from 0.
        weight_decay: On tensors of two or more dimensions but tokens and positions.
        short_side: Pixels that test images' short side is brought to; a small image's own size, or the network's, when
            not given.
        seed: Of all that is random.
    """

    trains: ClassVar[bool] = True
    metric: ClassVar[str] = "mIoU"
    needs: ClassVar[Literal["classes", "masks"]] = "masks"

    def __init__(
        self,
        epochs: PositiveInt = 50,
        warmup_epochs: NonNegativeFloat = 5.0,
        batch_size: PositiveInt = 16,
        lrs: Rates = (1e-4, 3e-4, 1e-3),
        layer_decay: Fraction = 0.65,
        drop_path: ProperFraction = 0.1,
        weight_decay: NonNegativeFloat = 0.05,
        short_side: PositiveInt | None = None,
        seed: Seed = 0,
    ) -> None:
        if warmup_epochs >= epochs:
            raise ValueError(f"warmup_epochs {warmup_epochs} must be below epochs {epochs}: lower it")
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.batch_size = batch_size
        self.lrs = lrs
        self.layer_decay = layer_decay
        self.drop_path = drop_path
        self.weight_decay = weight_decay
        self.short_side = short_side
        self.seed = seed

    def fit(self, backbone: FeatureExtractor, train: TrainSplit, validation: ValidationSplit) -> Fit[SegmentationModel]:
        if len(validation) == 0:
            raise UserError("the validation split, on which this chooses, is empty: raise data.val_fraction")
        classes, found = class_count([train, validation]), []
        for lr in self.lrs:
            model = self._trained(backbone, train, classes, lr)
            found.append((self._validation_iou(model, backbone, validation), model))
        scores = [score for score, _ in found]
        best = int(np.argmax(scores))
        return Fit(
            found[best][1],
            chosen={"lr": self.lrs[best]},
            grid={"lr": list(self.lrs)},
            at_grid_boundary=len(self.lrs) > 1 and self.lrs[best] in (min(self.lrs), max(self.lrs)),
            curve={"lr": list(self.lrs), "validation mIoU": scores},
        )

    def predict(self, backbone: FeatureExtractor, fit: Fit[SegmentationModel], test: TestImages) -> Segmentations:
        masks = list(self._masks(fit.state, backbone, test))
        return Segmentations(fit.state.head.out_features, lambda place: masks[place])

    def _trained(self, backbone: FeatureExtractor, train: TrainSplit, classes: int, lr: float) -> SegmentationModel:
        model = SegmentationModel(backbone.trainable(), classes, self.drop_path, self.seed)
        parameters = groups(model, self.layer_decay, self.weight_decay)
        optimizer = torch.optim.AdamW(parameters, lr=0.0, betas=(0.9, 0.999))
        steps = max(1, len(train) // self.batch_size)
        total, warmup = self.epochs * steps, round(self.warmup_epochs * steps)
        with progress(f"fine-tuning for segmentation at {lr:g}", total, "steps") as bar:
            for step, (images, masks) in enumerate(self._batches(backbone, train, steps)):
                set_rate(optimizer, warmup_cosine(step, total, warmup, lr))
                with drawing(derive(self.seed, STEP, step), backbone.device):
                    logits = model(backbone.normalized(images)).permute(0, 3, 1, 2)  # (B, K, g, g)
                    logits = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
                    loss = F.cross_entropy(logits, masks.long().to(logits.device), ignore_index=IGNORE, reduction="sum")
                    loss = loss / max(1, int((masks != IGNORE).sum()))
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                optimizer.step()
                bar.update()
        return model.requires_grad_(False).eval()

    def _batches(self, backbone: FeatureExtractor, train: TrainSplit, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, 3, s, s) crops in [0, 1] and (B, s, s) uint8 masks, epoch after epoch."""
        workers = 0 if isinstance(train.pool, ResidentPool) else backbone.num_workers
        for epoch in range(self.epochs):
            generator = torch.Generator().manual_seed(derive(self.seed, ORDER, epoch))
            order = torch.randperm(len(train), generator=generator).tolist()[: steps * self.batch_size]
            crops = Crops(train, order, backbone.img_size, self.seed, epoch)
            loader = DataLoader(
                crops, self.batch_size, num_workers=workers, collate_fn=list, generator=torch.Generator()
            )
            for items in loader:
                for item in items:
                    if isinstance(item, UnreadableImage):
                        raise item
                yield torch.stack([image for image, _ in items]), torch.stack([mask for _, mask in items])

    def _masks(self, model: SegmentationModel, backbone: FeatureExtractor, split: Split) -> Iterator[Mask]:
        """(H, W) classes of each image of a split, in its order."""
        grid = grid_of(backbone, self.short_side)
        for whole in whole_images(split, grid, backbone.num_workers):
            with torch.inference_mode():
                windows = grid.windows(whole.image)
                maps = [model(backbone.normalized(some)) for some in windows.split(backbone.batch_size)]
            yield upsampled(grid.joined(torch.cat(maps), *whole.image.shape[1:]), whole.size)

    def _validation_iou(self, model: SegmentationModel, backbone: FeatureExtractor, split: ValidationSplit) -> float:
        counts = np.stack(
            [counts_of(split.mask(place), mask) for place, mask in enumerate(self._masks(model, backbone, split))]
        )
        return float(mean_iou(counts.sum(0).astype(np.float64).reshape(-1)))


@final
class Crops(Dataset["tuple[Tensor, Tensor] | UnreadableImage"]):
    """Random crops of images with their masks; which one follows from the seed, the epoch and the image's row.

    Args:
        split: The images.
        order: Places in it.
        size: s.
        seed: Of the crops.
        epoch: Likewise.
    """

    def __init__(self, split: TrainSplit, order: list[int], size: int, seed: int, epoch: int) -> None:
        self.split, self.order, self.size, self.seed, self.epoch = split, order, size, seed, epoch

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, at: int) -> "tuple[Tensor, Tensor] | UnreadableImage":
        place = self.order[at]
        row = int(self.split.rows[place])
        try:
            image = torch.from_numpy(np.array(self.split.pool.image(row))).permute(2, 0, 1).float() / 255
        except BrokenImage as error:
            return UnreadableImage.of(self.split.pool.ids[row], str(error))
        mask = torch.from_numpy(np.array(self.split.mask(place)))
        generator = torch.Generator().manual_seed(derive(self.seed, self.epoch, row))
        return crop_together(image, mask, self.size, SCALE, generator)
