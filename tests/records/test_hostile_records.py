"""Records of others: what is damaged, huge, or no file at all costs its own place, and nothing waits for it."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made
import pytest

from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.leaderboard.page.figures import figures, published_pictures, read_png
from ssl_bench.leaderboard.render import FORMATS, leaderboard, write_page
from ssl_bench.records import decoding
from ssl_bench.records.files import is_inside, read_regular
from ssl_bench.records.predictions import read_predictions
from ssl_bench.records.run import read_run
from ssl_bench.records.store import load_readable

pytestmark = pytest.mark.timeout(120)  # what blocks on a FIFO blocks for ever
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two methods of two seeds, under two protocols."""
    root = tmp_path / "runs"
    for number, method in enumerate(("mae", "dino")):
        for seed in range(2):
            made.full_run(root, method, seed, 0.1 * number, ("knn", "linear"), 60, True, folder=f"{method}-{seed}")
    return root


def changed(file: Path, change: dict[str, Any]) -> None:
    """A JSON file with other values; `a.b` is one within another."""
    record = json.loads(file.read_text())
    for name, value in change.items():
        *path, last = name.split(".")
        place = record
        for part in path:
            place = place[part]
        place[last] = value
    file.write_text(json.dumps(record))


NUMBERS: list[dict[str, Any]] = [
    {"value": 10**400},
    {"value": float("nan")},
    {"value": float("inf")},
    {"n_test": 10**400},
    {"n_test": 0},
    {"n_test": -5},
    {"cost.seconds": float("nan")},
    {"cost.flops": float("inf")},
    {"cost.seconds": 10**400},
    {"options": {"k": 10**400}},
    {"options": {"k": 1e300}},
    {"data.fingerprint": {"images": {"train": 10**400}}},
    {"splits.train.count": 10**400},
]


@pytest.mark.parametrize("change", NUMBERS, ids=lambda change: str(change)[:40])
def test_a_number_that_is_none_costs_its_own_result(two: Path, change: dict[str, Any], capsys: Capture) -> None:
    changed(two / "mae-0" / "results" / "knn.json", change)
    for format in FORMATS if change is NUMBERS[0] else ("csv", "html"):
        assert main(["leaderboard", str(two), "--format", format]) == 0
        shown = capsys.readouterr()
        assert re.search(r"^warning: left out, of \S+mae-0: results/knn\.json is damaged \(", shown.err), format
        assert shown.err.count("\n") == 1 and "Traceback" not in shown.err
        assert "mae" in shown.out and "dino" in shown.out
    assert main(["compare", str(two)]) == 0
    assert "results/knn.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [{"epochs": float("nan")}, {"epochs": 1e308}, {"views_per_image": float("inf")}, {"cost.seconds": 10**400},
     {"images_seen": 10**400}, {"seed": 10**400}, {"options": {"trainer": {"devices": 10**400}}},
     {"backbone.params": 10**400}],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_a_number_that_is_none_costs_its_own_run(two: Path, change: dict[str, Any], capsys: Capture) -> None:
    changed(two / "mae-0" / "run.json", change)
    for format in ("latex", "html"):
        assert main(["leaderboard", str(two), "--format", format]) == 0
        shown = capsys.readouterr()
        assert "run.json is damaged" in shown.err and "dino" in shown.out


@pytest.mark.parametrize("devices", ["9" * 5000, "\u00b2", "-1", "", "1e9"])
def test_devices_of_any_text(two: Path, devices: str) -> None:
    changed(two / "mae-0" / "run.json", {"options.trainer.devices": devices})
    assert "mae" in leaderboard([two])


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"options": ' + b'{"a": ' * 5000, b'{"value": 1' + b"0" * 5000 + b"}", b"\x00" * 100],
    ids=["list", "object", "digits", "zeros"],
)
def test_deep_and_long_text_is_damage(two: Path, content: bytes, capsys: Capture) -> None:
    for name in ("mae-0/results/knn.json", "dino-1/run.json"):
        (two / name).write_bytes(content)
    assert main(["leaderboard", str(two), "--format", "html"]) == 0
    assert capsys.readouterr().err.count("is damaged") == 2


def test_options_that_are_nested_too_deeply(two: Path) -> None:
    deep: Any = 1
    for _ in range(200):
        deep = {"a": deep}
    changed(two / "mae-0" / "run.json", {"options": deep})
    with pytest.raises(UserError, match=r"run\.json is damaged \(options\.a is nested more than 32 deep\)"):
        read_run(two / "mae-0")


def test_a_huge_record_is_not_read(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST_BYTES", 2**20)
    with open(two / "mae-0" / "results" / "knn.json", "ab") as file:
        file.truncate(2**40)  # a hole, which takes no room
    (unread,) = load_readable([two])[1]
    assert "it has 1099511627776 bytes" in unread.reason


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def test_results_without_the_record_of_their_run_are_named(two: Path, capsys: Capture) -> None:
    (two / "mae-0" / "run.json").unlink()
    for format in ("table", "csv"):
        assert main(["leaderboard", str(two), "--format", format]) == 0
        assert "mae-0: cannot read run.json: No such file or directory" in capsys.readouterr().err
    assert main(["leaderboard", str(two / "mae-0")]) == 2
    assert "run.json: No such file" in capsys.readouterr().err


@pytest.mark.parametrize("make", [fifo, loop, folder])
def test_what_is_no_file_is_refused_at_once_by_name(two: Path, make: Callable[[Path], None], capsys: Capture) -> None:
    make(two / "mae-0" / "run.json")
    assert main(["leaderboard", str(two / "mae-0")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "mae-0" in line and "cannot read run.json: " in line
    assert main(["leaderboard", str(two)]) == 0
    shown = capsys.readouterr()
    assert "mae-0: cannot read run.json" in shown.err and "damaged" in shown.out
    with pytest.raises(UserError, match=r"cannot read .*mae-0/run\.json"):
        read_run(two / "mae-0")


@pytest.mark.parametrize("make", [fifo, loop, folder])
@pytest.mark.parametrize(
    "name",
    ["results/knn.json", "predictions/knn.parquet", "metrics.csv", "environment.json", "figures/map.png",
     "figures/figures.json", "config.yaml"],
)  # fmt: skip
def test_no_file_of_a_run_is_waited_for(two: Path, name: str, make: Callable[[Path], None]) -> None:
    make(two / "mae-0" / name)
    page = write_page([two], two / "page", images="embed").read_text(encoding="utf-8")
    assert "dino" in page and page.count("data:image/png") == 12 - (name == "figures/map.png")
    assert leaderboard([two])


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\x00" * 100 + b"PAR1", b"x" * 1000])
def test_damaged_predictions_cost_no_page(two: Path, content: bytes) -> None:
    (two / "mae-0" / "predictions" / "knn.parquet").write_bytes(content)
    page = leaderboard([two], "html")
    assert "mae under knn" in page and "knn.parquet is damaged" in page


def test_predictions_of_other_types_are_damage(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    ids = pa.array(["a", "b"])
    columns = [pa.array([0.5, 1.5]), pa.array(["x", "y"]), pa.array([1, None]), pa.array([2**63, 1], pa.uint64())]
    for number, values in enumerate(columns):
        path = tmp_path / f"{number}.parquet"
        parquet.write_table(pa.table({"id": ids, "label": pa.array([0, 1]), "prediction": values}), path)
        with pytest.raises(UserError, match="is damaged"):
            read_predictions(path)
    parquet.write_table(pa.table({"id": ids, "label": pa.array([0, 1])}), tmp_path / "none.parquet")
    with pytest.raises(UserError, match="is damaged"):
        read_predictions(tmp_path / "none.parquet")


def test_classes_of_any_size_are_read(two: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path = two / "mae-0" / "predictions" / "linear.parquet"
    table = parquet.read_table(path)
    parquet.write_table(
        pa.table({"id": table["id"], "label": table["label"], "prediction": pa.array([2**63 - 1] * len(table))}), path
    )
    assert "mae" in leaderboard([two], "html")


def test_pictures_come_from_the_run_alone(two: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes((two / "dino-0" / "figures" / "map.png").read_bytes() + b"secret")
    run = two / "mae-0"
    kept = published_pictures(run)
    assert len(kept) == 3
    (run / "figures" / "map.png").unlink()
    (run / "figures" / "map.png").symlink_to(secret)
    (run / "figures" / "views.png").write_bytes(b"no picture")
    os.mkfifo(run / "figures" / "masks.png")
    (run / "figures" / "attention.png").rename(run / "figures" / "a.png")
    (run / "figures" / "attention.png").symlink_to("a.png")  # within the folder
    assert {path.name for path in published_pictures(run)} == {"a.png", "attention.png", "reconstruction.png"}
    assert len(figures(run, "embed", None, "x")) == 2
    assert read_png(run, run / "figures" / ".." / ".." / "dino-0" / "figures" / "map.png") is None
    elsewhere = tmp_path / "figures"
    elsewhere.mkdir()
    (elsewhere / "map.png").write_bytes(secret.read_bytes())
    other = two / "dino-0"
    for file in (other / "figures").iterdir():
        file.unlink()
    (other / "figures").rmdir()
    (other / "figures").symlink_to(elsewhere)
    assert published_pictures(other) == []


def test_a_runs_folder_behind_a_link_is_itself(two: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(two)
    assert len(published_pictures(tmp_path / "link" / "mae-0")) == 3


def test_folders_that_link_to_each_other_are_read_once(two: Path) -> None:
    for name in ("a", "b", "c"):
        (two / "deep" / name).mkdir(parents=True)
        for other in ("a", "b", "c"):
            (two / "deep" / name / f"to-{other}").symlink_to(two / "deep" / other)
        (two / "deep" / name / "up").symlink_to(two)
    assert len(load_readable([two])[0]) == 4


def test_regular_files_alone(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    assert read_regular(file, 3) == b"abc" and is_inside(file, tmp_path)
    with pytest.raises(OSError, match="more than 2"):
        read_regular(file, 2)
    with pytest.raises(OSError, match="it is a device"):
        read_regular(Path("/dev/zero"), 3)
    assert not is_inside(Path("/dev/null"), tmp_path) and not is_inside(tmp_path, tmp_path)


@pytest.mark.parametrize("make", [fifo, loop, folder])
def test_no_file_that_a_run_goes_on_from_is_waited_for(
    make: Callable[[Path], None], tmp_path: Path, tiny_config: Callable[..., dict[str, Any]]
) -> None:
    from ssl_bench.data.files.content import Content, refuse_changed_images
    from ssl_bench.data.files.left_out import read_left_out
    from ssl_bench.evaluation.input_files import network_files
    from ssl_bench.evaluation.targets import Target
    from ssl_bench.pretraining.last_checkpoint import usable_checkpoint
    from ssl_bench.pretraining.metrics import MetricsFile

    run = tmp_path / "mae-0"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("left_out.jsonl", "metrics.csv", "backbone.safetensors", "images.json", "checkpoints/last.ckpt"):
        make(run / name)
    with pytest.raises(UserError, match=r"cannot read .*left_out\.jsonl: .* move it away"):
        read_left_out(run)
    with pytest.raises(UserError, match=r"cannot read .*metrics\.csv: .* move it away"):
        MetricsFile(run / "metrics.csv")
    assert network_files(Target("mae-0", run), "encoder", "encoder") is None
    refuse_changed_images(tmp_path / "other", tiny_config(), Content("photos", "0" * 16, {}))
    if make is loop:
        assert usable_checkpoint(run) is None
    else:
        with pytest.raises(UserError, match=r"last\.ckpt is damaged \(it is no regular file\)"):
            usable_checkpoint(run)


@pytest.mark.parametrize("value", [{}, {"rest": 1}, {"rest": "", "root": "", "digest": "", "folders": [1]}, [], 7])
def test_notes_on_images_that_are_none_are_passed_over(
    value: Any, tmp_path: Path, tiny_config: Callable[..., dict[str, Any]]
) -> None:
    from ssl_bench.data.files.content import Content, refuse_changed_images

    (tmp_path / "mae-0").mkdir()
    (tmp_path / "mae-0" / "images.json").write_text(json.dumps(value))
    refuse_changed_images(tmp_path / "other", tiny_config(), Content("photos", "0" * 16, {}))
