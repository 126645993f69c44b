"""One process of a benchmark: a `fit`, an evaluation or figures, what it waits for, and what of it is left."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssl_bench.evaluation.evaluate_config import Evaluate
from ssl_bench.evaluation.recorded_results import remaining
from ssl_bench.records.run import is_finished


@dataclass(frozen=True, eq=False)
class Job:
    """One process; equal to itself alone.

    Args:
        title: For people.
        argv: Its arguments after `ssl-bench`.
        log: Name of the file of what it says, less `.log`.
        folder: The run folder it fills; None for an evaluation.
        after: The run folder that it needs finished, if any.
        network: Options and seed of the network that it starts with, as JSON.
        config: Of its run; None for an evaluation.
        asked: What an evaluation was asked for; None for any other job.
        behind: The job that has to end first, whether it fails or not.
    """

    title: str
    argv: tuple[str, ...]
    log: str
    folder: Path | None = None
    after: Path | None = None
    network: str = ""
    config: Mapping[str, Any] | None = None
    asked: Evaluate | None = None
    behind: "Job | None" = None

    @property
    def done(self) -> bool:
        """Whether its run is finished; evaluations know themselves what they have done."""
        return self.folder is not None and is_finished(self.folder)

    def left(self, logs: Path) -> list[str]:
        """Protocols of an evaluation that have no result and were not left out, as the log of an earlier one says."""
        if self.asked is None or not (self.after is None or is_finished(self.after)):
            return list(self.asked.protocols) if self.asked else []
        log = logs / f"{self.log}.log"
        said = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        out = re.findall(r"^(\S+): left out: ", said, re.MULTILINE)
        return [name for name in remaining(self.asked) if name not in out]
