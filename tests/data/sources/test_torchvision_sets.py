"""torchvision's sets from miniature copies of their files on disk, and the download from a server of our own."""

import gzip
import hashlib
import http.server
import io
import json
import pickle
import struct
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from pictures import encoded, picture
from torchvision import datasets

from ssl_bench.config.options import DataOptions
from ssl_bench.data.catalogue import CATALOGUE, TORCHVISION
from ssl_bench.data.dataset import Dataset, load_dataset
from ssl_bench.data.pool import EncodedPool, ResidentPool
from ssl_bench.data.sources.torchvision_sets import SETS, default_root
from ssl_bench.errors import UserError

CLASSES = ["plane", "car"]


def opened(name: str, root: Path, **options) -> Dataset:
    return load_dataset(DataOptions(name=name, root=str(root), val_fraction=0.25, **options))


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def batch(seed: int, count: int, key: str = "labels") -> bytes:
    """A pickled batch of CIFAR: rows of 3 x 32 x 32 values."""
    labels = [index % 2 for index in range(count)]
    return pickle.dumps({"data": noise(seed, count, 3072), key: labels})


def cifar_files(folder: str, monkeypatch, cls: type, key: str, names_key: str, names: list[str]) -> dict[str, bytes]:
    """Files of a miniature CIFAR, with the class told their checksums."""
    files = {
        f"{folder}/train_file": batch(1, 8, key),
        f"{folder}/test_file": batch(2, 6, key),
        f"{folder}/meta_file": pickle.dumps({names_key: names}),
    }
    md5 = {name.split("/")[1]: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(cls, "train_list", [["train_file", md5["train_file"]]])
    monkeypatch.setattr(cls, "test_list", [["test_file", md5["test_file"]]])
    monkeypatch.setattr(cls, "meta", {"filename": "meta_file", "key": names_key, "md5": md5["meta_file"]})
    return files


def write(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def test_every_torchvision_entry_of_the_catalogue_has_its_class():
    assert {name for name, entry in CATALOGUE.items() if entry.loader == TORCHVISION} == set(SETS)
    assert all(hasattr(datasets, parts.cls) for parts in SETS.values())


@pytest.mark.parametrize("name", SETS)
def test_what_is_not_there_says_how_to_get_it(name, tmp_path):
    with pytest.raises(UserError, match=f"^{name} is not in .*: --data.download fetches it, --data.root says"):
        opened(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_default_root_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "ssl-bench" / "data"


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A local server with a miniature CIFAR-10 archive; gives what it was asked for."""
    files = cifar_files("cifar-10-batches-py", monkeypatch, datasets.CIFAR10, "labels", "label_names", CLASSES)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    asked: list[str] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/cifar-10-python.tar.gz"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(archive.getvalue()) if found else 0))
            self.end_headers()
            if found and self.headers["Method"] != "HEAD":  # torchvision asks that way where redirects lead
                asked.append(self.path)
                self.wfile.write(archive.getvalue())

        def log_message(self, *_) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive.getvalue()).hexdigest())
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_cifar10_downloads_once_when_asked(served, tmp_path, capsys):
    root = tmp_path / "new" / "place"
    with pytest.raises(UserError, match="--data.download"):
        opened("cifar10", root)
    assert served == []
    data = opened("cifar10", root, download=True)
    assert len(served) == 1
    images = noise(1, 8, 3072).reshape(8, 3, 32, 32)
    assert isinstance(data.pretrain, ResidentPool) and (data.pretrain.images.numpy() == images).all()
    assert data.pretrain.labels.tolist() == [0, 1] * 4 and data.classes == tuple(CLASSES)
    assert len(data.test) == 6 and (len(data.train), len(data.validation)) == (6, 2)
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2470, 0.2435, 0.2616) and data.title == "cifar10"
    again = opened("cifar10", root)
    assert len(served) == 1 and again.fingerprint == data.fingerprint
    assert capsys.readouterr().out == ""  # standard output is for results


def test_a_failed_download_is_one_line(served, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", datasets.CIFAR10.url.replace("cifar-10", "gone"))
    with pytest.raises(UserError, match="^cifar10 could not be downloaded to .*404") as caught:
        opened("cifar10", tmp_path, download=True)
    assert "\n" not in str(caught.value)


def test_a_corrupt_download_is_refused(served, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(UserError, match="could not be downloaded"):
        opened("cifar10", tmp_path, download=True)


def test_cifar100(tmp_path, monkeypatch):
    names = ["apple", "fish"]
    files = cifar_files("cifar-100-python", monkeypatch, datasets.CIFAR100, "fine_labels", "fine_label_names", names)
    write(tmp_path, files)
    data = opened("cifar100", tmp_path)
    assert data.classes == ("apple", "fish") and data.std == (0.2673, 0.2564, 0.2762) and len(data.test) == 6


def test_stl10_pretrains_on_unlabelled_images_too(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    train, test, unlabelled = noise(1, 4, 3, 96, 96), noise(2, 2, 3, 96, 96), noise(3, 5, 3, 96, 96)
    files = {
        "train_X.bin": np.transpose(train, (0, 1, 3, 2)).tobytes(),  # the files hold columns first
        "train_y.bin": bytes([1, 2, 1, 2]),
        "unlabeled_X.bin": np.transpose(unlabelled, (0, 1, 3, 2)).tobytes(),
        "test_X.bin": np.transpose(test, (0, 1, 3, 2)).tobytes(),
        "test_y.bin": bytes([2, 1]),
        "class_names.txt": b"airplane\nbird\n",
    }
    write(folder, files)
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    names = ["train_X.bin", "train_y.bin", "unlabeled_X.bin"]
    monkeypatch.setattr(datasets.STL10, "train_list", [[name, md5[name]] for name in names])
    monkeypatch.setattr(datasets.STL10, "test_list", [[name, md5[name]] for name in ("test_X.bin", "test_y.bin")])
    data = opened("stl10", tmp_path)
    assert isinstance(data.pretrain, ResidentPool) and data.image_size == 96
    assert (data.pretrain.images.numpy() == np.concatenate([train, unlabelled])).all()
    assert data.train is not None and (data.train.pool.images.numpy() == train).all()
    assert sorted([*data.train.labels, *data.validation.labels]) == [0, 0, 1, 1]
    assert data.test.labels.tolist() == [1, 0] and data.classes == ("airplane", "bird")
    assert data.fingerprint["images"] == {"pretrain": 9, "train": 2, "validation": 2, "test": 2}


def test_svhn(tmp_path, monkeypatch):
    train = noise(1, 4, 3, 32, 32)
    lists = {}
    for split, images in (("train", train), ("test", noise(2, 2, 3, 32, 32))):
        file = io.BytesIO()
        labels = np.array([[10], [3]] * (len(images) // 2), dtype=np.uint8)  # 10 stands for the digit 0
        scipy.io.savemat(file, {"X": images.transpose(2, 3, 1, 0), "y": labels})
        (tmp_path / f"{split}.mat").write_bytes(file.getvalue())
        lists[split] = ["", f"{split}.mat", hashlib.md5(file.getvalue()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", lists)
    data = opened("svhn", tmp_path)
    assert (data.pretrain.images.numpy() == train).all() and data.pretrain.labels.tolist() == [0, 3, 0, 3]
    assert data.classes == tuple("0123456789")


def test_fashion_mnist_becomes_rgb(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    train = noise(1, 6, 28, 28)
    for part, images in (("train", train), ("t10k", noise(2, 4, 28, 28))):
        labels = bytes([0, 9] * (len(images) // 2))
        ubyte = {
            "images-idx3": struct.pack(">4i", 0x803, *images.shape) + images.tobytes(),
            "labels-idx1": struct.pack(">2i", 0x801, len(labels)) + labels,
        }
        for kind, content in ubyte.items():
            (raw / f"{part}-{kind}-ubyte").write_bytes(content)
            (raw / f"{part}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    data = opened("fashion_mnist", tmp_path)
    assert data.pretrain.images.shape == (6, 3, 28, 28) and (data.pretrain.images.numpy() == train[:, None]).all()
    assert data.classes[0] == "T-shirt/top" and data.pretrain.labels.tolist() == [0, 9] * 3


def test_eurosat_has_a_fixed_fifth_as_test(tmp_path):
    files = {
        f"eurosat/2750/{name}/{name}_{index}.jpg": encoded(picture(index, 64, 64), "JPEG")
        for name in ("Forest", "River")
        for index in range(10)
    }
    write(tmp_path, files)
    data = opened("eurosat", tmp_path)
    assert isinstance(data.pretrain, ResidentPool) and data.pretrain.images.shape == (16, 3, 64, 64)
    assert np.bincount(data.test.labels).tolist() == [2, 2] and data.classes == ("Forest", "River")
    assert data.test.ids[0].startswith("eurosat/2750/Forest/Forest_") and "seed 0" in data.fingerprint["test_is"]
    assert opened("eurosat", tmp_path, split_seed=3).test.ids == data.test.ids


def photographs(*names: str) -> dict[str, bytes]:
    return {name: encoded(picture(index, 120, 100), "JPEG") for index, name in enumerate(names)}


def test_flowers102_trains_on_train_and_val(tmp_path, monkeypatch):
    labels, setid = io.BytesIO(), io.BytesIO()
    scipy.io.savemat(labels, {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    scipy.io.savemat(setid, {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})
    files = photographs(*(f"flowers-102/jpg/image_{index:05d}.jpg" for index in range(1, 7)))
    files |= {"flowers-102/imagelabels.mat": labels.getvalue(), "flowers-102/setid.mat": setid.getvalue()}
    write(tmp_path, files)
    known = {
        "label": ("imagelabels.mat", hashlib.md5(labels.getvalue()).hexdigest()),
        "setid": ("setid.mat", hashlib.md5(setid.getvalue()).hexdigest()),
    }
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", known)
    data = opened("flowers102", tmp_path)
    assert isinstance(data.pretrain, EncodedPool) and data.image_size == 224
    assert data.pretrain.ids == [f"flowers-102/jpg/image_{index:05d}.jpg" for index in range(1, 5)]
    assert data.test.ids == ["flowers-102/jpg/image_00005.jpg", "flowers-102/jpg/image_00006.jpg"]
    assert data.pretrain.labels.tolist() == [0, 1, 0, 1]


def test_food101(tmp_path):
    parts = {"train": [0, 1], "test": [2]}
    files = photographs(*(f"food-101/images/{c}/{i}.jpg" for c in ("pie", "soup") for i in range(3)))
    for split, numbers in parts.items():
        listed = {c: [f"{c}/{i}" for i in numbers] for c in ("pie", "soup")}
        files[f"food-101/meta/{split}.json"] = json.dumps(listed).encode()
    write(tmp_path, files)
    data = opened("food101", tmp_path)
    assert data.classes == ("pie", "soup") and len(data.pretrain) == 4
    assert data.test.ids == ["food-101/images/pie/2.jpg", "food-101/images/soup/2.jpg"]


def test_oxford_pets(tmp_path):
    names = ["beagle_1", "bombay_1", "beagle_2", "bombay_2"]
    files = photographs(*(f"oxford-iiit-pet/images/{name}.jpg" for name in names))
    line = "{0} {1} {1} 1\n"
    listed = [line.format(name, 1 + names.index(name) % 2) for name in names]
    files["oxford-iiit-pet/annotations/trainval.txt"] = "".join(listed[:2]).encode()
    files["oxford-iiit-pet/annotations/test.txt"] = "".join(listed[2:]).encode()
    write(tmp_path, files)
    data = opened("oxford_pets", tmp_path)
    assert data.classes == ("Beagle", "Bombay") and data.test.labels.tolist() == [0, 1]
    assert data.pretrain.ids[0] == "oxford-iiit-pet/images/beagle_1.jpg"


def test_dtd_trains_on_train_and_val(tmp_path):
    files = photographs(*(f"dtd/dtd/images/{c}/{c}_{i}.jpg" for c in ("dotted", "woven") for i in range(3)))
    for number, split in enumerate(("train", "val", "test")):
        listed = "".join(f"{c}/{c}_{number}.jpg\n" for c in ("dotted", "woven"))
        files[f"dtd/dtd/labels/{split}1.txt"] = listed.encode()
    write(tmp_path, files)
    data = opened("dtd", tmp_path)
    assert len(data.pretrain) == 4 and len(data.test) == 2 and data.classes == ("dotted", "woven")


def test_imagenette_tests_on_val(tmp_path):
    wnids = ("n01440764", "n02102040")
    files = photographs(*(f"imagenette2/{s}/{w}/{i}.JPEG" for s in ("train", "val") for w in wnids for i in range(3)))
    write(tmp_path, files)
    data = opened("imagenette", tmp_path)
    assert data.classes == ("tench", "English springer") and len(data.pretrain) == 6 and len(data.test) == 6
    assert data.test.ids[0] == "imagenette2/val/n01440764/0.JPEG"
