"""Tables of paths, what save_to_disk wrote, data sets of the hub: read as their images and labels are."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest
from pictures import encoded, picture

from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.files.content import content_of
from ssl_bench.errors import UserError

LABELS = ["cat", "dog", "dog", "cat", "dog", "cat"]


def opened(root, kind="table", **options):
    return load_dataset(DataOptions(name=kind, root=str(root), **options))


def refusal(root, kind="table", **options) -> str:
    with pytest.raises(UserError) as caught:
        opened(root, kind, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def pictures_folder(tmp_path):
    root = tmp_path / "set"
    (root / "pictures").mkdir(parents=True)
    for number in range(6):
        picture(number).save(root / "pictures" / f"{number}.png")
    return root


def write_csv(file, labels=LABELS, head="file_name,label", rows=None):
    rows = rows or [f"pictures/{n}.png,{label}" for n, label in enumerate(labels)]
    file.write_text("\n".join([head, *rows]) + "\n")
    return file


def assert_is_the_set(data):
    """Six pictures with LABELS, of which a fifth of each class became test images."""
    assert data.classes == ("cat", "dog")
    both = [data.train.pool, data.test.pool]
    named = {name: label for pool in both for name, label in zip(pool.ids, pool.labels.tolist(), strict=True)}
    assert len(named) == 6 and len(data.test) == 2
    for pool in both:
        for row, name in enumerate(pool.ids):
            number = int(os.path.basename(name).partition(".")[0])
            assert (np.asarray(pool.image(row)) == np.asarray(picture(number))).all()
            assert data.classes[named[name]] == LABELS[number]


def test_a_csv_of_paths_and_text_labels(pictures_folder):
    assert_is_the_set(opened(write_csv(pictures_folder / "labels.csv")))


def test_the_other_kinds_of_tables(pictures_folder):
    import pyarrow.parquet as pq

    names = [f"pictures/{n}.png" for n in range(6)]
    (pictures_folder / "t.tsv").write_text(
        "path\tclass\n" + "\n".join(f"{n}\t{c}" for n, c in zip(names, LABELS, strict=True)) + "\n"
    )
    rows = [json.dumps({"image": n, "label": c}) for n, c in zip(names, LABELS, strict=True)]
    (pictures_folder / "t.jsonl").write_text("\n".join(rows))
    pq.write_table(pa.table({"img": names, "label": LABELS}), pictures_folder / "t.parquet")
    for ending in ("tsv", "jsonl", "parquet"):
        assert_is_the_set(opened(pictures_folder / f"t.{ending}"))


def test_metadata_of_an_imagefolder_in_its_splits(pictures_folder):
    for split in ("train", "test"):
        folder = pictures_folder / split
        folder.mkdir()
        for number in range(4):
            picture(number + (10 if split == "test" else 0)).save(folder / f"{number}.png")
        write_csv(folder / "metadata.csv", rows=[f"{n}.png,{'xy'[n % 2]}" for n in range(4)])
    data = opened(pictures_folder)
    assert data.test.ids == [f"test/{n}.png" for n in range(4)] and data.classes == ("x", "y")
    assert data.fingerprint["test_is"] == "the test files" and len(data.pretrain) == 4


def test_a_column_says_of_which_split_a_row_is(pictures_folder):
    rows = [f"pictures/{n}.png,{label},{'test' if n > 3 else 'train'}" for n, label in enumerate(LABELS)]
    data = opened(write_csv(pictures_folder / "t.csv", head="file,kind,split", rows=rows))
    assert data.test.ids == ["pictures/4.png", "pictures/5.png"] and data.fingerprint["test_is"] == "the test rows"


def test_several_columns_of_labels_are_never_chosen_among(pictures_folder):
    rows = [f"pictures/{n}.png,{label},{n % 3}" for n, label in enumerate(LABELS)]
    file = write_csv(pictures_folder / "t.csv", head="file,species,grade", rows=rows)
    said = refusal(file)
    assert "species, grade" in said and "--data.label_column" in said
    assert opened(file, label_column="species").classes == ("cat", "dog")
    assert opened(file, label_column="none").classes is None
    assert "did you mean 'species'" in refusal(file, label_column="specie")


def test_several_labels_of_an_image_are_refused_with_the_reason(pictures_folder):
    rows = [*(f"pictures/{n}.png,{label}" for n, label in enumerate(LABELS)), "pictures/0.png,dog"]
    said = refusal(write_csv(pictures_folder / "t.csv", rows=rows))
    assert "0.png has several labels (cat and dog)" in said and "one class for each image" in said
    (pictures_folder / "t.jsonl").write_text(json.dumps({"image": "pictures/0.png", "label": ["cat", "dog"]}))
    assert "holds several labels for an image" in refusal(pictures_folder / "t.jsonl")


def test_a_row_that_is_there_twice_counts_once_and_a_missing_image_is_named(pictures_folder):
    rows = [*(f"pictures/{n}.png,{label}" for n, label in enumerate(LABELS)), "pictures/0.png,cat", "gone.png,dog"]
    data = opened(write_csv(pictures_folder / "t.csv", rows=rows))
    assert len(data.pretrain) + len(data.test) == 6
    assert list(data.skipped) == ["gone.png"] and "cannot be read" in data.skipped["gone.png"]


def test_a_run_on_a_table_is_known_by_the_content_of_table_and_images(pictures_folder):
    options = DataOptions(name="table", root=str(write_csv(pictures_folder / "t.csv")))
    before = content_of(options).digest
    moved = pictures_folder.rename(pictures_folder.parent / "elsewhere")
    at_home = DataOptions(name="table", root=str(moved / "t.csv"))
    assert content_of(at_home).digest == before
    picture(77).save(moved / "pictures" / "3.png")
    changed = content_of(at_home).digest
    write_csv(moved / "t.csv", ["dog", *LABELS[1:]])
    assert len({before, changed, content_of(at_home).digest}) == 3


def hub_images():
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {
        "image": [{"bytes": encoded(picture(n)), "path": f"{n}.png"} for n in range(6)],
        "label": [["cat", "dog"].index(name) for name in LABELS],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_what_save_to_disk_wrote(tmp_path):
    import datasets

    whole = hub_images()
    whole.save_to_disk(tmp_path / "one")
    assert_is_the_set(opened(tmp_path / "one", "arrow"))
    parts = datasets.DatasetDict({"train": whole.select(range(4)), "test": whole.select([5, 4])})
    parts.save_to_disk(tmp_path / "two", num_shards={"train": 2, "test": 1})
    data = opened(tmp_path / "two", "arrow")
    assert data.test.ids == ["5.png", "4.png"] and data.test.labels.tolist() == [0, 1] and len(data.pretrain) == 4
    next((tmp_path / "two" / "train").glob("*00001*")).unlink()
    assert "is missing" in refusal(tmp_path / "two", "arrow")


def test_a_data_set_of_the_hub_through_datasets(pictures_folder, tmp_path, monkeypatch):
    """`datasets` loads a folder without a script as it loads one of the hub, with no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "test"):
        for number, label in enumerate(LABELS):
            (tmp_path / "local" / split / label).mkdir(parents=True, exist_ok=True)
            picture(number + (20 if split == "test" else 0)).save(tmp_path / "local" / split / label / f"{number}.png")
    data = opened(tmp_path / "local", "hf")
    assert data.classes == ("cat", "dog") and len(data.test) == 6 and len(data.pretrain) == 6
    ours = load_dataset(DataOptions(name="folder", root=str(tmp_path / "local")))
    assert np.bincount(data.test.labels).tolist() == np.bincount(ours.test.labels).tolist()
    assert content_of(DataOptions(name="hf", root=str(tmp_path / "local"))).digest
    said = refusal("no-such-org/no-such-set/plain", "hf")
    assert said.startswith("--data hf:no-such-org/no-such-set/plain: ")
    assert "hf:ORG/NAME" in refusal("a/b/c/d", "hf")
