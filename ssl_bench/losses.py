"""The methods' losses as plain functions of tensors: the very ones that the methods train with.

Shapes: B images per device, V crops of each, P projected features, K prototypes, M hidden patches, p pixels of a
patch's side. All compute in float32 at least; those that compare images see the images of all devices.

| function | of | arguments |
|---|---|---|
| `nt_xent` | SimCLR, SimCLRv2 | (B, P) of either view, temperature |
| `info_nce` | MoCo v3 | (B, P) predictions, (B, P) keys, temperature |
| `byol` | BYOL | (B, P) predictions, (B, P) targets -> (B,) |
| `dino` | DINO, SwAV, DINOv2 | (V, B, K) logits of the student, (2, B, K) probabilities, temperature |
| `sinkhorn` | SwAV, DINOv2 | (B, K) logits -> balanced probabilities, which are targets of `dino` |
| `koleo` | DINOv2 | (B, D) features |
| `vicreg` | VICReg | (B, P) of either view, weights of the three terms |
| `barlow_twins` | Barlow Twins | (B, P) of either view, weight off the diagonal |
| `masked_patches` | MAE | (B, M, 3pp) predictions, images, hidden patches |
"""

from ssl_bench.methods.barlow_twins import distance_from_identity as barlow_twins
from ssl_bench.methods.byol import distance as byol
from ssl_bench.methods.dinov2 import koleo
from ssl_bench.methods.mae import masked_patches
from ssl_bench.methods.moco_v3 import info_nce
from ssl_bench.methods.simclr import nt_xent
from ssl_bench.methods.vicreg import regularised_distance as vicreg
from ssl_bench.models.dino_head import crop_cross_entropy as dino
from ssl_bench.models.sinkhorn import sinkhorn

__all__ = [
    "barlow_twins",
    "byol",
    "dino",
    "info_nce",
    "koleo",
    "masked_patches",
    "nt_xent",
    "sinkhorn",
    "vicreg",
]
