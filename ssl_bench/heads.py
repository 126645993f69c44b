"""Projection and prediction heads of the methods, and the teacher that follows a student.

Each takes the width D of a network's (B, D) features first and is an `nn.Module`.
"""

__all__ = [
    *("Centre", "DINOHead", "EMATeacher", "Prototypes", "barlow_twins_projector", "byol_mlp"),
    *("moco_v3_mlp", "simclr_head", "simsiam_projector", "vicreg_projector"),
]
