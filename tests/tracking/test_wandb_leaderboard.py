"""`ssl-bench leaderboard --wandb`: what arrives at a server of our own, by the real client and wandb-workspaces."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from wandb_server import WandbServer, client_of

from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.leaderboard.findings import Finding
from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import Result, write_result
from ssl_bench.records.run import DataRecord, RunInfo, write_run
from ssl_bench.statistics.intervals import wilson
from ssl_bench.tracking import wandb_leaderboard
from ssl_bench.tracking.wandb_leaderboard import _identity
from ssl_bench.tracking.wandb_report import (
    Panel,
    ReportBlock,
    Specification,
    read_specification,
    specify,
    write_specification,
)

# wandb-workspaces' own, at its import
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")

DATA = DataRecord("digits", {"sha256": "ab" * 32})
LABELS = np.arange(200) % 10


def add(root: Path, method: str, seed: int, right: dict[str, int], kind: Any = "pretrained") -> None:
    """A run whose results have so many right answers, the first ones."""
    folder = root / f"{method}-digits-s{seed}-{len(method):04x}{seed:04x}"
    epochs = None if kind == "baseline" else 2.0
    write_run(folder, RunInfo("finished", kind, method, DATA, seed=seed, epochs=epochs, steps=4))
    for protocol, count in right.items():
        given = np.where(np.arange(200) < count, LABELS, (LABELS + 1) % 10)
        value = count / 200
        result = Result(protocol, 1, {}, "all", value, wilson(count, 200), 200, DATA)
        write_result(folder, result, Predictions([str(i) for i in range(200)], LABELS, {"all": given}))
    if method == "mae":
        (folder / "figures").mkdir()
        Image.new("RGB", (4, 4), (9, 9, 9)).save(folder / "figures" / "attention.png")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two methods of which each leads once, and a baseline."""
    root = tmp_path / "study"
    for seed in range(2):
        add(root, "mae", seed, {"knn": 120 + seed, "finetune": 190})
        add(root, "byol2", seed, {"knn": 170, "finetune": 150 + seed})
    add(root, "random", 0, {"knn": 40}, "baseline")
    return root


def texts(server: WandbServer) -> str:
    """The one report's specification as W&B gets it."""
    (view,) = server.views.values()
    return str(view["spec"])


def test_a_leaderboard_arrives_and_is_updated_in_place(server: WandbServer, runs: Path, capsys: Any) -> None:
    assert main(["leaderboard", str(runs), "--wandb", "team/p"]) == 0
    board = server.runs["leaderboard-study"]
    assert (board.fields["jobType"], board.fields["entity"], board.fields["project"]) == ("leaderboard", "team", "p")
    rows = json.loads(board.files[board.summary["leaderboard/table"]["path"]])["data"]
    assert {(row[3], row[5], row[6]) for row in rows} >= {("byol2", "knn", 0.85), ("random", "knn", 0.2)}
    assert b"<h1>Leaderboard</h1>" in board.files[board.summary["leaderboard/page"]["path"]]
    assert board.summary["leaderboard/figures/attention"]["captions"] == ["mae"]
    (first,) = [one for one in server.artifacts if one.type == "leaderboard"]
    files = {"leaderboard.csv", "leaderboard.json", "leaderboard.md", "leaderboard.html", "report.json"}
    assert first.committed and set(first.manifest["contents"]) == files
    spec = json.loads(texts(server))
    words = "knn: byol2 leads with 85.0 %, significantly ahead of all others (1)"
    assert words in texts(server) and "both are significant" in texts(server)
    grids = [block for block in spec["blocks"] if block["type"] == "panel-grid"]
    over = [grid["metadata"]["runSets"][0]["filters"]["filters"][0]["value"] for grid in grids]
    assert over == [["leaderboard-study"], ["00050000", "00050001", "00030000", "00030001", "00060000"]]

    groups = [grid["metadata"]["runSets"][0]["grouping"] for grid in grids]
    assert groups[0] == [] and groups[1] == [{"section": "config", "name": "method_name.value"}]

    for seed in range(2):
        add(runs, "simclr", seed, {"knn": 190, "finetune": 192})
    (runs / "leaderboard" / "report-id.json").unlink()  # as from another machine: found by its title
    assert main(["leaderboard", str(runs), "--wandb", "team/p"]) == 0
    assert len(server.views) == 1 and "simclr leads" in texts(server)
    assert list(server.runs) == ["leaderboard-study"] and board.summary["methods"] == 4
    found = {
        (row[3], row[5]): row[-2:]
        for row in json.loads(board.files[board.summary["leaderboard/table"]["path"]])["data"]
    }
    assert found["simclr", "finetune"] == [True, True] and found["byol2", "finetune"] == [False, False]
    assert found["mae", "finetune"] == [False, True]  # two answers fewer: not significantly worse
    versions = [one for one in server.artifacts if one.type == "leaderboard"]
    assert len(versions) == 2 and versions[0].name == versions[1].name == "leaderboard-study"
    assert [row["_step"] for row in board.history] == [0, 1]
    assert "warning" not in capsys.readouterr().err


def test_offline_it_is_all_on_disk_and_made_later(
    server: WandbServer, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)  # is not needed
    assert main(["leaderboard", str(runs), "--wandb", "team/p"]) == 0
    assert server.operations == []
    out, said = capsys.readouterr()
    folder = Path(out.strip())
    assert list((folder / "wandb").glob("offline-run-*-leaderboard-study"))
    assert "to upload it: wandb sync " in said and f"ssl-bench leaderboard {folder}/report.json --wandb team/p" in said
    monkeypatch.undo()
    for name, value in client_of(server, runs.parent).items():
        monkeypatch.setenv(name, value)
    assert main(["leaderboard", f"{folder}/report.json", "--wandb", "team/p"]) == 0
    assert "byol2 leads" in texts(server) and server.runs == {}


def test_without_its_package_all_but_the_report_is_made(
    server: WandbServer, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb_workspaces"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["leaderboard", str(runs), "--wandb", "team/p"]) == 1
    assert "pip install 'ssl-bench[report]'" in capsys.readouterr().err
    assert "leaderboard-study" in server.runs and server.views == {}


def test_a_server_that_fails_is_said_and_all_is_kept(server: WandbServer, runs: Path, capsys: Any) -> None:
    server.mode = "error"
    assert main(["leaderboard", str(runs), "--wandb", "team/p"]) == 0
    assert capsys.readouterr().err.count("warning") == 1
    assert read_specification(runs / "leaderboard" / "report.json").title == "ssl-bench leaderboard: study"


@pytest.mark.parametrize("mode", ["hang", "gone"])
def test_a_server_that_is_ill_halfway(
    mode: str, server: WandbServer, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name in ("CALL_SECONDS", "FINISH_SECONDS", "ANSWER_SECONDS"):
        module = "wandb_run" if name == "CALL_SECONDS" else "wandb_client"
        monkeypatch.setattr(f"ssl_bench.tracking.{module}.{name}", 1.0)
    gallery = wandb_leaderboard._gallery

    def ill(*given: Any) -> dict[str, Any]:
        server.mode = mode
        if mode == "gone":
            server.stop()
        return gallery(*given)

    monkeypatch.setattr("ssl_bench.tracking.wandb_leaderboard._gallery", ill)
    start = time.monotonic()
    assert main(["leaderboard", str(runs), "--wandb", "team/p"]) == 1
    assert time.monotonic() - start < 30
    said = capsys.readouterr().err
    assert said.count("warning") == 1 and "wandb sync --no-skip-online" in said and "to make the report" in said
    assert (runs / "leaderboard" / "leaderboard.html").exists() and server.views == {}
    assert list((runs / "leaderboard" / "wandb").glob("offline-run-*"))


def test_published_numbers_and_images_go_along(server: WandbServer, runs: Path, tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "published.csv"
    file.write_text("method,data,backbone,protocol,value,source\nMAE paper,digits,,knn,77.7,a table\n")
    argv = ["leaderboard", str(runs), "--wandb", "team/p"]
    assert main([*argv, "--published", str(file), "--images", "embed"]) == 0
    page = (runs / "leaderboard" / "leaderboard.html").read_text()
    assert "MAE paper" in page and "data:image/png;base64," in page and "MAE paper" in texts(server)
    capsys.readouterr()
    for more, message in (
        (["--format", "csv"], "--format is not for --wandb"),
        (["--output", str(tmp_path / "page")], "--output is not for --wandb"),
        (["--images", "beside"], "--images beside: W&B's page is one file"),
    ):
        assert main([*argv, *more]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    report = str(runs / "leaderboard" / "report.json")
    assert main(["leaderboard", report, "--wandb", "team/p", "--by", "epochs"]) == 2
    assert "is a whole report" in capsys.readouterr().err


def test_each_leaderboard_has_an_id_of_its_own() -> None:
    folders = ["/lab/runs", "/lab2/結果", "/lab2/研究", "a b", "a-b", "a\udcff", "x" * 101, "x" * 102, "runs by epochs"]
    ids = [_identity([Path(folder)], None).id for folder in folders]
    assert ids[0] == "leaderboard-runs" and ids[4] == "leaderboard-a-b"
    ids += [_identity([Path("/lab/runs")], "epochs").id, _identity([Path("a"), Path("b")], None).id]
    assert len(set(ids)) == len(ids) - 1  # by epochs, whoever says it
    assert all(re.fullmatch(r"[\w.-]{1,128}", name, re.ASCII) for name in ids)


@pytest.mark.parametrize("target", ["p", "/p", "team/", "a/b/c"])
def test_where_must_be_said_whole(target: str, runs: Path, capsys: Any) -> None:
    assert main(["leaderboard", str(runs), "--wandb", target]) == 2
    assert "ENTITY/PROJECT" in capsys.readouterr().err


def test_a_specification_survives_its_file(tmp_path: Path) -> None:
    found = [Finding("leader", "digits", "one"), Finding("rank", "", "two")]
    made = specify("t", "| a |", found, ["finetune", "knn", "linear"], ["views"], ["0a"], "board")
    write_specification(tmp_path / "report.json", made)
    assert read_specification(tmp_path / "report.json") == made
    titles = [panel.title for block in made.blocks for panel in block.panels]
    assert "finetune against linear" in titles and "linear against attentive" not in titles
    assert made == Specification(made.title, made.description, made.blocks)
    assert ReportBlock("list", items=("one",)) in made.blocks
    assert Panel("media", "views of each run", ("figures/views",)) in made.blocks[-1].panels


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 2, "blocks": []}', '{"format": 1, "blocks": [{"kind": 1}]}'])
def test_a_file_that_is_no_specification(text: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match="is no report's specification"):
        read_specification(tmp_path / "report.json")
