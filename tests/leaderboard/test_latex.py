"""The table for a paper: bold and grey where they belong, and no name that is a command."""

import re
from pathlib import Path

import pytest
from recorded_runs import Runs

from ssl_bench.leaderboard.latex import escaped
from ssl_bench.leaderboard.render import leaderboard

from .test_render import HOSTILE


def test_the_table_as_it_looks(runs: Runs, tmp_path: Path) -> None:
    runs.add_seeds("mae", {"linear": 0.7})
    runs.add_seeds("sim_clr", {"linear": 0.6})
    runs.baselines(linear=0.4)
    numbers = tmp_path / "numbers.csv"
    numbers.write_text("method,data,backbone,protocol,value,source\nMoCo,cifar10,,linear,90,B\n")
    lines = leaderboard([runs.root], "latex", published=numbers).splitlines()
    at = lines.index(r"\midrule")
    assert lines[at + 1 : at + 6] == [
        r"mae & n=2 & \textbf{70.0} $\pm$2.0* & 20 x 2 & 12 min \\",
        r"sim\_clr & n=2 & 60.0 $\pm$2.2 & 20 x 2 & 12 min \\",
        r"\textcolor{gray}{random} & \textcolor{gray}{n=2} & \textcolor{gray}{40.0 $\pm$2.2} & \textcolor{gray}{-} & "
        r"\textcolor{gray}{-} \\",
        r"\textcolor{gray}{pixels} & \textcolor{gray}{n=1} & \textcolor{gray}{38.0 $\pm$2.1} & \textcolor{gray}{-} & "
        r"\textcolor{gray}{-} \\",
        r"\textcolor{gray}{MoCo (published)} & \textcolor{gray}{-} & \textcolor{gray}{90.0} & \textcolor{gray}{-} & "
        r"\textcolor{gray}{-} \\",
    ]
    assert "Published, not measured here and not ranked: MoCo: B." in lines[-1]
    at = lines.index(r"\end{tabular}")
    source = r"\par\smallskip{\footnotesize Published, not measured here and not ranked: MoCo: B.\par}"
    assert lines[at + 1 : at + 3] == [source, r"\end{table}"]


@pytest.mark.parametrize("name", [*HOSTILE, r"\input{/etc/passwd} 100% #1 $x$ ^~ {"])
def test_names_are_no_commands(name: str) -> None:
    plain = re.sub(r"\\(?:text\w+\{\}|[#$%&_{}])|\$\\pm\$|\$\^\{\\dagger\}\$", "", escaped(name))
    assert not set("\\#$%&_{}~^") & set(plain)
