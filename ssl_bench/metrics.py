"""Where numbers go while a run lasts: metrics.csv always, W&B when asked."""

import csv
import io
import time
from pathlib import Path
from typing import Any, final

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only

from ssl_bench.configuration import say
from ssl_bench.files import write_text


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


def wandb_logger(mode: str, project: str, run_id: str, folder: Path, config: dict[str, Any]) -> list[Logger]:
    """Lightning's W&B logger, or nothing and a warning: a failure of W&B never ends training.

    Args:
        mode: online, offline, or auto: online if a key is configured.
        project: Project, or entity/project.
        run_id: The run's identity, so that a resumed run continues its W&B run.
        folder: Where W&B may write.
        config: Shown with the run.
    """
    try:
        import wandb
        from pytorch_lightning.loggers import WandbLogger

        if mode == "auto":
            mode = "online" if wandb.Api is not None and wandb.setup().settings.api_key else "offline"
        entity, _, name = project.rpartition("/")
        where = {"project": name, "entity": entity or None, "save_dir": str(folder)}
        logger = WandbLogger(id=run_id, name=folder.name, mode=mode, resume="allow", **where)
        logger.experiment.config.update(config, allow_val_change=True)
        return [logger]
    except Exception as error:
        say(f"warning: no W&B for this run ({type(error).__name__}: {str(error)[:200]})")
        return []
