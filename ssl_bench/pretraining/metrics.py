"""Where numbers go while a run lasts: metrics.csv always, W&B when asked."""

import csv
import io
import time
from pathlib import Path
from typing import Any, final

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ssl_bench.records.files import write_text
from ssl_bench.tracking.wandb_run import WandbRun


@final
class MetricsFile(Logger):
    """metrics.csv: a row per logged step, a column per metric; a resumed run goes on where its checkpoint was.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [{k: v for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
            self.rows = {int(row["step"]): row for row in rows}
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
        self.write()


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
