"""A fine-tuned run for the methods that learn from one."""

from pathlib import Path

import pytest
import small
import torch

from ssl_bench.config.options import BackboneOptions
from ssl_bench.models.backbone import Backbone
from ssl_bench.models.classifier import Classifier, save_classifier
from ssl_bench.models.saved_backbone import write_backbone


@pytest.fixture(scope="session", autouse=True)
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its folder; whatever method has an option `teacher` is given it."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(7)
    backbone = Backbone(BackboneOptions("resnet_nano", img_size=32, timm_args={"channels": [8, 16, 24, 32]}))
    classifier = Classifier(backbone.dim, small.CLASSES, layers=1)
    torch.nn.init.normal_(classifier.hidden[0].weight)
    torch.nn.init.normal_(classifier.linear.weight, std=0.5)
    write_backbone(folder, backbone, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_classifier(folder, classifier, tuple("abcdefghij"))
    small.SIZES["teacher"] = str(folder)
    return folder
