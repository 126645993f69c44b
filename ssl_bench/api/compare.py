"""Which differences between methods are significant, as a data frame."""

import dataclasses

import pandas as pd

from ssl_bench.api.results import PathOrPaths, as_paths
from ssl_bench.leaderboard.significance import build_report


def compare(
    runs: PathOrPaths = "runs", *, protocol: str = "", by: str | None = None, branches: str = "default"
) -> pd.DataFrame:
    """All pairs of methods under each protocol, image by image: the numbers of `ssl-bench compare`.

    Args:
        runs: Run folders, or folders of them.
        protocol: Only this one, such as `knn`, or `knn@cifar100` on other images; all of them by default.
        by: Budget that methods must share to be compared: views, epochs or nothing.
        branches: Networks of a run that are compared: the default one, or all.

    Returns:
        One row per pair: `a` and `b`, the `difference` of their accuracies with its 95 % interval (`low`, `high`), `p`,
        `adjusted` for all pairs of the protocol (Holm), the `detectable` difference, and the `verdict`.

    Raises:
        UserError: Fewer than two methods to compare, predictions missing, or not of the same test images.
    """
    report = build_report(as_paths(runs), protocol, by, branches)
    rows = []
    for block in report.blocks:
        for measured in block.protocols:
            for pair in measured.pairs:
                found = dataclasses.asdict(pair)
                found["low"], found["high"] = found.pop("interval")
                rows.append({"block": block.title, "protocol": measured.title, "variant": measured.variant, **found})
    return pd.DataFrame(rows)
