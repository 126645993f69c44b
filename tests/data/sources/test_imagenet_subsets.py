"""TinyImageNet and ImageNet-100 in the layouts that people have."""

from pathlib import Path

import numpy as np
import pytest
from pictures import picture

from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.files import imagenet_subsets
from ssl_bench.data.files.content import content_of
from ssl_bench.errors import UserError


def write(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(number, 20, 20).save(root / name)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Three classes stand for 200 and for 100."""
    monkeypatch.setattr(imagenet_subsets, "TINY_CLASSES", 3)
    monkeypatch.setattr(imagenet_subsets, "CLASSES", 3)


@pytest.fixture
def tiny(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    write(root, *(f"train/n0{c}/images/n0{c}_{i}.JPEG" for c in (1, 2, 3) for i in range(3)))
    write(root, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "val/images/val_2.JPEG", "test/images/test_0.JPEG")
    (root / "train" / "n01" / "n01_boxes.txt").write_text("n01_0.JPEG\t0\t0\t1\t1\n")
    rows = [f"val_{i}.JPEG\tn0{c}\t0\t0\t9\t9\n" for i, c in enumerate((3, 1, 2))]
    (root / "val" / "val_annotations.txt").write_text("".join(rows))
    return tmp_path


def test_tiny_imagenet(tiny):
    data = load_dataset(DataOptions(name="tiny_imagenet", root=str(tiny)))
    assert data.classes == ("n01", "n02", "n03") and len(data.pretrain) == 9
    assert data.test.ids == [f"val/images/val_{i}.JPEG" for i in range(3)] and data.test.labels.tolist() == [2, 0, 1]
    assert data.fingerprint["test_is"] == "val" and np.bincount(data.pretrain.labels).tolist() == [3, 3, 3]
    inside = load_dataset(DataOptions(name="tiny_imagenet", root=str(tiny / "tiny-imagenet-200")))
    assert inside.fingerprint["sha256"] == data.fingerprint["sha256"]
    (tiny / "tiny-imagenet-200" / "val" / "val_annotations.txt").unlink()
    with pytest.raises(UserError, match="val_annotations.txt"):
        load_dataset(DataOptions(name="tiny_imagenet", root=str(tiny)))


def test_imagenet100_in_three_layouts(tmp_path):
    write(tmp_path / "plain", *(f"{s}/n0{c}/{i}.JPEG" for s in ("train", "val") for c in (1, 2, 3) for i in range(2)))
    kaggle = [f"train.X{1 + c % 2}/n0{c}/{i}.JPEG" for c in (1, 2, 3) for i in range(2)]
    write(tmp_path / "kaggle", *kaggle, *(f"val.X/n0{c}/{i}.JPEG" for c in (1, 2, 3) for i in range(2)))
    write(tmp_path / "all", *(f"{s}/n0{c}/{i}.JPEG" for s in ("train", "val") for c in range(1, 7) for i in range(2)))
    (tmp_path / "all" / "imagenet100.txt").write_text("n03\nn01\nn02 cat\n")
    for name in ("plain", "kaggle", "all"):
        data = load_dataset(DataOptions(name="imagenet100", root=str(tmp_path / name)))
        assert data.classes == ("n01", "n02", "n03") and len(data.pretrain) == len(data.test) == 6
    digests = [content_of(DataOptions(name="imagenet100", root=str(tmp_path / n))).digest for n in ("plain", "all")]
    assert digests[0] == digests[1]
    (tmp_path / "all" / "imagenet100.txt").write_text("n04\nn05\nn06\n")
    assert content_of(DataOptions(name="imagenet100", root=str(tmp_path / "all"))).digest != digests[0]


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    def said(root, name="imagenet100"):
        with pytest.raises(UserError) as caught:
            load_dataset(DataOptions(name=name, root=root))
        return str(caught.value)

    assert "needs --data.root" in said(None) and "needs --data.root" in said(None, "tiny_imagenet")
    assert "no folder" in said(str(tmp_path / "absent"))
    write(tmp_path, "train/n01/0.JPEG", "train/n02/0.JPEG")
    assert "2 classes, not 3" in said(str(tmp_path)) and "imagenet100.txt" in said(str(tmp_path))
    write(tmp_path, "train/n03/0.JPEG")
    assert "no val/" in said(str(tmp_path))
    write(tmp_path, "val/n01/0.JPEG")
    assert "class n02 has no images in val/ (and 1 more)" in said(str(tmp_path))
