"""Projection and prediction heads of the methods, and the teacher that follows a student.

Each takes the width D of a network's (B, D) features first and is an `nn.Module`.
"""

from ssl_bench.methods.barlow_twins import projector as barlow_twins_projector
from ssl_bench.methods.byol import mlp as byol_mlp
from ssl_bench.methods.moco_v3 import mlp as moco_v3_mlp
from ssl_bench.methods.simclr import projection_head as simclr_head
from ssl_bench.methods.simsiam import projector as simsiam_projector
from ssl_bench.methods.vicreg import projector as vicreg_projector
from ssl_bench.models.dino_head import Centre, DINOHead, Prototypes
from ssl_bench.pretraining.ema_teacher import EMATeacher

__all__ = [
    "Centre",
    "DINOHead",
    "EMATeacher",
    "Prototypes",
    "barlow_twins_projector",
    "byol_mlp",
    "moco_v3_mlp",
    "simclr_head",
    "simsiam_projector",
    "vicreg_projector",
]
