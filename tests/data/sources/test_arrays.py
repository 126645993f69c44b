"""Arrays of images with any channels and bits: told by their names, scaled by one range, refused with a remedy."""

import numpy as np
import pytest
import torch
import zarr

from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.files.content import content_of
from ssl_bench.data.pool import ResidentPool
from ssl_bench.errors import UserError


def opened(root, **options):
    return load_dataset(DataOptions(name="array", root=str(root), **options))


def refusal(root, **options) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def noise(*shape, dtype=np.uint8, high=256, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


LABELS = np.arange(10) % 2


def test_gray_8_bit_images_stay_as_they_are(tmp_path):
    images = noise(10, 12, 9)
    np.save(tmp_path / "images.npy", images)
    data = opened(tmp_path / "images.npy")
    assert data.channels == 1 and data.classes is None and data.image_size == 9
    assert (data.pretrain.images[:, 0].numpy() == images).all()
    assert data.mean == (round(float(images.mean() / 255), 4),)
    assert data.std == (round(float(images.std() / 255), 4),)
    assert data.fingerprint["geometry"] == {"channels": 1, "smallest": [9, 12], "largest": [9, 12], "looked_at": 10}


def test_thirteen_channels_of_16_bits_keep_every_bit(tmp_path):
    images = noise(10, 8, 8, 13, dtype=np.uint16, high=9000)
    np.savez(tmp_path / "set.npz", images=images, labels=LABELS)
    data = opened(tmp_path / "set.npz", value_range="0,10000")
    both = torch.cat([data.train.pool.images, data.test.pool.images])
    assert data.channels == 13 and both.dtype == torch.float32
    back = (both.double() * 10_000 / 255).permute(0, 2, 3, 1).round().numpy().astype(np.uint16)
    order = np.lexsort(back.reshape(10, -1).T), np.lexsort(images.reshape(10, -1).T)
    assert (back[order[0]] == images[order[1]]).all()  # nothing was rounded to 8 bits
    values = data.train.pool.images.numpy().transpose(1, 0, 2, 3).reshape(13, -1) / 255
    assert np.allclose(data.mean, values.mean(1), rtol=1e-5) and np.allclose(data.std, values.std(1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(10, 13, 8, 8), (10, 8, 8, 13)])
def test_the_axis_of_channels_is_the_short_one(shape, tmp_path):
    np.save(tmp_path / "images.npy", noise(*shape))
    assert opened(tmp_path).pretrain.images.shape == (10, 13, 8, 8)


def test_channels_decide_where_the_axis_cannot_be_told(tmp_path):
    np.save(tmp_path / "images.npy", noise(10, 8, 8, 8))
    assert "cannot be told" in refusal(tmp_path)
    np.save(tmp_path / "images.npy", noise(10, 13, 32, 3))
    assert opened(tmp_path, channels=13).pretrain.images.shape == (10, 13, 32, 3)
    assert opened(tmp_path).channels == 3
    assert "--data.channels 5" in refusal(tmp_path, channels=5)


def test_gray_arrays_become_rgb_on_request(tmp_path):
    np.save(tmp_path / "images.npy", noise(10, 8, 8))
    assert opened(tmp_path, channels=3).pretrain.images.shape == (10, 3, 8, 8)


@pytest.mark.parametrize(
    "names",
    [("x_train", "y_train", "x_test", "y_test"), ("train_images", "train_labels", "test_images", "test_labels")],
)
@pytest.mark.parametrize("kind", ["npz", "folder", "zarr"])
def test_splits_are_told_by_names(names, kind, tmp_path):
    arrays = dict(zip(names, (noise(10, 8, 8, 3), LABELS, noise(4, 8, 8, 3, seed=1), LABELS[:4, None]), strict=True))
    root = tmp_path / {"npz": "set.npz", "folder": "set", "zarr": "set.zarr"}[kind]
    if kind == "npz":
        np.savez_compressed(root, **arrays)
    elif kind == "folder":
        root.mkdir()
        for name, array in arrays.items():
            np.save(root / f"{name}.npy", array)
    else:
        group = zarr.open_group(str(root), mode="w")
        for name, array in arrays.items():
            group.create_array(name, data=array)
    data = opened(root)
    assert data.test.labels.tolist() == [0, 1, 0, 1] and data.fingerprint["test_is"] == "the test array"
    assert (data.test.pool.images.permute(0, 2, 3, 1).numpy() == arrays[names[2]]).all()
    assert data.pretrain.labels.tolist() == LABELS.tolist() and data.classes == ("0", "1")


def test_text_labels_float_images_and_values_that_are_no_numbers(tmp_path):
    images = np.random.default_rng(0).random((10, 3, 8, 8), dtype=np.float32)
    images[4, 1, 2, 3] = np.nan
    np.savez(tmp_path / "set.npz", images=images, labels=np.array(["cat", "dog"] * 5))
    data = opened(tmp_path / "set.npz")
    assert data.classes == ("cat", "dog") and len(data.pretrain) + len(data.test) == 9
    assert dict(data.skipped) == {"train/000004": "some of its values are not numbers"}
    assert isinstance(data.pretrain, ResidentPool) and torch.isfinite(data.pretrain.images).all()
    assert "--data.strict" in refusal(tmp_path / "set.npz", strict=True)


def test_labels_are_never_guessed_and_one_for_each_image(tmp_path):
    file, images = tmp_path / "set.npz", noise(10, 8, 8)
    np.savez(file, images=images, fine_labels=LABELS, coarse_labels=LABELS)
    assert "fine_labels, coarse_labels" in refusal(file)
    assert opened(file, label_column="fine_labels").classes == ("0", "1")
    assert opened(file, label_column="none").classes is None
    assert "did you mean 'fine_labels'" in refusal(file, label_column="fin_labels")
    np.savez(file, images=images, labels=np.eye(10, dtype=int))
    assert "several labels for an image" in refusal(file) and "one class" in refusal(file)
    np.savez(file, images=images, labels=LABELS[:5])
    assert "5 labels for 10 images" in refusal(file)
    np.savez(file, images=images, labels=LABELS + 0.5)
    assert "not a class for each image" in refusal(file)


def test_what_is_wrong_is_said_in_one_line(tmp_path):
    assert "--data array needs --data.root" in str(
        pytest.raises(UserError, load_dataset, DataOptions(name="array")).value
    )
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    assert "no readable array" in refusal(tmp_path / "broken.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "no readable array" in refusal(tmp_path / "objects.npy")
    np.savez(tmp_path / "flat.npz", table=np.zeros((3, 4)))
    assert "no array of images" in refusal(tmp_path / "flat.npz") and "table (3, 4)" in refusal(tmp_path / "flat.npz")
    np.savez(tmp_path / "two.npz", a=noise(3, 4, 4), b=noise(3, 4, 4))
    assert "several arrays may be the images" in refusal(tmp_path / "two.npz")


def test_a_run_on_arrays_is_known_by_their_content(tmp_path):
    def digest():
        return content_of(DataOptions(name="array", root=str(tmp_path / "set.zarr"))).digest

    stored = zarr.create_array(str(tmp_path / "set.zarr"), shape=(6, 8, 8), dtype="uint8", chunks=(2, 8, 8))
    stored[:] = noise(6, 8, 8)
    before = digest()
    stored[3] = 0
    assert digest() != before
