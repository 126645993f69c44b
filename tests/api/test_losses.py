"""Losses, heads and views alone: what they take, and that they are the methods' own."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import BarlowTwinsLoss, NTXentLoss, VICRegLoss
from torch import Tensor

import ssl_bench
from ssl_bench.config.options import BackboneOptions
from ssl_bench.methods.mae import MAE
from ssl_bench.models.backbone import Backbone

losses: Any = ssl_bench.losses


@pytest.fixture
def views() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(16, 8), torch.randn(16, 8)


def test_contrastive_losses_take_vectors_of_any_length(views: tuple[Tensor, Tensor]) -> None:
    z0, z1 = views
    expected = 2 * NTXentLoss(0.2)(z0, z1)
    torch.testing.assert_close(losses.nt_xent(3 * z0, z1, 0.2), expected)
    q, k = F.normalize(z0, dim=1), F.normalize(z1, dim=1)
    terms = [-((q[i] @ k.T / 0.2).log_softmax(0)[i]) for i in range(16)]
    torch.testing.assert_close(losses.info_nce(z0, 5 * z1, 0.2), 2 * 0.2 * torch.stack(terms).mean())


def test_regression_and_redundancy_losses(views: tuple[Tensor, Tensor]) -> None:
    z0, z1 = views
    torch.testing.assert_close(losses.byol(z0, z1), 2 - 2 * F.cosine_similarity(z0, z1))
    torch.testing.assert_close(losses.vicreg(z0, z1), VICRegLoss()(z0, z1))
    torch.testing.assert_close(losses.barlow_twins(z0, z1, 0.005), BarlowTwinsLoss(0.005)(z0, z1), rtol=1e-4, atol=0)


def test_self_distillation_in_loops() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 5), torch.randn(2, 3, 5).softmax(2)
    terms = []
    for crop in range(4):
        for target in range(2):
            if crop != target:
                logs = (student[crop] / 0.1).log_softmax(1)
                terms.append(-(teacher[target] * logs).sum(1).mean())
    torch.testing.assert_close(losses.dino(student, teacher, 0.1), torch.stack(terms).mean())
    balanced = losses.sinkhorn(10 * torch.randn(12, 4), 50)
    torch.testing.assert_close(balanced.sum(0), torch.full((4,), 3.0), rtol=1e-3, atol=0)


def test_koleo_is_less_for_features_that_are_spread() -> None:
    assert losses.koleo(torch.eye(6)) < losses.koleo(torch.eye(6) + 2)


def test_masked_patches_is_what_mae_learns() -> None:
    torch.manual_seed(0)
    backbone = Backbone(BackboneOptions("vit_pico_patch4_32", img_size=12, patch_size=4, depth=1))
    method = MAE(backbone, decoder_dim=16, decoder_depth=1, decoder_heads=2, mask_ratio=0.5)
    images, noise = torch.rand(3, 3, 12, 12), torch.rand(3, 9)
    keep, hidden = method.split_patches(3, noise)
    alone = losses.masked_patches(method.reconstruct(images, keep, hidden), images, hidden, patch_size=4)
    torch.testing.assert_close(alone, method.loss([images], noise=noise))
    flat = losses.masked_patches(torch.zeros(3, 5, 48), torch.full((3, 3, 12, 12), 0.5), hidden, 4, norm_pix=False)
    assert flat.item() == pytest.approx(0.25)


def test_views_are_made_from_their_description() -> None:
    make = ssl_bench.views.DeviceViews([ssl_bench.views.View(8, count=2, flip=0.0)], (0.5,) * 3, (0.25,) * 3)
    images = torch.full((4, 3, 12, 12), 255, dtype=torch.uint8)
    for view in make(images, torch.Generator().manual_seed(0)):
        torch.testing.assert_close(view, torch.full((4, 3, 8, 8), 2.0))
