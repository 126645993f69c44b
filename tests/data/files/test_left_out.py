"""Images found broken while they are read: remembered by the run, and left out of all its splits."""

import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from ssl_bench.config.options import DataOptions
from ssl_bench.data.dataset import load_dataset
from ssl_bench.data.files.left_out import LEFT_OUT, UnreadableImage, add_left_out, read_left_out


class Raises(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, at: int) -> torch.Tensor:
        raise UnreadableImage.of("a (1).png", "cut short (see (there))")


def test_it_survives_a_worker_process() -> None:
    with pytest.raises(UnreadableImage) as caught:
        list(DataLoader(Raises(), num_workers=1))
    assert (caught.value.name, caught.value.why) == ("a (1).png", "cut short (see (there))")
    assert "\n" not in str(caught.value) and str(caught.value).startswith("broken image a (1).png: evaluations need")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.name, again.why) == (caught.value.name, caught.value.why)


def test_a_run_remembers(tmp_path: Path) -> None:
    assert read_left_out(tmp_path) == {}
    add_left_out(tmp_path, "b\nc.png", "broken")
    add_left_out(tmp_path, "a.png", "cut short")
    with open(tmp_path / LEFT_OUT, "a") as file:
        file.write('{"name": "d.p')  # the disk was full
    assert read_left_out(tmp_path) == {"b\nc.png": "broken", "a.png": "cut short"}


def test_splits_leave_out_by_name() -> None:
    data = load_dataset(DataOptions(name="digits"))
    names = {data.train.ids[3]: "broken", data.validation.ids[0]: "broken", data.test.ids[7]: "cut short"}
    less = data.without(names)
    for split in ("train", "validation", "test"):
        before, after = getattr(data, split), getattr(less, split)
        assert after.ids == [name for name in before.ids if name not in names] and len(after) == len(before) - 1
    assert less.pretrain is data.pretrain and less.fingerprint["sha256"] == data.fingerprint["sha256"]
    assert less.fingerprint["images"]["test"] == len(data.test) - 1
    assert less.fingerprint["skipped"]["reasons"] == {"broken": 2, "cut short": 1}
    assert data.without({}) is data
