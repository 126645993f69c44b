"""The notebooks under examples/ run from top to bottom, and show what they gave when they ran last."""

import json
import logging
import sys
import warnings
from pathlib import Path

import pytest
from paths import ROOT

LEAVES = {
    "python_api": "page/index.html",
    "photos": "page/index.html",
    "continue_pretraining": "checkpoint/config.json",
    "write_a_method": "my_method.py",
}
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, object]]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) == 6
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert all(f"](../examples/{path.name})" in index for path in NOTEBOOKS)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_to_its_end(notebook: Path) -> None:
    """Every cell in its order, without an error, and without a path of the machine that it ran on."""
    code = cells(notebook)
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert '"output_type": "error"' not in outputs and 1000 < len(outputs) < 60_000
    assert "/home/" not in outputs and "/tmp/" not in outputs and "site-packages" not in outputs


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_of_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["notebook"])
    names: dict[str, object] = {"__name__": "notebook"}
    level = logging.getLogger("pytorch_lightning").level
    with warnings.catch_warnings():
        for number, cell in enumerate(cells(notebook), 1):
            source = cell["source"]
            assert isinstance(source, list)
            exec(compile("".join(source), f"{notebook.name}, cell {number}", "exec"), names)
    logging.getLogger("pytorch_lightning").setLevel(level)
    for name, file in LEAVES.items():
        assert name != notebook.stem or (tmp_path / file).is_file()
