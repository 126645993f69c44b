"""What is not significantly worse than the best: by the tests of `compare`, or by the intervals."""

import csv
import io
import json
import re
from pathlib import Path

import made
import pytest
from recorded_runs import Runs

from ssl_bench.errors import UserError
from ssl_bench.leaderboard import marks
from ssl_bench.leaderboard.build import build
from ssl_bench.leaderboard.marks import marked
from ssl_bench.leaderboard.render import TEXTS, leaderboard
from ssl_bench.leaderboard.significance import build_report
from ssl_bench.leaderboard.table import Block, Table
from ssl_bench.records.store import load_runs


def block_of(root: Path) -> Block:
    table, _ = marked(build(load_runs([root])))
    (block,) = table.blocks
    return block


def unbeaten(block: Block) -> dict[str, set[str]]:
    return {
        column.title: {row.name for row in block.rows if (cell := row.cells[index]) and cell.unbeaten}
        for index, column in enumerate(block.columns)
    }


@pytest.fixture
def four(tmp_path: Path) -> Path:
    for number, method in enumerate(("mae", "simclr", "dino", "byol")):
        for seed in range(3):
            made.full_run(tmp_path, method, seed, 0.05 * number, ("knn", "linear"), 400, folder=f"{method}-{seed}")
    made.baselines(tmp_path, ("knn",), 400)
    return tmp_path


def test_marks_are_those_of_compare(four: Path) -> None:
    report = build_report([four]).blocks[0]
    theirs = {protocol.title: {m.name for m in protocol.methods if m.unbeaten} for protocol in report.protocols}
    block = block_of(four)
    assert unbeaten(block) == theirs
    assert {column.test for column in block.columns} == {"paired"}
    assert all(1 <= len(names) < 4 for names in theirs.values())  # that something is beaten, and something marked


def test_every_format_has_the_marks(four: Path) -> None:
    found = {name: leaderboard([four], name) for name in TEXTS}
    cells = [c for row in json.loads(found["json"])["blocks"][0]["rows"] for c in row["cells"] if c]
    count = sum(cell["unbeaten"] for cell in cells)
    assert count == sum(len(names) for names in unbeaten(block_of(four)).values())
    assert sum(line["unbeaten"] == "True" for line in csv.DictReader(io.StringIO(found["csv"]))) == count
    for name, mark in (("table", r"±\d+\.\d\*"), ("markdown", r"±\d+\.\d\\\*"), ("latex", r"\$\\pm\$\d+\.\d\*")):
        assert len(re.findall(mark, found[name])) == count
    assert all("paired tests on the same test images" in " ".join(found[n].split()) for n in ("table", "markdown"))


def test_without_predictions_the_intervals_decide(four: Path) -> None:
    for path in four.glob("*/predictions/knn.parquet"):
        path.unlink()
    block = block_of(four)
    assert {column.title: column.test for column in block.columns} == {"knn": "intervals", "linear": "paired"}
    text = " ".join(leaderboard([four]).split())
    assert "for want of predictions in knn." in text


def test_the_legend_names_the_block_where_tests_differ_between_blocks(four: Path, tmp_path: Path) -> None:
    for method in ("mae", "simclr"):
        for seed in range(2):
            folder = made.full_run(
                four, method, seed, 0.05, ("knn",), 400, folder=f"{method}-long-{seed}", epochs=100.0
            )
            (folder / "predictions" / "knn.parquet").unlink()
    text = " ".join(leaderboard([four], by="views").split())
    title = "cifar10, vit_nano_patch4_32 (img_size=32), 200 epochs x views"
    assert f"for want of predictions in knn of {title}." in text


def test_blocks_of_unknown_budgets_are_not_compared(four: Path) -> None:
    for folder in four.glob("*/run.json"):
        folder.write_text(folder.read_text().replace('"epochs": 20.0', '"epochs": null'))
    table, compared = marked(build(load_runs([four]), "views"))
    assert compared == (None,) and unbeaten(table.blocks[0]) == {"knn": set(), "linear": set()}
    page = leaderboard([four], "html", by="views")
    assert "nothing is ranked" in page and "<h3>Results</h3>" in page and "has the highest mean" not in page
    with pytest.raises(UserError, match="nothing to compare"):
        build_report([four], by="views")
    assert len(build_report([four]).blocks) == 1


def test_predictions_that_are_damaged_cost_their_own_method_alone(four: Path) -> None:
    """The others are paired as before, and it is tested by its interval; where it is the best, all are."""
    before = unbeaten(block_of(four))
    (four / "mae-0" / "predictions" / "knn.parquet").write_bytes(b"damaged")  # the worst
    table, (compared,) = marked(build(load_runs([four])))
    assert compared and "mae" not in {m.name for p in compared.protocols if p.title == "knn" for m in p.methods}
    assert {column.title: column.test for column in table.blocks[0].columns} == {"knn": "paired", "linear": "paired"}
    assert unbeaten(table.blocks[0]) == before
    (note,) = [note for note in table.notes if "mae under knn" in note]
    assert "mae-0/predictions/knn.parquet is damaged" in note
    (four / "byol-1" / "predictions" / "knn.parquet").write_bytes(b"damaged")  # the best
    assert {column.title: column.test for column in block_of(four).columns} == {"knn": "intervals", "linear": "paired"}


def test_damaged_predictions_are_named_on_standard_error(four: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (four / "mae-0" / "predictions" / "knn.parquet").write_bytes(b"damaged")
    leaderboard([four], "csv")
    told = capsys.readouterr().err
    assert (
        told.startswith("warning: tested by its interval alone: mae under knn: ") and "knn.parquet is damaged" in told
    )


def test_predictions_of_other_images_are_left_out(four: Path) -> None:
    for seed in range(3):
        made.full_run(four, "mae", seed, 0.0, ("knn",), 300, folder=f"mae-{seed}")
        record = four / f"mae-{seed}" / "results" / "knn.json"
        record.write_text(record.read_text().replace('"count": 300', '"count": 400'))  # or it were another column
    table, (compared,) = marked(build(load_runs([four])))
    assert compared and "mae" not in {m.name for p in compared.protocols if p.title == "knn" for m in p.methods}
    assert any("is not of the same test images as" in note for note in table.notes)
    assert {column.test for column in table.blocks[0].columns} == {"paired"}


def test_intervals_by_hand(runs: Runs) -> None:
    """0.70 and 0.66 of 2000: z = 0.04 / sqrt(0.0103^2 + 0.0105^2) = 2.7, p = 0.007; 0.69: z = 0.7, p = 0.5."""
    runs.add_seeds("a", {"knn": 0.70})
    runs.add_seeds("b", {"knn": 0.69})
    runs.add_seeds("c", {"knn": 0.66})
    assert unbeaten(block_of(runs.root)) == {"knn": {"a", "b"}}


def test_single_seeds_have_no_marks_and_leave_those_of_the_others_alone(runs: Runs) -> None:
    for method, value in (("a", 0.70), ("b", 0.69), ("c", 0.60)):
        runs.add_seeds(method, {"knn": value})
    before = unbeaten(block_of(runs.root))
    runs.add("single", 0, {"knn": 0.9})
    block = block_of(runs.root)
    assert unbeaten(block) == before == {"knn": {"a", "b"}}
    (single,) = [cell for row in block.rows if row.name == "single" and (cell := row.cells[0])]
    assert single.one_seed and not single.best
    text = " ".join(leaderboard([runs.root]).split())
    assert "One seed (single): intervals are over test images only. Differences mean nothing about methods yet" in text


def test_holm_asks_more_of_many(runs: Runs) -> None:
    """p = 0.038 of one pair is significant, of eleven it is not."""
    runs.add_seeds("best", {"knn": 0.70})
    runs.add_seeds("m0", {"knn": 0.6695})
    assert unbeaten(block_of(runs.root)) == {"knn": {"best"}}
    for i in range(1, 11):
        runs.add_seeds(f"m{i}", {"knn": 0.6695})
    assert len(unbeaten(block_of(runs.root))["knn"]) == 12


def test_oracles_and_baselines_alone_have_no_marks(runs: Runs) -> None:
    runs.baselines(knn=0.5)
    table: Table = marked(build(load_runs([runs.root])))[0]
    assert not any(cell and cell.unbeaten for block in table.blocks for row in block.rows for cell in row.cells)
    assert all(column.test == "" for block in table.blocks for column in block.columns)


def test_too_much_to_read_is_left_to_compare(four: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks, "MOST_FILES", 9)
    assert {column.test for column in block_of(four).columns} == {"intervals"}


def test_a_damaged_result_is_left_out_of_a_comparison_and_named(four: Path) -> None:
    (four / "mae-0" / "results" / "knn.json").write_text("{")
    for seed in (1, 2):
        (four / f"mae-{seed}" / "results" / "knn.json").unlink()
    report = build_report([four])
    compared = {protocol.title: {m.name for m in protocol.methods} for protocol in report.blocks[0].protocols}
    assert "mae" not in compared["knn"] and "mae" in compared["linear"]
    assert any(note.startswith("left out, of mae-0: results/knn.json is damaged") for note in report.notes)


def test_predictions_that_are_gone_are_named_where_nothing_is_left_to_compare(
    four: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in four.iterdir():
        if not folder.name.startswith("byol"):
            (folder / "predictions" / "knn.parquet").unlink(missing_ok=True)
    leaderboard([four], "csv")
    assert "tested by its interval alone: mae under knn: no predictions in" in capsys.readouterr().err
