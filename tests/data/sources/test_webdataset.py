"""WebDataset tars: samples, labels, splits, and what is refused."""

import io
import json
import tarfile

import numpy as np
import pytest
from pictures import encoded, picture

from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.files.content import content_of
from ssl_bench.errors import UserError


def opened(root, **options):
    return load_dataset(DataOptions(name="webdataset", root=str(root), **options))


def refusal(root, **options) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def tar(tmp_path):
    def write(name, files):
        with tarfile.open(tmp_path / name, "w") as opened:
            for member, content in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
        return tmp_path / name

    return write


def sample(key, number, label=None, **more):
    """An image, its class, and a description."""
    files = {f"{key}.png": encoded(picture(number))}
    if label is not None:
        files[f"{key}.cls"] = str(label).encode()
    return {**files, **{f"{key}.{ending}": content for ending, content in more.items()}}


def all_of(*samples):
    return {name: content for each in samples for name, content in each.items()}


def test_samples_of_several_tars_with_their_classes(tar):
    tar("set-train-000.tar", all_of(*(sample(f"deep/{n:03d}", n, n % 2, txt=b"a caption") for n in range(4))))
    tar("set-train-001.tar", all_of(*(sample(f"{n:03d}", n, n % 2) for n in range(4, 6))))
    root = tar("set-test-000.tar", all_of(*(sample(f"{n:03d}", n + 50, 1 - n % 2) for n in range(3)))).parent
    data = opened(root)
    assert data.classes == ("0", "1") and data.pretrain.labels.tolist() == [0, 1] * 3
    assert data.test.labels.tolist() == [1, 0, 1] and data.fingerprint["test_is"] == "the test files"
    assert data.pretrain.ids[:2] == ["set-train-000.tar/deep/000", "set-train-000.tar/deep/001"]
    for number in range(6):
        assert (np.asarray(data.pretrain.image(number)) == np.asarray(picture(number))).all()


def test_labels_in_json_and_names_for_classes(tar):
    files = all_of(*(sample(n, n, json=json.dumps({"label": "ab"[n % 2], "box": [1, 2]}).encode()) for n in range(4)))
    assert opened(tar("000.tar", files)).classes == ("a", "b")
    assert opened(tar("000.tar", files), label_column="none").classes is None
    assert "did you mean 'label'" in refusal(tar("000.tar", files), label_column="labl")
    assert "several labels" in refusal(tar("000.tar", files), label_column="box")


def test_several_labels_are_never_chosen_among(tar):
    files = all_of(*(sample(n, n, n % 2, json=json.dumps({"label": n % 3}).encode()) for n in range(6)))
    assert "(cls, label)" in refusal(tar("000.tar", files))
    assert opened(tar("000.tar", files), label_column="label").classes == ("0", "1", "2")


def test_what_is_left_out_and_what_is_wrong(tar, tmp_path):
    files = all_of(*(sample(n, n, n % 2) for n in range(4)), {"lonely.cls": b"1"})
    assert opened(tar("000.tar", files)).skipped == {"000.tar/lonely": "a sample without an image"}
    path = tar("000.tar", all_of(*(sample(n, n, n % 2 if n else None) for n in range(4))))
    assert "1 of 4 samples have no label" in refusal(path)
    whole = tar("000.tar", files).read_bytes()
    (tmp_path / "000.tar").write_bytes(whole[: len(whole) // 2])
    assert "000.tar" in refusal(tmp_path / "000.tar")
    (tmp_path / "000.tar").write_bytes(b"no tar at all" * 100)
    assert "no readable tar" in refusal(tmp_path / "000.tar")
    twice = all_of(sample("0", 0, 1), {"0.jpg": encoded(picture(1))})
    assert "several images (png, jpg)" in refusal(tar("001.tar", twice))


def test_a_run_on_tars_is_known_by_their_content(tar, tmp_path):
    path = tar("000.tar", all_of(*(sample(n, n, n % 2) for n in range(4))))
    before = content_of(DataOptions(name="webdataset", root=str(path))).digest
    tar("000.tar", all_of(*(sample(n, n + 1, n % 2) for n in range(4))))
    assert content_of(DataOptions(name="webdataset", root=str(path))).digest != before
