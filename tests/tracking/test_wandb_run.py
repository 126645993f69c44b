"""W&B as a sink: the real client, uploading to a small server of our own.

Run folders are made by the real writers; processes are the command line's own.
"""

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from PIL import Image
from tiny import TINY
from wandb_server import RunRecord, WandbServer, client_of, serving

from ssl_bench.cli.main import main
from ssl_bench.config.fit_config import parse_fit
from ssl_bench.config.options import WandbOptions
from ssl_bench.errors import UserError
from ssl_bench.pretraining.training import fit
from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import EvaluationCost, Result, Score, write_result
from ssl_bench.records.run import DataRecord, RunCost, RunInfo, write_run
from ssl_bench.records.store import load_runs
from ssl_bench.tracking.wandb_results import curves, identity_of, logged, summary

ONLINE = WandbOptions("online", "p", "team", "grid")
OFFLINE = WandbOptions("offline", "p", "team")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run with metrics, a result with a curve, and a picture."""
    path = tmp_path / "runs" / "mae-digits-vit-s0-0123abcd"
    data = DataRecord("digits", {"sha256": "ab" * 32})
    options = {"method": {"name": "mae", "mask_ratio": 0.75}}
    cost = RunCost(12.5, 3e9, 10**6, "a CPU")
    info = RunInfo("finished", "pretrained", "mae", data, options, seed=3, epochs=2.0, steps=8, cost=cost)
    write_run(path, info)
    (path / "metrics.csv").write_text("step,loss,knn\n0,2.0,\n4,1.5,0.5\n8,1.25,\n")
    curve = {"step": [0.0, 10.0], "validation accuracy": [0.2, 0.6]}
    variants = {"chosen": Score(0.625, (0.5, 0.75)), "cls": Score(0.5, (0.4, 0.6))}
    result = Result("linear", 1, {}, "chosen", 0.625, (0.5, 0.75), 64, data, variants=variants, curve=curve)
    write_result(path, result, Predictions([], [], {"chosen": []}))
    (path / "figures").mkdir()
    Image.new("RGB", (6, 4), (200, 10, 30)).save(path / "figures" / "attention.png")
    (path / "config.yaml").write_text("method: {name: mae, mask_ratio: 0.75}\n")
    (path / "backbone.safetensors").write_bytes(b"weights")
    return path


def table(run: RunRecord, name: str) -> list[list[Any]]:
    """Rows of a table that a run was given, from the file that was uploaded."""
    return list(json.loads(run.files[run.summary[name]["path"]])["data"])


def sync(server: WandbServer, home: Path, *arguments: str) -> None:
    """`wandb sync`, by its own command."""
    own = {**os.environ, **client_of(server, home)}
    command = [sys.executable, "-m", "wandb", "sync", *arguments]
    done = subprocess.run(command, env=own, cwd=home, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_run_folder_arrives_whole(server: WandbServer, folder: Path) -> None:
    with logged(folder, WandbOptions("online", "p", "team", "grid", checkpoints=True)) as run:
        run.log({"loss": 2.0}, 0)
        run.log({"loss": 1.5}, 4)
    assert list(server.runs) == ["0123abcd"]
    arrived = server.runs["0123abcd"]
    sent = {name: arrived.fields[name] for name in ("entity", "project", "groupName", "displayName", "jobType", "tags")}
    assert sent == {
        "entity": "team",
        "project": "p",
        "groupName": "grid",
        "displayName": folder.name,
        "jobType": "pretrained",
        "tags": ["mae", "digits"],
    }
    assert arrived.config["method"] == {"name": "mae", "mask_ratio": 0.75}
    assert (arrived.config["method_name"], arrived.config["seed"], arrived.config["kind"]) == ("mae", 3, "pretrained")
    assert [(row["_step"], row.get("loss")) for row in arrived.history[:2]] == [(0, 2.0), (4, 1.5)]
    wanted = {
        "linear/accuracy": 0.625,
        "linear/low": 0.5,
        "linear/high": 0.75,
        "linear/test_images": 64,
        "linear/variants/cls": 0.5,
        "cost/seconds": 12.5,
        "loss": 1.25,
        "knn": 0.5,
        "status": "finished",
    }
    assert {name: arrived.summary[name] for name in wanted} == wanted
    assert [row[:6] for row in table(arrived, "results")] == [
        ["linear", "chosen", True, 0.625, 0.5, 0.75],
        ["linear", "cls", False, 0.5, 0.4, 0.6],
    ]
    assert table(arrived, "linear/curves/validation accuracy_table") == [[0.0, 0.2], [10.0, 0.6]]
    picture = arrived.summary["figures/attention"]
    assert arrived.files[picture["path"]] == (folder / "figures" / "attention.png").read_bytes()
    (checkpoint,) = [one for one in server.artifacts if one.type == "checkpoint"]
    assert checkpoint.committed and checkpoint.name == folder.name
    names = {"backbone.safetensors", "run.json", "config.yaml"}
    assert set(checkpoint.manifest["contents"]) == names
    assert b"weights" in server.artifact_files(checkpoint).values()
    assert arrived.fields["exit_code"] == 0


def test_a_run_is_continued_not_doubled(server: WandbServer, folder: Path) -> None:
    with pytest.raises(KeyboardInterrupt), logged(folder, ONLINE) as run:
        run.log({"loss": 2.0}, 0)
        run.log({"loss": 1.5}, 4)
        raise KeyboardInterrupt
    arrived = server.runs["0123abcd"]
    assert arrived.fields["exit_code"] == 1 and "linear/accuracy" not in arrived.summary
    with logged(folder, ONLINE) as run:
        run.log({"loss": 1.5}, 4)  # again, as a resumed run repeats what came after its checkpoint
        run.log({"loss": 1.25}, 8)
    assert [(row["_step"], row["loss"]) for row in arrived.history if "loss" in row] == [(0, 2.0), (4, 1.5), (8, 1.25)]
    with logged(folder, ONLINE):  # an evaluation, later
        pass
    steps = [row["_step"] for row in arrived.history]
    assert steps == sorted(set(steps)) and len(steps) == 5 and steps[3] > 8
    assert arrived.summary["linear/accuracy"] == 0.625 and len(server.runs) == 1


def test_offline_is_synced_later_in_parts(
    server: WandbServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with logged(folder, OFFLINE) as run:
        run.log({"loss": 2.0}, 0)
        run.log({"loss": 1.5}, 4)
    with logged(folder, WandbOptions("offline", "p", "team", checkpoints=True)) as run:
        run.log({"loss": 1.25}, 8)
    assert server.operations == []
    assert not list((folder.parents[1] / "home").rglob("artifacts/staging/*"))  # all is in the run folder
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(line.startswith("W&B: to upload it: wandb sync ") for line in said)
    parts = [line.rpartition(" ")[2] for line in said]
    sync(server, folder.parent, *reversed(parts))
    arrived = server.runs["0123abcd"]
    assert [row["loss"] for row in arrived.history if "loss" in row] == [2.0, 1.5, 1.25]
    assert arrived.summary["linear/accuracy"] == 0.625 and arrived.config["method_name"] == "mae"
    assert len(table(arrived, "results")) == 2
    assert any(name.endswith(".png") for name in arrived.files)
    (checkpoint,) = [one for one in server.artifacts if one.type == "checkpoint"]
    assert checkpoint.committed and b"weights" in server.artifact_files(checkpoint).values()


@pytest.mark.parametrize(("key", "warnings"), [("", 0), ("too short", 1)])
def test_auto_without_a_key_is_offline(
    key: str, warnings: int, server: WandbServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    with logged(folder, WandbOptions("auto", "p")) as run:
        assert run.on and not run.online
    assert server.operations == [] and list((folder / "wandb").glob("offline-run-*"))
    assert capsys.readouterr().err.count("warning: W&B") == warnings


def test_online_without_a_key_is_said(
    server: WandbServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    with logged(folder, ONLINE) as run:
        assert not run.online
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "no key is configured (wandb login)" in said


@pytest.mark.parametrize(("mode", "seconds"), [("error", 4.0), ("hang", 4.0), ("gone", 4.0)])
def test_a_server_that_is_ill_from_the_start(
    mode: str, seconds: float, server: WandbServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for module in ("wandb_run", "wandb_client"):
        monkeypatch.setattr(f"ssl_bench.tracking.{module}.PROBE_SECONDS", 1.0)
    server.mode = mode
    if mode == "gone":
        server.stop()
    start = time.monotonic()
    with logged(folder, ONLINE) as run:
        assert run.on and not run.online
        run.log({"loss": 2.0}, 0)
    assert time.monotonic() - start < seconds
    assert capsys.readouterr().err.count("warning") == 1
    assert list((folder / "wandb").glob("offline-run-*/run-0123abcd.wandb"))


@pytest.mark.parametrize("mode", ["error", "hang", "gone"])
def test_a_server_that_dies_halfway(
    mode: str, server: WandbServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if mode == "hang":  # the client's own variable wins
        monkeypatch.setenv("WANDB_FINISH_TIMEOUT", "1")
    else:
        monkeypatch.setattr("ssl_bench.tracking.wandb_client.FINISH_SECONDS", 1.0)
    monkeypatch.setattr("ssl_bench.tracking.wandb_run.CALL_SECONDS", 1.0)
    start = time.monotonic()
    with logged(folder, ONLINE) as run:
        run.log({"loss": 2.0}, 0)
        assert run.online
        server.mode = mode
        if mode == "gone":
            server.stop()
        before = time.monotonic()
        for step in range(1, 200):
            run.log({"loss": 2.0 - step / 200}, step)
        assert time.monotonic() - before < 1.0  # what training feels
    assert time.monotonic() - start < 15.0
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    line = next(line for line in said.splitlines() if "warning" in line)
    paths = line.partition("wandb sync --no-skip-online ")[2].split()
    assert len(paths) == 2 and all(Path(path).is_dir() for path in paths)
    if mode != "gone":
        return  # the same parts: brought once
    with serving() as healed:
        sync(healed, folder.parent, "--no-skip-online", *paths)
        arrived = healed.runs["0123abcd"]
        assert {row["_step"] for row in arrived.history if "loss" in row} == set(range(200))
        assert arrived.summary["linear/accuracy"] == 0.625 and len(table(arrived, "results")) == 2


def test_what_cannot_be_written_is_one_warning(server: WandbServer, folder: Path, capsys: Any) -> None:
    (folder / "wandb").write_text("in the way")
    with logged(folder, ONLINE) as run:
        run.log({"loss": 2.0}, 0)
        run.summarise({"a": 1})
    assert capsys.readouterr().err.count("warning") == 1


def test_a_full_disk_is_one_warning(
    server: WandbServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import wandb

    def full(*given: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(wandb.Image, "__init__", full)  # which copies into the run's folder
        patch.setattr(wandb.Artifact, "add_file", full)
        with logged(folder, WandbOptions("online", "p", "team", checkpoints=True)) as run:
            run.log({"loss": 2.0}, 0)
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "No space left on device" in said
    assert server.runs["0123abcd"].summary["linear/accuracy"] == 0.625
    monkeypatch.setattr(Path, "mkdir", full)
    with logged(folder, ONLINE) as run:
        run.log({"loss": 2.0}, 0)
        assert not run.on
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "No space left on device" in said


def test_a_broken_picture_costs_nothing_else(server: WandbServer, folder: Path, capsys: Any) -> None:
    (folder / "figures" / "broken.png").write_bytes(b"no picture")
    with logged(folder, ONLINE) as run:
        run.log({"loss": 2.0}, 0)
    assert capsys.readouterr().err.count("warning") == 1
    assert server.runs["0123abcd"].summary["linear/accuracy"] == 0.625
    assert "figures/attention" in server.runs["0123abcd"].summary


@pytest.mark.parametrize("row", [b"350,1.2e", b"350,1.2,0.5,7", b"350,1.2\xff"])
def test_a_damaged_row_of_metrics_costs_one_warning(
    row: bytes, server: WandbServer, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open(folder / "metrics.csv", "ab") as file:
        file.write(row)
    with logged(folder, OFFLINE):
        pass
    assert capsys.readouterr().err.count("warning") == 1
    if row.isascii():
        (run,) = load_runs([folder])
        assert (summary(run)["loss"], summary(run)["knn"], summary(run)["linear/accuracy"]) == (1.25, 0.5, 0.625)


def test_what_cannot_be_read_is_one_warning(
    server: WandbServer, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "backbone-student.safetensors").symlink_to("nowhere")
    with logged(folder, WandbOptions("online", "p", "team", checkpoints=True)) as run:
        run.artifact("a", "b", {"gone": folder / "gone"})
    assert capsys.readouterr().err.count("warning") == 1
    assert server.runs["0123abcd"].summary["linear/accuracy"] == 0.625
    (folder / "results" / "linear.json").write_text("{")
    with logged(folder, OFFLINE):
        pass
    assert capsys.readouterr().err.count("warning") == 1
    (folder / "config.yaml").write_text("{")
    with logged(folder, OFFLINE) as run:
        assert not run.on
    assert capsys.readouterr().err.count("warning") == 1


def test_fit_and_evaluate_log_into_one_run(server: WandbServer, tmp_path: Path, capsys: Any) -> None:
    wandb = ("--wandb=auto", "--wandb_project=team/p", "--wandb_group=grid")
    assert main(["fit", "--method=mae", *TINY, *wandb, f"--runs={tmp_path}/runs"]) == 0
    run = Path(capsys.readouterr().out.strip())
    (arrived,) = server.runs.values()
    assert run.name.endswith(arrived.name)
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    assert [row["_step"] for row in arrived.history] == [int(row.partition(",")[0]) for row in rows]
    assert arrived.summary["status"] == "finished" and "knn/accuracy" not in arrived.summary
    assert main(["evaluate", str(run), "--protocols=knn", *wandb]) == 0
    assert list(server.runs) == [arrived.name]
    assert arrived.summary["knn/accuracy"] == json.loads((run / "results" / "knn.json").read_text())["value"]
    assert "warning" not in capsys.readouterr().err


def test_pictures_are_sent_to_the_run_itself(
    server: WandbServer, tiny_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    only = ["--only=views", "--images=2"]
    monkeypatch.setenv("SSL_BENCH_WANDB_PROJECT", "team/p")
    assert main(["figures", str(tiny_run), *only]) == 0
    assert server.operations == []
    assert main(["figures", str(tiny_run), *only, "--wandb=online", "--wandb_group=grid"]) == 0
    (arrived,) = server.runs.values()
    assert tiny_run.name.endswith(arrived.name) and arrived.fields["groupName"] == "grid"
    sent = arrived.files[arrived.summary["figures/views"]["path"]]
    assert sent == (tiny_run / "figures" / "views.png").read_bytes()
    capsys.readouterr()
    for module in ("wandb_run", "wandb_client"):
        monkeypatch.setattr(f"ssl_bench.tracking.{module}.PROBE_SECONDS", 1.0)
    server.mode = "error"
    assert main(["figures", str(tiny_run), *only, "--wandb=online"]) == 0
    assert capsys.readouterr().err.count("warning") == 1
    assert main(["figures", str(tiny_run), *only, "--wandb=onlin"]) == 2
    assert main(["figures", str(tiny_run), *only, "--wandb_project=a/b/c"]) == 2


def test_logging_changes_no_bit_of_a_run(
    server: WandbServer, tiny_config: Callable[..., Any], tiny_run: Path, tmp_path: Path
) -> None:
    also = fit(tiny_config(), tmp_path / "logged", wandb=OFFLINE).folder
    assert (also / "backbone.safetensors").read_bytes() == (tiny_run / "backbone.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_and_resumed_is_one_history(tmp_path: Path) -> None:
    long = ("--trainer.max_epochs=30", "--trainer.limit_train_batches=20", "--probe.every_n_epochs=0")
    argv = ["fit", "--method=mae", *TINY, *long, "--wandb=online", "--wandb_project=team/p", f"--runs={tmp_path}/runs"]
    with serving() as server:
        own = {**os.environ, **client_of(server, tmp_path), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "ssl_bench", *argv]
        process = subprocess.Popen(command, env=own, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        last = ""
        deadline = time.monotonic() + 120
        while not last and time.monotonic() < deadline:
            last = next((str(path) for path in (tmp_path / "runs").glob("*/checkpoints/last.ckpt")), "")
            time.sleep(0.05)
        process.kill()
        process.communicate()
        done = subprocess.run(command, env=own, cwd=tmp_path, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        (arrived,) = server.runs.values()
        folder = Path(done.stdout.strip())
        rows = (folder / "metrics.csv").read_text().splitlines()[1:]
        steps = [row["_step"] for row in arrived.history]
        assert steps == sorted(set(steps))
        assert set(steps) <= {int(row.partition(",")[0]) for row in rows}
        assert steps[-1] == int(rows[-1].partition(",")[0]) and arrived.summary["status"] == "finished"


def test_summary_and_curves_are_what_the_folder_says(folder: Path) -> None:
    (run,) = load_runs([folder])
    said = summary(run)
    assert (said["loss"], said["steps"], said["cost/device"]) == (1.25, 8, "a CPU") and None not in said.values()
    blank = Result("x", 1, {}, "", None, None, 0, run.info.data, cost=EvaluationCost())
    odd = {"step": [1.0, 2.0], "other": [1.0, 2.0, 3.0]}
    assert curves(Result(**{**blank.__dict__, "curve": odd})) == {
        "other": (("index", [0.0, 1.0, 2.0]), [1.0, 2.0, 3.0])
    }
    assert curves(blank) == {}


def test_a_folder_named_by_its_user_has_an_id_of_its_name(folder: Path) -> None:
    renamed = folder.rename(folder.with_name("mine"))
    assert identity_of(renamed).id != "0123abcd" and len(identity_of(renamed).id) == 8


@pytest.mark.parametrize("project", ["a/b/c", "/p", "team/"])
def test_a_project_that_cannot_be(project: str, tiny_config: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match="PROJECT, or ENTITY/PROJECT"):
        parse_fit(["--method=mae", f"--wandb_project={project}"], {})


def test_two_owners_are_refused() -> None:
    with pytest.raises(UserError, match="name two owners"):
        parse_fit(["--method=mae", "--wandb_project=team/p", "--wandb_entity=me"], {})
    given = parse_fit(["--method=mae", "--wandb=auto"], {"SSL_BENCH_WANDB_PROJECT": "team/p"}).wandb
    assert given == WandbOptions("auto", "p", "team")


def test_results_on_two_data_sets_of_one_name_keep_apart(folder: Path) -> None:
    for number, accuracy in enumerate((0.25, 0.75)):
        photos = DataRecord("folder", {"sha256": f"{number}c" * 32, "name": "photos"})
        variants = {"k20": Score(accuracy, (0.1, 0.9))}
        result = Result("knn", 1, {}, "k20", accuracy, (0.1, 0.9), 64, photos, variants=variants)
        write_result(folder, result, Predictions([], [], {"k20": []}))
    (run,) = load_runs([folder])
    found = {name: value for name, value in summary(run).items() if name.startswith("knn@") and "/accuracy" in name}
    assert sorted(found.values()) == [0.25, 0.75]
