"""Features of a frozen backbone: computed once per split, kept in memory and on disk, shared by every evaluation.

One class, a little above 300 lines: extraction, its cache in memory and on disk, and its cost must agree on one key.

Shapes: N images of a split, B of a batch, 3 x s x s pixels, D features.
"""

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, final

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ssl_bench
from ssl_bench.augment.views import View
from ssl_bench.console import say
from ssl_bench.data.evaluation_batches import augmented_batches, evaluation_batches
from ssl_bench.data.geometry import short_side
from ssl_bench.data.splits import Split
from ssl_bench.errors import UserError
from ssl_bench.evaluation.cost import Cost, progress, rows_digest, split_name
from ssl_bench.evaluation.feature_bank import FeatureBank, load_bank, save_bank, scales_of
from ssl_bench.evaluation.kmeans_patches import KMeansPatches
from ssl_bench.evaluation.pixels import Pixels
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import Classifier
from ssl_bench.runtime.distributed import all_reduce_sum, rank, world_size
from ssl_bench.runtime.precision import full_precision


@final
class FeatureExtractor:
    """What evaluations receive: a backbone that cannot learn, and its features of any split.

    It holds its own copy of the network, always in eval mode and without gradients; the caller's is left as it was. A
    feature type named `a+b` is the feature types a and b side by side, and takes no memory of its own.

    Args:
        network: A Backbone, or a baseline without one.
        mean: Of each channel of the images the network was pretrained on; part of the checkpoint, not of the protocol.
        std: Likewise.
        identity: What else tells this network from others (checkpoint, branch, method ...), plain types only.
        cache_dir: Where features are kept for later; nowhere when None.
        device: Where the network runs and features are returned.
        batch_size: Images per forward pass; if not given, as many as keep a GPU busy or stay in a processor's cache.
        num_workers: Processes that decode photographs.
        classifier: That was trained with the network and tells the classes at hand apart; most have none.
        head: First hidden layer of the projection head that was trained on the network's primary features; many have
            none. It is no part of the state: nothing but a copy of it is ever used.
    """

    def __init__(
        self,
        network: Backbone | Pixels | KMeansPatches,
        mean: Sequence[float],
        std: Sequence[float],
        identity: dict[str, Any],
        cache_dir: Path | None = None,
        device: torch.device | str = "cpu",
        batch_size: int | None = None,
        num_workers: int = 2,
        classifier: Classifier | None = None,
        head: nn.Module | None = None,
    ) -> None:
        self.network = copy.deepcopy(network).to(device).requires_grad_(False).eval()
        self.classifier = copy.deepcopy(classifier).to(device).requires_grad_(False).eval() if classifier else None
        self.head = copy.deepcopy(head).to(device).requires_grad_(False).eval() if head else None
        self.mean, self.std = tuple(mean), tuple(std)
        self.identity = identity
        self.cache_dir = cache_dir
        self.device = torch.device(device)
        self.batch_size = batch_size or (32 if self.device.type == "cpu" else 256)
        self.num_workers = num_workers
        self.feature_types = tuple(network.feature_types)
        self.primary_feature_type = network.primary_feature_type
        self.img_size = network.img_size
        self.channels = int(getattr(network, "channels", 3))  # a network that does not say takes RGB
        self.used: dict[str, Cost] = {}  # splits whose features were asked for since last cleared, and what they cost
        self.spent = Cost()  # on passes made by this object, as opposed to features found on disk
        # By id of the split, kept alive so that the id stays its own, and view.
        self._banks: dict[tuple[int, int | None], tuple[Split, FeatureBank]] = {}
        self._loaded_state = self.state_hash()
        self._cache_fails = False  # once it could not be written

    def train(self, mode: bool = True) -> Self:
        """Nothing changes: a frozen backbone stays in eval mode."""
        return self

    def normalized(self, images: Tensor) -> Tensor:
        """(B, 3, s, s) images in [0, 1], on this device, as the network saw them in pretraining."""
        images = images.to(self.device)
        mean, std = (images.new_tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def embed(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, s, s) images in [0, 1] -> type -> (B, D) float32 on this device; composed types are left out."""
        self.network.eval()  # whoever reached in and called train()
        with torch.inference_mode(), full_precision():
            features = self.network.features(self.normalized(images), self._simple_feature_types)
        return {feature_type: feature.float() for feature_type, feature in features.items()}

    def tokens(self, images: Tensor) -> Tensor:
        """(B, 3, s, s) images in [0, 1] -> (B, T, D) float32: class token and patches, or a final map's places."""
        self.network.eval()
        with torch.inference_mode(), full_precision():
            return self.network.token_grid(self.normalized(images)).float()

    def patch_map(self, images: Tensor, layers: int = 1) -> Tensor:
        """(B, 3, s, s) images in [0, 1] -> (B, g, g, D) float32 features of each place, of the last blocks."""
        self.network.eval()
        with torch.inference_mode(), full_precision():
            assert not isinstance(self.network, KMeansPatches)
            return self.network.patch_map(self.normalized(images), layers).float()

    def trainable(self) -> Backbone:
        """A copy of the network that may learn, in train mode and on this device; this one stays as it is.

        Raises:
            UserError: It is a baseline that has nothing to train.
        """
        if not isinstance(self.network, Backbone):
            raise UserError(self.untrainable or "")
        return copy.deepcopy(self.network).requires_grad_(True).train()

    def trainable_head(self) -> nn.Module | None:
        """A copy of the head that may learn, likewise; None if there is none."""
        return copy.deepcopy(self.head).requires_grad_(True).train() if self.head else None

    @property
    def baseline(self) -> str:
        """What stands in the place of a network, in words; empty for a network."""
        return self.network.baseline

    @property
    def untrainable(self) -> str | None:
        """Why no copy of the network can be trained; None if one can."""
        if self.baseline:
            return f"{self.baseline} have no network to train"
        known = isinstance(self.network, Backbone)
        return None if known else "its layers are unknown here: networks by name are fine-tuned"

    def features(
        self, split: Split, feature_type: str, rows: slice | Tensor = slice(None), view: int | None = None
    ) -> Tensor:
        """(N, D) float32 features of a split's images in its order, or of some ``rows`` of it, as stored in float16.

        Args:
            split: The images.
            feature_type: Of features.
            rows: Of the split, all if not given.
            view: Not of the images as they are but of a random crop of each, perhaps mirrored (CROPS): the one of
                this number, which is the same for every network and protocol.

        Raises:
            UserError: The network has no such feature type, or gives features that are not numbers.
        """
        if feature_type not in self.feature_types:
            raise UserError(
                f"this backbone has no features {feature_type!r}: its feature types are {', '.join(self.feature_types)}"
            )
        bank = self._bank(split, view)
        parts = []
        for part in [feature_type] if feature_type in bank.halves else feature_type.split("+"):
            half, scale = bank.halves[part], bank.scales[part].to(self.device)
            half = half.index_select(0, rows) if isinstance(rows, Tensor) else half[rows]  # in a tenth of half[rows]
            parts.append(half.to(self.device).float().mul_(scale))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def state_hash(self) -> str:
        """sha256 of all parameters and buffers."""
        digest = hashlib.sha256()
        parts = [part for part in (self.network, self.classifier) if part is not None]
        for name, tensor in (item for p in parts for item in (*p.named_parameters(), *p.named_buffers())):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def flops_per_image(self) -> int:
        """Of one forward pass, all feature types included; one multiply-add is two."""
        image = torch.zeros(1, self.channels, self.img_size, self.img_size, device=self.device)
        # Fused attention is invisible to the counter on CPUs.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.network.features(image, self._simple_feature_types)
        return int(counter.get_total_flops())

    @cached_property
    def geometry(self) -> dict[str, Any]:
        """How an image is brought to the network's size."""
        crop = self.img_size / short_side(self.img_size)
        return {"img_size": self.img_size, "crop": round(crop, 4), "interpolation": "bicubic"}

    @property
    def _simple_feature_types(self) -> list[str]:
        """The feature types that are not others side by side."""
        return [
            k
            for k in self.feature_types
            if "+" not in k or not all(part in self.feature_types for part in k.split("+"))
        ]

    def _bank(self, split: Split, view: int | None) -> FeatureBank:
        if (id(split), view) not in self._banks:
            bank = self._cached(split, view, self.cache_dir) if self.cache_dir else self._extract(split, view)
            self._banks[id(split), view] = split, bank
        bank = self._banks[id(split), view][1]
        self.used[_bank_name(split, view)] = bank.cost
        return bank

    def _cached(self, split: Split, view: int | None, folder: Path) -> FeatureBank:
        fields = self.fields(split, view)
        path = folder / f"{_bank_name(split, view)}-{_sha256(fields)}.safetensors"
        bank = load_bank(path, fields)
        if int(self._total(torch.tensor(int(bank is not None)))) < world_size():
            bank = self._extract(split, view)
            if rank() == 0:
                bank = self._saved(path, fields, bank)
        assert bank is not None
        return bank

    def _saved(self, path: Path, fields: dict[str, Any], bank: FeatureBank) -> FeatureBank:
        """The features as mapped from their file, so that many views need not fit into memory; or as they are."""
        if self._cache_fails:
            return bank
        try:
            save_bank(path, fields, bank)
        except (OSError, SafetensorError) as error:  # a full or read-only disk: features serve without it
            self._cache_fails = True
            say(f"warning: features cannot be kept in {path.parent} ({error}): the next command computes them again")
            return bank
        return load_bank(path, fields) or bank

    def fields(self, split: Split, view: int | None = None) -> dict[str, Any]:
        """All that features depend on."""
        return {
            "split": split_name(split),
            "view": None if view is None else [view, json.loads(json.dumps(asdict(crops(self.img_size))))],
            "images": len(split),
            "rows": rows_digest(split),
            "data": split.pool.digest(),
            "state": self._loaded_state,
            "network": self.network.spec,
            "identity": self.identity,
            "feature_types": self._simple_feature_types,
            "geometry": self.geometry,
            "mean": self.mean,
            "std": self.std,
            "dtype": "float32 forward, float16 kept",
            "device": self.device.type,
            "versions": {
                "ssl_bench": ssl_bench.__version__,
                **{name: version(name) for name in ("torch", "timm", "pillow")},  # Pillow decodes and resizes
            },
        }

    def batches(self, split: Split, view: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Each image of a split once, in its order: (B, 3, s, s) in [0, 1] and the (B,) places in the split.

        With several processes each gets every so many-th image; together they get each once.
        """
        if split.pool.channels != self.channels:
            own = f"{self.channels} channel{'s' * (self.channels > 1)}"
            raise UserError(f"the network takes images of {own}, and these have {split.pool.channels}: choose its data")
        part = dataclasses.replace(split, rows=split.rows[rank() :: world_size()])
        if view is None:
            found = evaluation_batches(part, self.img_size, self.batch_size, self.num_workers)
        else:
            found = augmented_batches(part, crops(self.img_size), view, self.batch_size, self.num_workers)
        place = {int(row): at for at, row in enumerate(split.rows)}
        for images, rows in found:
            yield images, torch.tensor([place[int(row)] for row in rows])

    def _total(self, values: Tensor) -> Tensor:
        """Sum over processes, which talk through the device."""
        return values if world_size() == 1 else all_reduce_sum(values.to(self.device)).cpu()

    def _extract(self, split: Split, view: int | None) -> FeatureBank:
        """One pass over the split, shared by all processes.

        Raises:
            RuntimeError: The batches did not hold each image exactly once.
            UserError: The network gives features that are not numbers.
        """
        start = time.perf_counter()
        width = {
            feature_type: f.shape[1]
            for feature_type, f in self.embed(torch.zeros(1, self.channels, self.img_size, self.img_size)).items()
        }
        features = {feature_type: torch.zeros(len(split), d) for feature_type, d in width.items()}
        seen = torch.zeros(len(split), dtype=torch.int64)
        what = f"features of the {_bank_name(split, view).replace('-', ' ')} images"
        with progress(what, len(split) // world_size()) as bar:
            for images, places in self.batches(split, view):
                seen.index_add_(0, places, torch.ones_like(places))
                for feature_type, batch in self.embed(images).items():
                    features[feature_type][places] = batch.cpu()
                bar.update(len(places))
        seen = self._total(seen)
        features = {
            feature_type: self._total(values) for feature_type, values in features.items()
        }  # 0 but in one process: exact
        if (seen != 1).any():
            raise RuntimeError(
                f"{split_name(split)} features: {int((seen == 0).sum())} of {len(split)} images missing, "
                f"{int((seen > 1).sum())} seen more than once"
            )
        for feature_type, values in features.items():
            if not values.isfinite().all():
                raise UserError(
                    f"the backbone's {feature_type!r} features are not finite: its pretraining has diverged"
                )
        scales = {feature_type: scales_of(values) for feature_type, values in features.items()}
        halves = {feature_type: (features[feature_type] / scales[feature_type]).half() for feature_type in features}
        cost = Cost(len(split), len(split) * self.flops_per_image, time.perf_counter() - start)
        self.spent += cost
        return FeatureBank(halves, scales, cost)


def crops(size: int) -> View:
    """The augmentation of probes on frozen features, the same for every method: MAE's, which is everyone's."""
    return View(size, scale=(0.08, 1.0), interpolation="bicubic", flip=0.5)


def _bank_name(split: Split, view: int | None) -> str:
    return split_name(split) + ("" if view is None else f"-view{view}")


def _sha256(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
