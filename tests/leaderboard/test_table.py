"""What stands beside what: only numbers that may be compared share a block, a row or a column."""

import dataclasses
import math

import pytest
from recorded_runs import DATA, VIT, Runs, score

from ssl_bench.leaderboard.build import build
from ssl_bench.leaderboard.table import Block, Cell, Table
from ssl_bench.leaderboard.text import legend
from ssl_bench.records.predictions import Predictions
from ssl_bench.records.result import Selected, SplitRecord, write_result
from ssl_bench.records.run import BackboneRecord, DataRecord
from ssl_bench.records.store import load_runs
from ssl_bench.statistics.intervals import mean_over_seeds, wilson


def table(runs: Runs, **options: str) -> Table:
    return build(load_runs([runs.root]), **options)  # type: ignore[arg-type]


def only_block(runs: Runs) -> Block:
    (block,) = table(runs).blocks
    return block


def cells(block: Block, column: str) -> dict[str, Cell | None]:
    index = [column.title for column in block.columns].index(column)
    return {row.name: row.cells[index] for row in block.rows}


def test_a_seed_alone_keeps_the_interval_of_its_draws(runs: Runs) -> None:
    """Draws that differ much make it wider than its test images do."""
    runs.add("mae", 0, {"fewshot": 0.5}, result={"interval": (0.13, 0.86)})
    (cell,) = only_block(runs).rows[0].cells
    assert cell and (cell.mean, cell.low, cell.high) == (0.5, 0.13, 0.86)


def test_a_cell_is_the_mean_over_seeds_with_its_interval(runs: Runs) -> None:
    values = [0.70, 0.72, 0.75]
    for seed, value in enumerate(values):
        runs.add("mae", seed, {"linear": value})
    runs.add("simclr", 0, {"linear": 0.6, "knn": 0.5})
    runs.add_seeds("byol", {"linear": 0.5})
    block = only_block(runs)
    cell = cells(block, "linear")["mae"]
    assert cell is not None
    assert (cell.mean, cell.low, cell.high) == mean_over_seeds(values, 2000)
    assert (cell.seeds, cell.values, cell.n_test, cell.best) == ((0, 1, 2), tuple(values), 2000, True)
    single = cells(block, "linear")["simclr"]
    assert single is not None
    assert (single.low, single.high) == wilson(1200, 2000)
    assert not single.best and single.one_seed and single.covers == "test images"
    assert not cell.one_seed and cell.covers == "seeds and test images"
    assert cells(block, "knn")["mae"] is None
    assert [(column.title, column.variant) for column in block.columns] == [("knn", "k20"), ("linear", "cls+avg")]


def test_rows_are_in_order_of_the_linear_probe_then_baselines(runs: Runs) -> None:
    runs.baselines(knn=0.9, linear=0.9)
    runs.add("mae", 0, {"knn": 0.3, "linear": 0.7})
    runs.add("simclr", 0, {"knn": 0.6, "linear": 0.6})
    runs.add("dino", 0, {"knn": 0.6})
    assert [row.name for row in only_block(runs).rows] == ["mae", "simclr", "dino", "random", "pixels"]


@pytest.mark.parametrize(
    "other",
    [
        {"backbone": dataclasses.replace(VIT, args={"img_size": 32, "depth": 6})},
        {"backbone": dataclasses.replace(VIT, name="resnet18")},
        {"data": DATA["cifar100"]},
        {"data": DataRecord("cifar10", {"sha256": "ee55ff66" * 8})},
    ],
)
def test_another_backbone_or_data_is_another_block(runs: Runs, other: dict[str, object]) -> None:
    runs.add_seeds("mae", {"linear": 0.7})
    runs.add_seeds("simclr", {"linear": 0.8}, **other)
    blocks = table(runs).blocks
    assert [[row.name for row in block.rows] for block in blocks].count(["mae"]) == 1
    assert len(blocks) == 2
    assert not any(cell.best for block in blocks for row in block.rows for cell in row.cells if cell)


@pytest.mark.parametrize("other", [{"epochs": 40.0}, {"views_per_image": 3.84}, {"epochs": None}])
def test_budgets_are_a_column_unless_they_are_asked_to_part_the_table(runs: Runs, other: dict[str, object]) -> None:
    runs.add_seeds("mae", {"linear": 0.7})
    runs.add_seeds("simclr", {"linear": 0.8}, **other)
    (block,) = table(runs).blocks
    assert (block.matched, block.budget, block.budget_text) == (False, None, "budgets not matched")
    assert [row.name for row in block.rows if (cell := row.cells[0]) and cell.best] == ["simclr"]
    assert "Budgets are not matched: tests and ranks are over all rows" in legend(table(runs))
    assert [block.matched for block in table(runs, by="views").blocks].count(True) >= 1
    assert len(table(runs, by="views").blocks) == 2


def test_a_method_of_two_budgets_is_two_rows_with_names_of_their_own(runs: Runs) -> None:
    """The seeds of one are not those of the other, though no option tells them apart."""
    for epochs in (20.0, 100.0):
        runs.add_seeds("mae", {"linear": epochs / 200}, epochs=epochs)
    rows = {row.name: (row.seeds, cell.values) for row in only_block(runs).rows if (cell := row.cells[0])}
    assert rows == {
        "mae (epochs x views=40.0)": ((0, 1), (0.1, 0.1)),
        "mae (epochs x views=200.0)": ((0, 1), (0.5, 0.5)),
    }


def test_equal_budgets_are_in_the_title(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.7})
    runs.add("simclr", 0, {"linear": 0.8}, epochs=40.0, views_per_image=1.0)
    block = only_block(runs)
    assert (block.matched, block.budget, block.budget_text) == (True, 40.0, "40 epochs x views")


def test_budget_by_views_or_by_epochs(runs: Runs) -> None:
    runs.add("simclr", 0, {"linear": 0.8}, epochs=50.0, views_per_image=2.0)
    runs.add("mae", 0, {"linear": 0.7}, epochs=100.0, views_per_image=1.0)
    runs.add("byol", 0, {"linear": 0.7}, epochs=100.0, views_per_image=2.0)
    by_views = [({row.name for row in block.rows}, block.budget_text) for block in table(runs, by="views").blocks]
    assert by_views == [({"simclr", "mae"}, "100 epochs x views"), ({"byol"}, "200 epochs x views")]
    by_epochs = [({row.name for row in block.rows}, block.budget_text) for block in table(runs, by="epochs").blocks]
    assert by_epochs == [({"simclr"}, "50 epochs"), ({"mae", "byol"}, "100 epochs")]
    by_nothing = [({row.name for row in block.rows}, block.budget_text) for block in table(runs).blocks]
    assert by_nothing == [({"simclr", "mae", "byol"}, "budgets not matched")]


def test_an_override_that_is_not_set_is_no_override(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.7})
    runs.add("simclr", 0, {"linear": 0.8}, backbone=dataclasses.replace(VIT, args={"img_size": 32, "depth": None}))
    assert len(table(runs).blocks) == 1


def test_baselines_stand_in_every_block_of_their_images(runs: Runs) -> None:
    runs.baselines(linear=0.4)
    resnet = BackboneRecord("resnet18", {}, 11_000_000, 1.1)
    runs.add("mae", 0, {"linear": 0.7})
    runs.add("mae", 0, {"linear": 0.8}, epochs=100.0)
    runs.add("simclr", 0, {"linear": 0.6}, backbone=resnet)
    runs.add("simclr", 0, {"linear": 0.5}, data=DATA["cifar100"], result={"data": DATA["cifar100"]})
    blocks = table(runs, by="views").blocks
    found = {(block.data, block.backbone, block.budget): [row.name for row in block.rows] for block in blocks}
    vit = "vit_nano_patch4_32 (img_size=32)"
    assert found == {
        ("cifar10", "resnet18", 40.0): ["simclr", "pixels"],  # no random resnet18 was evaluated
        ("cifar10", vit, 40.0): ["mae", "random", "pixels"],
        ("cifar10", vit, 200.0): ["mae", "random", "pixels"],
        ("cifar100", vit, 40.0): ["simclr"],
    }


def test_baselines_alone_are_shown_and_never_best(runs: Runs) -> None:
    runs.baselines(linear=0.4)
    block = only_block(runs)
    assert [row.name for row in block.rows] == ["random", "pixels"]
    assert (block.budget, block.budget_text) == (None, "no pretraining")
    assert not any(cell.best for row in block.rows for cell in row.cells if cell)


def test_raw_pixels_alone_are_a_block(runs: Runs) -> None:
    runs.add("pixels", 0, {"knn": 0.4}, kind="baseline", backbone=None)
    block = only_block(runs)
    assert (block.backbone, [column.title for column in block.columns]) == ("", ["knn"])


def test_pixels_share_a_column_whatever_their_features_and_geometry(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.7})
    runs.baselines(linear=0.5)  # the factory gives pixels another variant and another size
    block = only_block(runs)
    assert [column.variant for column in block.columns] == ["cls+avg"]
    assert cells(block, "linear")["pixels"] is not None


def test_a_baseline_that_wins_is_best(runs: Runs) -> None:
    runs.add_seeds("mae", {"knn": 0.3})
    runs.baselines(knn=0.4)
    assert {name for name, cell in cells(only_block(runs), "knn").items() if cell and cell.best} == {"random"}


def test_transfer_has_a_column_of_its_own_with_its_baselines(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.7, "linear@cifar100": 0.4})
    runs.add("random", 0, {"linear": 0.3}, kind="baseline")
    runs.add("random", 1, {"linear": 0.2}, kind="baseline", data=DATA["cifar100"], result={"data": DATA["cifar100"]})
    block = next(block for block in table(runs).blocks if block.data == "cifar10")
    assert [column.title for column in block.columns] == ["linear", "linear@cifar100"]
    values = {name: cell.values for name, cell in cells(block, "linear@cifar100").items() if cell}
    assert values == {"mae": (0.4,), "random": (0.2,)}


@pytest.mark.parametrize(
    ("change", "titles"),
    [
        ({"options": {"k": 200}}, {"knn (k=20)", "knn (k=200)"}),
        ({"version": 2}, {"knn (version=1)", "knn (version=2)"}),
        ({"primary": "k200"}, {"knn (variant=k20)", "knn (variant=k200)"}),
        ({"geometry": {"size": 64}}, {"knn (size=32)", "knn (size=64)"}),
        (
            {"splits": {"train": SplitRecord("train", 40_000), "test": SplitRecord("test", 2000)}},
            {"knn (train=40000)", "knn (train=45000)"},
        ),
    ],
)
def test_another_protocol_is_another_column(runs: Runs, change: dict[str, object], titles: set[str]) -> None:
    runs.add("mae", 0, {"knn": 0.3})
    runs.add("simclr", 0, {"knn": 0.4}, result=change)
    block = only_block(runs)
    assert {column.title for column in block.columns} == titles
    assert not any(cell.best for row in block.rows for cell in row.cells if cell)


def test_an_oracle_has_a_flagged_column_last_and_is_not_ranked(runs: Runs) -> None:
    runs.add_seeds("mae", {"linear": 0.7})
    runs.add_seeds("simclr", {"linear": 0.6})
    for method in ("dino", "ibot"):
        runs.add_seeds(method, {"linear": 0.9}, result={"selected": Selected(selected_on_test=True)})
    block = only_block(runs)
    assert [(column.title, column.oracle) for column in block.columns] == [("linear", False), ("linear oracle", True)]
    assert {row.name for row in block.rows if (cell := row.cells[0]) and cell.best} == {"mae"}
    assert not any(cell.best for row in block.rows if (cell := row.cells[1]))


def test_configurations_of_a_method_are_rows_named_by_what_differs(runs: Runs) -> None:
    def options(ratio: float, root: str = "/a", **more: object) -> dict[str, object]:
        method = {"name": "mae", "mask_ratio": ratio, "decoder_depth": 2, **more}
        return {"method": method, "data": {"root": root, "batch_size": 256}, "optim": {"base_lr": 1e-3}, "seed": 0}

    runs.add("mae", 0, {"linear": 0.70}, options=options(0.75))
    runs.add("mae", 1, {"linear": 0.71}, options=options(0.75, root="/b"))  # where it ran is not what it was
    runs.add("mae", 0, {"linear": 0.65}, options=options(0.9))
    runs.add("simclr", 0, {"linear": 0.60}, options=options(0.9))
    rows = {row.name: row.seeds for row in only_block(runs).rows}
    assert rows == {"mae (mask_ratio=0.75)": (0, 1), "mae (mask_ratio=0.9)": (0,), "simclr": (0,)}


def test_options_of_one_last_name_keep_their_group(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.7}, options={"method": {"name": "mae", "depth": 1}, "optim": {"depth": 1}})
    runs.add("mae", 0, {"linear": 0.6}, options={"method": {"name": "mae", "depth": 2}, "optim": {"depth": 3}})
    assert [row.name for row in only_block(runs).rows] == [
        "mae (method.depth=1, optim.depth=1)",
        "mae (method.depth=2, optim.depth=3)",
    ]


def test_branches_are_never_averaged(runs: Runs) -> None:
    runs.add("dino", 0, {"linear": 0.7}, result={"branch": "teacher"})
    runs.add("dino", 1, {"linear": 0.6}, result={"branch": "student"})
    assert [row.name for row in only_block(runs).rows] == ["dino (branch=teacher)", "dino (branch=student)"]


def test_student_and_teacher_of_a_run_are_one_row_unless_both_are_asked_for(runs: Runs) -> None:
    folder = runs.add("dino", 0, {"linear": 0.7, "knn": 0.6}, result={"branch": "teacher"}, branch="teacher")
    for protocol, value in (("linear", 0.5), ("knn", 0.4), ("ridge", 0.4)):
        own = score(protocol, value, branch="student")
        write_result(folder, own, Predictions([], [], {own.primary: []}))
    block = only_block(runs)
    assert [(row.name, [cell and cell.values for cell in row.cells]) for row in block.rows] == [
        ("dino", [(0.6,), (0.7,)])
    ]
    both = table(runs, branches="all").blocks[0]
    assert [row.name for row in both.rows] == ["dino (branch=teacher)", "dino (branch=student)"]
    (folder / "results" / "linear.json").unlink()
    (folder / "results" / "knn.json").unlink()
    assert [cell and cell.values for cell in only_block(runs).rows[0].cells] == [
        (0.4,),
        (0.5,),
        (0.4,),
    ]  # better than none


def test_a_seed_counts_once(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.7}, created="2026-01-01T00:00:00+00:00", folder="old")
    runs.add("mae", 0, {"linear": 0.8}, created="2026-01-02T00:00:00+00:00", folder="new")
    found = table(runs)
    assert found.blocks[0].rows[0].cells[0].values == (0.8,)  # type: ignore[union-attr]
    assert found.notes == ("old counts once, as new: same configuration and seed",)


def test_unfinished_runs_are_listed_and_not_ranked(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.7})
    runs.add("mae", 1, {"linear": 0.9}, status="running", folder="b")
    runs.add("simclr", 0, status="failed", error="NaN at step 5", folder="a")
    runs.add("dino", 0, folder="c")
    found = table(runs)
    assert [(run.run, run.status, run.reason) for run in found.absent] == [
        ("a", "failed", "NaN at step 5"),
        ("b", "running", ""),
        ("c", "finished", "not evaluated"),
    ]
    assert [row.name for row in found.blocks[0].rows] == ["mae"]
    assert found.blocks[0].rows[0].seeds == (0,)


def test_a_choice_at_the_end_of_its_grid_is_carried(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.7})
    runs.add("mae", 1, {"linear": 0.7}, result={"selected": Selected(at_grid_boundary=True, selected_on="validation")})
    assert only_block(runs).rows[0].cells[0].at_grid_boundary  # type: ignore[union-attr]


def test_cost_is_the_mean_over_runs(runs: Runs) -> None:
    runs.add("mae", 0, {"linear": 0.7})
    row = only_block(runs).rows[0]
    assert (row.seconds, row.flops, row.epochs, row.views_per_image) == (725.0, 3e14, 20.0, 2.0)
    assert math.isclose(only_block(runs).gflops_per_image, 0.351)


def test_unknown_budgets_may_differ_so_nothing_is_ranked(runs: Runs) -> None:
    runs.baselines(linear=0.4)
    for method, value in (("dino", 0.6), ("mae", 0.9)):
        runs.add_seeds(method, {"linear": value}, kind="imported", epochs=None)
    (block,) = table(runs, by="views").blocks
    assert block.budget_text == "unknown budget: budgets may differ, so nothing is ranked"
    assert not block.ranked and not any(cell and cell.best for row in block.rows for cell in row.cells)
    assert [row.name for row in block.rows] == ["dino", "mae", "random", "pixels"]
    (asked,) = table(runs, by="nothing").blocks
    assert asked.ranked and [row.name for row in asked.rows if (cell := row.cells[0]) and cell.best] == ["mae"]


@pytest.mark.parametrize(
    ("trainer", "images", "name"),
    [
        ({"devices": 8}, 0, "mae (devices=8)"),
        ({"devices": "4", "num_nodes": 2}, 0, "mae (devices=8)"),
        ({"devices": "0,2"}, 0, "mae (devices=2)"),
        ({"devices": "auto"}, 8 * 256 * 100, "mae (devices=8)"),
        ({"devices": "auto"}, 250 * 100, "mae"),  # one, as in the other run
        ({"devices": -1, "accumulate_grad_batches": 4}, 256 * 400, "mae (accumulate_grad_batches=4)"),
    ],
)
def test_runs_of_other_global_batches_are_other_rows(
    runs: Runs, trainer: dict[str, object], images: int, name: str
) -> None:
    for folder, own in (("a", {"devices": 1, "num_nodes": 1}), ("b", trainer)):
        options = {"data": {"batch_size": 256}, "trainer": {"accumulate_grad_batches": 1, **own}}
        runs.add("mae", 0, {"linear": 0.7}, folder=folder, options=options, steps=100, images_seen=images)
    found = table(runs)
    rows = {row.runs: row.name for row in found.blocks[0].rows}
    assert rows[("b",)] == name
    assert (("a",) in rows) == (name != "mae") == (not found.notes)


def test_a_run_of_diagnostics_alone_is_listed(runs: Runs) -> None:
    folder = runs.add("mae", 0, folder="a")
    blank = dataclasses.replace(score("diagnostics", 0.5), primary="", value=None, interval=None, variants={})
    write_result(folder, blank, Predictions([], [], {}))
    found = table(runs)
    assert not found.blocks
    assert [(run.run, run.reason) for run in found.absent] == [("a", "no accuracy: evaluated by diagnostics alone")]
