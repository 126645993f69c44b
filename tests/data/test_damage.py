"""An image that is found broken only while it is read: fit, probe and evaluate leave it out alike, and say so once."""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny import TINY

from ssl_bench.cli.main import main
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.data import in_memory
from ssl_bench.data.files.content import folder_of_run
from ssl_bench.data.files.left_out import read_left_out
from ssl_bench.records.run import DataRecord, RunInfo, read_run, write_run

SPLITS = ["train/a", "train/b", "test/a", "test/b"]
FEW = ["--data.batch_size=8", "--data.num_workers=0", "--probe.every_n_epochs=1", "--trainer.max_epochs=2"]


@pytest.fixture
def flags(class_folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A fit of photographs of which none was looked at beforehand, as of a very large set; two are broken."""
    monkeypatch.setattr(in_memory, "_checks", lambda pool: {})
    root = class_folders(SPLITS, count=8, width=120, height=110)
    for name in ("train/a/003.png", "test/b/005.png"):
        (root / name).write_bytes((root / name).read_bytes()[:-100])
    own = [f"--data.root={root}", "--data=folder", f"--runs={tmp_path / 'runs'}"]
    return ["--method=mae", *[flag for flag in TINY if flag != "--data=digits"], *FEW, *own]


@pytest.mark.integration
def test_fit_probe_and_evaluate_leave_out_the_same(flags, capfd, recwarn):
    assert main(["fit", *flags]) == 0
    folder = Path(capfd.readouterr().out.split()[-1])
    assert list(read_left_out(folder)) == ["train/a/003.png"]
    info = read_run(folder)
    assert info.status == "finished" and info.data.fingerprint["skipped"]["names"] == ["train/a/003.png"]
    assert len([w for w in recwarn if "cannot be decoded" in str(w.message)]) <= 1
    assert main(["evaluate", str(folder), "--protocols=knn", "--data.num_workers=0"]) == 0
    said = capfd.readouterr().err
    assert said.count("test/b/005.png is left out: ") == 1
    ids = pq.read_table(folder / "predictions" / "knn.parquet")["id"].to_pylist()
    assert len(ids) == 15 and "test/b/005.png" not in ids
    assert sorted(read_left_out(folder)) == ["test/b/005.png", "train/a/003.png"]
    result = json.loads((folder / "results" / "knn.json").read_text())
    assert sorted(result["data"]["fingerprint"]["skipped"]["names"]) == ["test/b/005.png", "train/a/003.png"]
    assert main(["evaluate", str(folder), "--protocols=knn", "--data.num_workers=0"]) == 0
    said = capfd.readouterr().err
    assert "recorded before" in said and "is left out" not in said


def test_strict_stops(flags, capfd):
    assert main(["fit", *flags, "--data.strict=true"]) == 2
    assert "broken image train/a/003.png" in capfd.readouterr().err


def test_already_done_is_known_before_torch_is_loaded(flags, capfd, monkeypatch, tmp_path):
    config = parse_fit(flags, {}).config
    folder = folder_of_run(tmp_path / "runs", config)
    write_run(folder, RunInfo("finished", "pretrained", "mae", DataRecord("own pictures")))
    monkeypatch.setattr("ssl_bench.cli.fit.import_torch", lambda: pytest.fail("torch would be loaded"))
    assert main(["fit", *flags]) == 0
    said = capfd.readouterr()
    assert said.out.strip() == str(folder) and "already done" in said.err
