"""From where and to where a network is exported. Torch-free."""

from pathlib import Path

from ssl_bench.errors import UserError
from ssl_bench.records.run import read_run

FILES = {"config.json", "model.safetensors", "model.pt", "model.onnx", "model.onnx.data", "README.md"}
MADE = "Made by `ssl-bench export`"  # in the README.md of each export


def checked_paths(run: Path, out: Path) -> bool:
    """Whether the folder to make takes the place of an earlier export.

    Args:
        run: A run's folder.
        out: The folder to make.

    Raises:
        UserError: There is no such run, it has no backbone, or the folder holds something else.
    """
    if not (run / "run.json").is_file():
        raise UserError(f"{run} is no run folder: it has no run.json (`ssl-bench fit` prints the folder it made)")
    if read_run(run).kind == "tokenizer":
        raise UserError(f"{run} is a tokenizer's run, which has no backbone: export a run that was trained with it")
    replaced = out.is_dir() and any(out.iterdir())
    if out.exists() and (not out.is_dir() or (replaced and not _is_export(out))):
        raise UserError(f"-o {out} holds something else: name a new folder")
    return replaced


def _is_export(folder: Path) -> bool:
    """Whether a folder holds an earlier export and nothing else."""
    card = folder / "README.md"
    names = {path.name for path in folder.iterdir()}
    return names <= FILES and card.is_file() and MADE in card.read_text(encoding="utf-8", errors="replace")
