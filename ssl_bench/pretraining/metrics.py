"""Where numbers go while a run lasts: metrics.csv always, W&B when asked."""

import csv
import io
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, final

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ssl_bench.console import say
from ssl_bench.errors import UserError
from ssl_bench.records.files import read_regular, write_text
from ssl_bench.tracking.wandb_run import WandbRun

MOST_BYTES = 1 << 30  # of metrics.csv: millions of rows


@final
class MetricsFile(Logger):
    """metrics.csv: a row per logged step, a column per metric; a resumed run goes on where its checkpoint was.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows, damaged = _read(path)
        if damaged:
            say(f"warning: {path} is damaged: {damaged} of its lines cannot be read and are left out")
        self._written = 0.0

    name = "metrics"
    version = 0

    def resume(self, step: int) -> None:
        """Of an earlier process's rows keep those up to the optimiser step that training goes on from."""
        self.rows = {at: row for at, row in self.rows.items() if at <= step}

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = self.rows.setdefault(int(step or 0), {"step": int(step or 0)})
        row.update(metrics)

    @rank_zero_only
    def save(self) -> None:
        """Write the whole file, at most every few seconds: Lightning calls this after each row."""
        if time.monotonic() - self._written > 5:
            self.write()

    @rank_zero_only
    def write(self) -> None:
        """Write the whole file."""
        self._written = time.monotonic()
        columns = dict.fromkeys(key for row in self.rows.values() for key in row)
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows[step] for step in sorted(self.rows))
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with suppress(OSError) if status == "failed" else nullcontext():  # which must not hide why it failed
            self.write()


def _read(path: Path) -> tuple[dict[int, dict[str, Any]], int]:
    """Rows of a file by their steps, and how many lines are none."""
    try:
        text = read_regular(path, MOST_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}: move it away, and the same command goes on") from None
    rows: dict[int, dict[str, Any]] = {}
    damaged = 0
    try:
        for row in csv.DictReader(io.StringIO(text, newline="")):
            if (row.get("step") or "").isdecimal() and None not in row and all(map(_is_number, row.values())):
                rows[int(row["step"])] = {name: value for name, value in row.items() if value != ""}
            else:
                damaged += 1
    except csv.Error:
        damaged += 1
    return rows, damaged if rows or damaged or not text else 1


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and (text == "" or isinstance(float(text), float))
    except ValueError:
        return False


@final
class WandbMetrics(Logger):
    """The same rows to W&B, under the same steps.

    Args:
        run: Where they go; nowhere, if it is off.
    """

    def __init__(self, run: WandbRun) -> None:
        super().__init__()
        self.run = run

    name = "wandb"
    version = 0

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run has its configuration from the start."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.run.log(metrics, int(step or 0))
