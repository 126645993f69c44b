"""What lies at a path: each layout is told by its files, and read as the set that it is."""

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, picture

from ssl_bench.config.fit_config import parse_fit
from ssl_bench.data.files.location import data_at, is_path, located
from ssl_bench.errors import UserError

LAYOUTS = {
    "folder": ["a/1.png", "b/1.png"],
    "arrow": ["dataset_dict.json", "train/state.json"],
    "table": ["train/metadata.csv", "train/1.png"],
    "webdataset": ["train-0.tar"],
    "array": ["images.npy", "labels.npy"],
    "image-masks": ["images/1.png", "masks/1.png"],
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_folder_is_told_by_what_lies_in_it(kind, tmp_path):
    for name in LAYOUTS[kind]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert data_at(str(tmp_path)) == (kind, str(tmp_path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", "table"), ("a.tsv", "table"), ("a.jsonl", "table"), ("a.tar", "webdataset"), ("a.NPY", "array"),
     ("a.npz", "array"), ("a.arrow", "arrow"), ("x.zarr/zarr.json", "array")],
)  # fmt: skip
def test_a_file_is_told_by_its_ending(name, kind, tmp_path):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert data_at(str(tmp_path / name.partition("/")[0]))[0] == kind


def test_parquet_of_images_and_of_paths(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = encoded(picture(0, 8, 8))
    pq.write_table(pa.table({"image": pa.array([{"bytes": image, "path": None}], kind)}), tmp_path / "images.parquet")
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": "1.png"}], kind)}), tmp_path / "none.parquet")
    pq.write_table(pa.table({"file": ["1.png"], "label": [0]}), tmp_path / "paths.parquet")
    found = {name: data_at(str(tmp_path / f"{name}.parquet"))[0] for name in ("images", "none", "paths")}
    assert found == {"images": "parquet", "none": "table", "paths": "table"}


def test_names_of_the_catalogue_come_before_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "photos").mkdir()
    assert located({"data.name": "digits"}) == {"data.name": "digits"}
    assert located({"data.name": "photos"}) == {"data.name": "folder", "data.root": "photos"}
    assert located({"data.name": "hf:org/set/config"}) == {"data.name": "hf", "data.root": "org/set/config"}
    assert located({"data.name": "cifar01"}) == {"data.name": "cifar01"} and not is_path("cifar01")


def test_what_holds_no_images_is_refused_with_a_remedy(tmp_path):
    for name, said in (("a.zip", "unpack it"), ("a.tar.gz", "unpack it"), ("a.png", "one image"), ("a.txt", "no kind")):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match=said):
            data_at(str(tmp_path / name))
    with pytest.raises(UserError, match="no data set and no folder"):
        data_at(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="leave one out"):
        located({"data.name": str(tmp_path), "data.root": "x"})


def test_a_path_is_the_same_run_as_its_two_options(class_folders):
    root = class_folders(["a", "b"])
    short = parse_fit(["--method", "simclr", "--data", f"{root}"], {}, locate=located).config
    long = parse_fit(["--method", "simclr", "--data", "folder", "--data.root", f"{root}"], {}).config
    assert short == long


def tar_of(files: dict[str, bytes], path):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_recipes_know_the_size_of_images_in_each_layout(tmp_path):
    from ssl_bench.config.recipes import Images
    from ssl_bench.data.image_summary import image_summary

    image = encoded(picture(0, 28, 28))
    tar_of({f"{n}.png": image for n in range(3)}, tmp_path / "train.tar")
    (tmp_path / "one.png").write_bytes(image)
    (tmp_path / "t.csv").write_text("file,label\none.png,0\n")
    assert image_summary({"name": "webdataset", "root": str(tmp_path / "train.tar")}) == Images("", 28, 3)
    assert image_summary({"name": "table", "root": str(tmp_path / "t.csv")}) == Images("", 28, 1)
