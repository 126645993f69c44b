"""The notebooks under examples/ run from top to bottom, and show what they gave when they ran last."""

import json
import logging
import warnings
from pathlib import Path

import pytest
from paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def cells(notebook: Path) -> list[dict[str, object]]:
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["python_api.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_run_to_its_end(notebook: Path) -> None:
    """Every cell in its order, without an error, and without a path of the machine that it ran on."""
    code = cells(notebook)
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert '"output_type": "error"' not in outputs and len(outputs) > 2000
    assert "/home/" not in outputs and "/tmp/" not in outputs and "site-packages" not in outputs


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_of_a_notebook_runs(notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "notebook"}
    level = logging.getLogger("pytorch_lightning").level
    with warnings.catch_warnings():
        for number, cell in enumerate(cells(notebook), 1):
            source = cell["source"]
            assert isinstance(source, list)
            exec(compile("".join(source), f"{notebook.name}, cell {number}", "exec"), names)
    logging.getLogger("pytorch_lightning").setLevel(level)
    assert (tmp_path / "page" / "index.html").is_file()
