"""The Ray executor on a real Ray of several nodes, one of which is killed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until
from tiny import TINY

from ssl_bench.benchmark.executors.executor import State, Task
from ssl_bench.benchmark.executors.options import RayOptions
from ssl_bench.benchmark.executors.ray import RayExecutor
from ssl_bench.benchmark.grid import Grid
from ssl_bench.benchmark.plan import Job
from ssl_bench.cli.main import main
from ssl_bench.errors import UserError
from ssl_bench.records.claim import NAME, read_holder
from ssl_bench.records.run import read_run

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
LONG = [*TINY, "--trainer.max_epochs=100000", "--trainer.limit_train_batches=1", "--probe.every_n_epochs=0"]
PATIENCE = 600.0


def test_without_ray_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install "ssl-bench\[ray\]"'):
        RayExecutor(RayOptions())
    file = tmp_path / "grid.yaml"
    file.write_text("{methods: [mae], data: [digits], executor: ray}")
    assert main(["benchmark", "-c", str(file), "--runs", str(tmp_path / "runs")]) == 2
    assert "needs Ray: pip install" in capfd.readouterr().err


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head that runs no jobs."""
    pytest.importorskip("ray", reason="needs Ray")
    from ray.cluster_utils import Cluster

    os.environ.pop("RAY_ADDRESS", None)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


def raylet(node: Any) -> int:
    """Process of a node that starts its workers."""
    return int(node.all_processes["raylet"][0].process.pid)


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def task(folder: Path, name: str, *argv: str) -> Task:
    (folder / "logs").mkdir(exist_ok=True)
    return Task(argv, folder / "logs" / f"{name}.log", folder / "logs" / f"{name}.claim")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_whose_node_is_killed_goes_on_on_another(cluster: Any, tmp_path: Path) -> None:
    executor = RayExecutor(RayOptions(address=cluster.address))
    given = task(tmp_path, "fit", "fit", "--method=mae", f"--runs={tmp_path}", *LONG)
    executor.submit([given])
    assert executor.states() == {"fit": State("waiting")}  # there is no node for it yet
    nodes = {raylet(node): node for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))}
    wait_until(lambda: list(tmp_path.glob("*/checkpoints/last.ckpt")), seconds=PATIENCE)
    assert executor.states() == {"fit": State("running")}
    (claim,) = tmp_path.glob(f"*/{NAME}")
    first = read_holder(claim)
    assert first is not None
    cluster.remove_node(nodes[parent(parent(first.process))], allow_graceful=False)
    wait_until(lambda: "going on from step" in given.log.read_text(), seconds=PATIENCE)
    assert executor.states() == {"fit": State("running")}
    assert "1 jobs were stopped" in executor.stop()
    (record,) = tmp_path.glob("*/run.json")
    wait_until(lambda: read_run(record.parent).status == "interrupted", seconds=PATIENCE)
    assert read_run(record.parent).steps > 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_grid_on_ray(cluster: Any, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=2)
    jobs = [Job(str(i), ("list", "methods"), str(i)) for i in range(6)]
    jobs.append(Job("breaks", ("list", "nonsense"), "breaks"))
    executor = RayExecutor(RayOptions(address=cluster.address), slots=3)
    failed = Grid(jobs, tmp_path / "logs", executor).run()
    assert [job.title for job in failed] == ["breaks"] and "nothing called" in next(iter(failed.values()))
    assert all("mae" in (tmp_path / "logs" / f"{i}.log").read_text() for i in range(6))
    assert not list((tmp_path / "logs").glob("*.claim"))
