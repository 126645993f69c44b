"""Parquet in Hugging Face's image layout: columns, shards, splits, and what is refused."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import SHARED, encoded, picture

from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.packed import ArrowBytes
from ssl_bench.data.pool import EncodedPool, ResidentPool
from ssl_bench.errors import UserError

CIFAR10 = SHARED / "cifar10"
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def opened(root, **options):
    return load_dataset(DataOptions(name="parquet", root=str(root), **options))


def refusal(root, **options) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(count: int, first: int = 0, width: int = 40, height: int = 30) -> list[bytes]:
    return [encoded(picture(first + index, width, height)) for index in range(count)]


def test_splits_and_shards(parquet_file):
    parquet_file("train-00000-of-00002.parquet", contents(6), [0, 1, 2] * 2, "abc")
    parquet_file("train-00001-of-00002.parquet", contents(6, 6), [0, 1, 2] * 2, "abc")
    root = parquet_file("test-00000-of-00001.parquet", contents(3, 50), [2, 1, 0], "abc").parent
    data = opened(root)
    assert data.title == "shards" and data.classes == ("a", "b", "c")
    assert isinstance(data.pretrain, ResidentPool) and data.pretrain.images.shape == (12, 3, 30, 40)
    assert (np.asarray(data.pretrain.image(7)) == np.asarray(picture(7))).all()
    assert data.pretrain.labels.tolist() == [0, 1, 2] * 4 and data.test.labels.tolist() == [2, 1, 0]
    assert data.pretrain.ids[7] == "train/000007" and data.fingerprint["test_is"] == "the test files"


def test_in_the_folder_data(parquet_file):
    root = parquet_file("data/train-00000-of-00001.parquet", contents(4), [0, 1, 0, 1]).parent.parent
    parquet_file("data/validation-00000-of-00001.parquet", contents(2, 9), [0, 1])
    assert opened(root).fingerprint["test_is"] == "the validation files"


def test_withheld_test_labels_make_validation_the_test(parquet_file):
    parquet_file("train-0.parquet", contents(4), [0, 1, 0, 1])
    parquet_file("validation-0.parquet", contents(2, 9), [0, 1])
    root = parquet_file("test-0.parquet", contents(3, 20), [-1, -1, -1]).parent
    assert opened(root).test.labels.tolist() == [0, 1]


def test_photographs_stay_encoded(parquet_file):
    root = parquet_file("train.parquet", contents(4, width=200, height=150), [0, 1, 0, 1]).parent
    data = opened(root)
    assert isinstance(data.pretrain, EncodedPool) and data.image_size == 224
    assert (np.asarray(data.pretrain.image(3)) == np.asarray(picture(3, 200, 150))).all()
    with pytest.raises(UserError, match="add labelled test-"):
        data.require_labels()


def test_a_single_file_gives_a_fifth_to_test(parquet_file):
    file = parquet_file("pictures.parquet", contents(20), [0, 1] * 10)
    data = opened(file)
    assert data.title == "pictures" and len(data.pretrain) == 16 and np.bincount(data.test.labels).tolist() == [2, 2]


def test_only_integer_column_is_the_label_and_codes_become_positions(parquet_file):
    file = parquet_file("f.parquet", contents(10), [30, 7] * 5, image="photo", label="species")
    data = opened(file)
    assert data.classes == ("7", "30") and sorted(data.pretrain.ids + data.test.ids) == [
        f"train/{i:06d}" for i in range(10)
    ]
    both = dict(zip(data.pretrain.ids + data.test.ids, [*data.pretrain.labels, *data.test.labels], strict=True))
    assert both["train/000000"] == 1 and both["train/000001"] == 0


def test_the_named_label_column_wins_over_others_and_says_so(parquet_file, capsys):
    extra = {"coarse_label": pa.array([9] * 10), "size": pa.array([1] * 10)}
    assert opened(parquet_file("f.parquet", contents(10), [0, 1] * 5, label="fine_label", extra=extra)).classes == (
        "0",
        "1",
    )
    told = "the labels are column 'fine_label', not coarse_label: --data.label_column says otherwise\n"
    assert capsys.readouterr().err == told


def test_paths_are_names_when_each_is_its_own(parquet_file):
    names = [f"cats/{i}.png" for i in range(10)]
    assert opened(parquet_file("train-0.parquet", contents(10), [0, 1] * 5, paths=names).parent).pretrain.ids == names
    twice = ["cat.png"] * 10
    data = opened(parquet_file("train-0.parquet", contents(10), [0, 1] * 5, paths=twice).parent)
    assert data.pretrain.ids[3] == "train/000003"


def test_no_labels(parquet_file):
    data = opened(parquet_file("f.parquet", contents(3), None))
    assert data.classes is None and len(data.pretrain) == 3
    with pytest.raises(UserError, match="no column of labels that can be told; --data.label_column names it"):
        data.require_labels()


def test_broken_images_are_skipped_or_stop(parquet_file, capsys):
    files = contents(11)
    files[4] = files[4][:200]
    file = parquet_file("f.parquet", files, [0, 1] * 5 + [0])
    data = opened(file)
    skipped = {"count": 1, "names": ["train/000004"], "reasons": {"the file is cut short": 1}}
    assert data.fingerprint["skipped"] == skipped
    assert "1 left out: train/000004 (1 x the file is cut short)" in capsys.readouterr().err
    assert len(data.pretrain) + len(data.test) == 10
    assert "broken image train/000004" in refusal(file, strict=True)


def test_only_needed_columns_are_read(parquet_file, monkeypatch):
    wanted = []
    read = pq.read_table
    monkeypatch.setattr(
        pq, "read_table", lambda *a, columns, **k: wanted.append(columns) or read(*a, columns=columns, **k)
    )
    opened(parquet_file("f.parquet", contents(10), [0, 1] * 5, extra={"caption": pa.array(["long"] * 10)}))
    assert wanted == [["image", "label"]]


def test_what_is_wrong_is_said_in_one_line(parquet_file, tmp_path):
    with pytest.raises(UserError, match="--data parquet needs --data.root"):
        load_dataset(DataOptions(name="parquet"))
    assert "--data.root" in refusal(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no train-*.parquet" in refusal(tmp_path / "empty")
    (tmp_path / "text.parquet").write_text("no parquet")
    assert "no readable parquet file" in refusal(tmp_path / "text.parquet")
    assert "one class only" in refusal(parquet_file("one.parquet", contents(4), [3] * 4))
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), tmp_path / "none.parquet")
    assert "no image column" in refusal(tmp_path / "none.parquet") and "x, y" in refusal(tmp_path / "none.parquet")
    assert "has no bytes" in refusal(parquet_file("paths.parquet", [None, *contents(1)], [0, 1]))


def test_missing_shard(parquet_file):
    root = parquet_file("train-00000-of-00003.parquet", contents(4), [0, 1] * 2).parent
    assert "1 of 3 shards" in refusal(root)


def test_test_label_that_was_not_trained_on(parquet_file):
    parquet_file("train-0.parquet", contents(4), [0, 1] * 2)
    root = parquet_file("test-0.parquet", contents(1), [2]).parent
    assert "label 2 of test/000000 is no class of the training images" in refusal(root)


def test_parquet_larger_than_memory_is_refused(parquet_file, monkeypatch):
    file = parquet_file("f.parquet", contents(4), [0, 1] * 2)
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    assert "do not fit" in refusal(file)


@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 parquet files are not here")
@pytest.mark.integration
def test_a_shard_of_cifar10():
    data = opened(CIFAR10 / "test-00000-of-00001.parquet")
    assert data.classes == NAMES and data.pretrain.images.shape == (8_000, 3, 32, 32) and len(data.test) == 2_000
    assert np.bincount(data.test.labels).tolist() == [200] * 10
    published = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # of the original training pixels
    assert np.abs(np.array([data.mean, data.std]) - published).max() < 0.01


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the CIFAR-10 parquet files are not here")
def test_all_of_cifar10_opens_into_memory_in_seconds():
    start = time.process_time()
    data = opened(CIFAR10)
    taken = time.process_time() - start
    print(f"CIFAR-10 opened in {taken:.1f} s of one core")
    assert taken < 12  # 5.5 s on an idle core
    assert data.title == "cifar10" and data.classes == NAMES and data.image_size == 32
    assert data.pretrain.images.shape == (50_000, 3, 32, 32) and data.test.pool.images.shape == (10_000, 3, 32, 32)
    assert np.bincount(data.validation.labels).tolist() == [500] * 10 and len(data.train) == 45_000
    assert data.pretrain.ids[0] == "train/airplane/0000.jpg"
    published = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))  # these pixels went through JPEG
    assert np.abs(np.array([data.mean, data.std]) - published).max() < 0.003


# Labels are joined by name


def classes_by_id(data) -> dict[str, str]:
    """Name of an image -> name of its class, of training and test images."""
    pools = [data.pretrain, *([data.test.pool] if data.test else [])]
    return {name: data.classes[label] for p in pools for name, label in zip(p.ids, p.labels, strict=True)}


def shard(tmp_path, name: str, labels, kind=None, names=None, column="label", extra=None, first=0):
    """A parquet file whose images are named `<label's meaning>-<number>`."""
    folder = tmp_path / "shards"
    folder.mkdir(exist_ok=True)
    values = pa.array(labels, kind)
    meant = [names[value] if names else str(value) for value in values.to_pylist()]
    rows = [
        {"bytes": encoded(picture(first + i)), "path": f"{meaning}-{first + i}.png"} for i, meaning in enumerate(meant)
    ]
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": image, column: values, **(extra or {})})
    if names:
        features = {column: {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / name)
    return folder


def assert_joined(data) -> None:
    found = classes_by_id(data)
    assert found and all(name.rpartition("-")[0] == label for name, label in found.items())


@pytest.mark.parametrize(
    "test_names", [("cat", "dog", "owl"), ("owl", "dog", "cat"), ("dog", "cat"), ("x", "dog", "cat")]
)
def test_splits_whose_names_have_another_order_are_joined_by_name(tmp_path, test_names):
    shard(tmp_path, "train-0.parquet", [0, 1, 2] * 3, names=("cat", "dog", "owl"))
    used = [test_names.index("cat"), test_names.index("dog")]
    root = shard(tmp_path, "test-0.parquet", used * 2, names=test_names, first=50)
    data = opened(root)
    assert data.classes == ("cat", "dog", "owl") and len(data.test) == 4
    assert_joined(data)


@pytest.mark.parametrize(("one", "two"), [(("cat", "dog"), ("dog", "cat")), (("cat",), ("dog", "cat"))])
def test_shards_whose_names_differ_are_joined_by_name(tmp_path, one, two):
    shard(tmp_path, "train-00000-of-00002.parquet", [0] * 4, names=one)
    root = shard(tmp_path, "train-00001-of-00002.parquet", [0, 1] * 4, names=two, first=30)
    data = opened(root)
    assert data.classes == ("cat", "dog") and len(data.pretrain) == 12
    assert_joined(data)


@pytest.mark.parametrize("kinds", [(pa.int64(), pa.int32()), (pa.uint8(), pa.int64()), (pa.float64(), pa.int16())])
def test_shards_whose_integers_differ_in_width(tmp_path, kinds):
    shard(tmp_path, "train-00000-of-00002.parquet", [3, 7] * 4, kinds[0])
    root = shard(tmp_path, "train-00001-of-00002.parquet", [3, 7] * 4, kinds[1], first=30)
    data = opened(root)
    assert data.classes == ("3", "7") and data.pretrain.labels.tolist() == [0, 1] * 8


NAMED = [
    (["dog", "cat"], pa.string(), ("cat", "dog")),
    (["dog", "cat"], pa.large_string(), ("cat", "dog")),
    (["dog", "cat"], pa.dictionary(pa.int32(), pa.string()), ("cat", "dog")),
    ([True, False], pa.bool_(), ("False", "True")),
    ([10, 9], pa.int64(), ("9", "10")),
]
WITH_FRACTIONS = ([2.0, 1.0], pa.float64(), ("1", "2"))  # labels only under the usual name


@pytest.mark.parametrize(
    ("column", "labels", "kind", "classes"),
    [("label", *case) for case in (*NAMED, WITH_FRACTIONS)] + [("species", *case) for case in NAMED],
)
def test_labels_of_any_kind(tmp_path, column, labels, kind, classes):
    shard(tmp_path, "train-0.parquet", labels * 4, kind, column=column)
    root = shard(tmp_path, "test-0.parquet", labels[::-1], kind, column=column, first=20)
    data = opened(root)
    assert data.classes == classes and data.test.labels.tolist() == [0, 1]
    assert data.pretrain.labels.tolist() == [1, 0] * 4


@pytest.mark.parametrize("name", ["__index_level_0__", "index", "image_id", "width", "height", "file_name", "caption"])
@pytest.mark.parametrize("repeated", [True, False])
def test_what_numbers_or_describes_images_is_no_label(parquet_file, name, repeated):
    values = [1, 2] * 5 if repeated else list(range(10))
    data = opened(parquet_file("f.parquet", contents(10), None, extra={name: pa.array(values)}))
    assert data.classes is None and len(data.pretrain) == 10


def test_a_column_of_different_numbers_is_no_label(parquet_file):
    extra = {"serial": pa.array(range(10)), "species": pa.array([1, 2] * 5)}
    assert opened(parquet_file("f.parquet", contents(10), None, extra=extra)).classes == ("1", "2")


def test_a_label_is_not_guessed_among_several(parquet_file):
    extra = {"species": pa.array([0, 1] * 5), "season": pa.array(["wet", "dry"] * 5), "width": pa.array([40] * 10)}
    file = parquet_file("f.parquet", contents(10), None, extra=extra)
    assert "several columns that may be the labels (species, season): --data.label_column names one" in refusal(file)
    assert opened(file, label_column="season").classes == ("dry", "wet")
    assert opened(file, label_column="none").classes is None
    assert "has no column 'seasons'; did you mean 'season'" in refusal(file, label_column="seasons")
    both = {"labels": pa.array([0, 1] * 5)}
    assert "(label, labels)" in refusal(parquet_file("g.parquet", contents(10), [0, 1] * 5, extra=both))


def test_labels_are_withheld_for_a_whole_split_only(tmp_path):
    shard(tmp_path, "train-0.parquet", [0, 1] * 4)
    root = shard(tmp_path, "test-0.parquet", [0, -1, 1], first=20)
    assert "1 of 3 labels in 'label' are -1 (withheld)" in refusal(root)
    shard(tmp_path, "test-0.parquet", [-1, -1], first=20)
    assert opened(root).test is None
    shard(tmp_path, "train-0.parquet", [-1] * 8)
    assert opened(root).classes is None


def test_some_labels_missing_or_none_at_all(tmp_path):
    root = shard(tmp_path, "train-0.parquet", [0, None, 1])
    assert "has 1 rows without a label" in refusal(root)
    shard(tmp_path, "train-0.parquet", [None, None, None], pa.int64())
    assert opened(root).classes is None


@pytest.mark.parametrize(
    ("labels", "kind", "names", "what"),
    [
        ([0, 5], pa.int64(), ("cat", "dog"), "has the label 5, and names for 0 to 1"),
        ([0.5, 1.0], pa.float64(), None, "holds fractions, not classes"),
        ([[0], [1, 2]], pa.list_(pa.int64()), None, "not a class for each image"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path, labels, kind, names, what):
    folder = tmp_path / "shards"
    folder.mkdir()
    rows = [{"bytes": encoded(picture(i)), "path": None} for i in range(2)]
    image = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": image, "label": pa.array(labels, kind)})
    if names:
        features = {"label": {"names": list(names), "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "train-0.parquet")
    assert what in refusal(folder)


def test_a_class_only_the_test_has_is_refused(tmp_path):
    shard(tmp_path, "train-0.parquet", [0, 1] * 4, names=("cat", "dog"))
    root = shard(tmp_path, "test-0.parquet", [0, 1], names=("cat", "fox"), first=20)
    assert "label fox of fox-21.png is no class of the training images" in refusal(root)


def test_names_in_one_shard_and_numbers_in_another_are_refused(tmp_path):
    shard(tmp_path, "train-00000-of-00002.parquet", [0, 1] * 4, names=("cat", "dog"))
    root = shard(tmp_path, "train-00001-of-00002.parquet", [0, 1] * 4, first=20)
    assert "has numbers for labels, and other files have names" in refusal(root)


@pytest.mark.parametrize("binary", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("struct", [True, False])
def test_shards_whose_images_are_stored_in_other_ways(tmp_path, parquet_file, binary, struct):
    parquet_file("train-00000-of-00002.parquet", contents(4), [0, 1] * 2)
    files = contents(4, 10)
    kind = pa.struct([("path", pa.string()), ("bytes", binary)]) if struct else binary
    values = [{"bytes": b, "path": None} for b in files] if struct else files
    table = pa.table({"image": pa.array(values, kind), "label": pa.array([0, 1] * 2)})
    pq.write_table(table, tmp_path / "shards" / "train-00001-of-00002.parquet", row_group_size=3)
    data = opened(tmp_path / "shards")
    assert (np.asarray(data.pretrain.image(6)) == np.asarray(picture(12))).all() and len(data.pretrain) == 8


def test_encoded_images_are_copied_only_when_asked_for(parquet_file):
    file = parquet_file("f.parquet", contents(10, width=200, height=150), [0, 1] * 5)
    pool = opened(file).pretrain
    assert isinstance(pool.encoded, ArrowBytes)
    some = pool.take(np.array([5, 0]))
    assert isinstance(some.encoded, ArrowBytes) and some.encoded[0] == pool.encoded[5]
    assert list(pool.encoded[2:4]) == [pool.encoded[2], pool.encoded[3]]
