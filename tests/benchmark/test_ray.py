"""The Ray executor on a real Ray of several nodes, one of which is killed."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import wait_until

from ssl_bench.benchmark.executors.executor import State, Task
from ssl_bench.benchmark.executors.options import RayOptions
from ssl_bench.benchmark.executors.ray import RayExecutor
from ssl_bench.benchmark.grid import Grid
from ssl_bench.benchmark.job import Job
from ssl_bench.cli.main import main
from ssl_bench.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


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


class Waits(Task):
    """Says who it is, and waits; asked to end, it saves first, as a run does."""

    @property
    def command(self) -> list[str]:
        program = "import os, signal, sys, time; say = lambda *words: print(*words, flush=True)"
        program += "; signal.signal(15, lambda *_: (say('saved'), sys.exit(143))); say('up', os.getpid())"
        return [sys.executable, "-S", "-c", f"{program}; time.sleep(600)"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_job_whose_node_is_killed_is_begun_again_on_another(cluster: Any, tmp_path: Path) -> None:
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    executor = RayExecutor(RayOptions(address=cluster.address))
    (tmp_path / "logs").mkdir()
    given = Waits((), tmp_path / "logs" / "waits.log", tmp_path / "logs" / "waits.claim")
    executor.submit([given])
    assert executor.states() == {"waits": State("waiting")}  # there is no node for it yet
    nodes = {raylet(node): node for node in (cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1))}
    wait_until(lambda: given.log.exists() and "up" in given.log.read_text())
    assert executor.states() == {"waits": State("running")}
    first = int(given.log.read_text().split()[1])
    cluster.remove_node(nodes[parent(parent(first))], allow_graceful=False)
    wait_until(lambda: given.log.read_text().count("up") == 2)
    assert executor.states() == {"waits": State("running")}
    assert "1 jobs were stopped" in executor.stop()
    assert given.log.read_text().endswith("saved\n")


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
