"""Claims: one holder at a time, however they come, go, or are killed."""

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from processes import started, wait_until
from tiny import TINY

from ssl_bench.cli.main import main
from ssl_bench.errors import Taken
from ssl_bench.records import claim as claims
from ssl_bench.records.claim import NAME, Holder, claimed, living_holder, read_holder, refuse_if_taken, take

HOLDS = """
import os, sys, time
from pathlib import Path
from ssl_bench.records import claim
claim.BEAT_SECONDS = 0.05
held = claim.take(Path(sys.argv[1]))
print("taken" if held else "refused", flush=True)
time.sleep(60)
"""
HOLDING = (sys.executable, "-c", HOLDS)


def aged(path: Path, seconds: float) -> None:
    past = time.time() - seconds
    os.utime(path, (past, past))


def elsewhere(path: Path, **changes: str) -> Holder:
    """The claim becomes one of a process on another machine."""
    holder = read_holder(path)
    assert holder is not None
    other = replace(holder, **{"host": "n7", "machine": "n7 another boot", "process": 4711, **changes})  # type: ignore[arg-type]
    path.write_text(json.dumps(asdict(other)))
    return other


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_one_has_it_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "run" / NAME
    held = take(path)
    assert held is not None and take(path) is None and take(tmp_path / "other" / NAME) is not None
    assert living_holder(path) == held.holder and held.holder.process == os.getpid()
    held.release()
    assert living_holder(path) is None and left(tmp_path / "run") == []
    again = take(path)
    assert again is not None and again.holder.token != held.holder.token
    held.release()  # of what is another's by now
    assert living_holder(path) == again.holder
    again.release()


def test_a_claim_of_another_machine_is_stale_after_its_time(tmp_path: Path) -> None:
    path = tmp_path / NAME
    first = take(path)
    assert first is not None
    first.abandon()
    elsewhere(path)
    for seconds, stale in ((claims.STALE_SECONDS - 20, False), (claims.STALE_SECONDS + 20, True)):
        aged(path, seconds)
        assert (living_holder(path) is None) is stale
    second = take(path)
    assert second is not None and living_holder(path) == second.holder and left(tmp_path) == [NAME]
    first.release()  # too late
    assert living_holder(path) == second.holder
    second.release()


@pytest.mark.integration
def test_a_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with started([str(path)], HOLDING) as p:
        assert p.stdout is not None and p.stdout.readline() == "taken\n"
        assert take(path) is None
        renewed = path.stat().st_mtime_ns
        wait_until(lambda: path.stat().st_mtime_ns > renewed)  # its heart beats
        p.kill()
    held = take(path)
    assert held is not None
    held.release()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_number_that_was_given_again_is_not_the_process(tmp_path: Path) -> None:
    path = tmp_path / NAME
    held = take(path)
    assert held is not None
    held.abandon()
    path.write_text(json.dumps(asdict(replace(held.holder, born="1"))))
    assert living_holder(path) is None


def test_a_container_with_the_same_name_does_not_know_who_lives(tmp_path: Path) -> None:
    path = tmp_path / NAME
    held = take(path)
    assert held is not None
    held.abandon()
    elsewhere(path, host=os.uname().nodename, machine="another process namespace")
    assert living_holder(path) is not None


def test_a_jobs_claim_is_its_schedulers_matter(tmp_path: Path) -> None:
    path = tmp_path / NAME
    held = take(path)
    assert held is not None
    held.hand_to("SLURM job 12_3")
    aged(path, 10 * claims.STALE_SECONDS)
    holder = living_holder(path)
    assert holder is not None and str(holder).startswith("SLURM job 12_3, since ") and take(path) is None
    assert left(tmp_path) == [NAME]


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"host": "a"}'])
def test_a_claim_that_was_not_written_whole_is_respected_for_its_time(text: str, tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text(text)
    assert take(path) is None
    aged(path, claims.STALE_SECONDS + 20)
    held = take(path)
    assert held is not None and left(tmp_path) == [NAME]
    held.release()


def test_a_gate_whose_opener_was_killed_does_not_close_a_claim_for_ever(tmp_path: Path) -> None:
    path = tmp_path / NAME
    held = take(path)
    assert held is not None
    held.abandon()
    holder = elsewhere(path)
    aged(path, claims.STALE_SECONDS + 20)
    gate = tmp_path / f".{NAME}.{holder.token}-0.gate"
    gate.touch()
    assert take(path) is None  # somebody is taking it over
    aged(gate, claims.STALE_SECONDS + 20)
    second = take(path)
    assert second is not None and left(tmp_path) == [NAME]
    second.release()


@pytest.mark.integration
def test_who_lost_a_claim_ends_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / NAME
    with started([str(path)], HOLDING) as p:
        assert p.stdout is not None and p.stderr is not None and p.stdout.readline() == "taken\n"
        os.kill(p.pid, signal.SIGSTOP)  # a lid that is closed
        elsewhere(path)
        aged(path, claims.STALE_SECONDS + 20)
        held = take(path)
        os.kill(p.pid, signal.SIGCONT)
        assert p.wait(60) == Taken.exit_code and "no longer this process's" in p.stderr.read()
    assert held is not None and living_holder(path) == held.holder
    held.release()


def _contend(path: Path, out: Path, number: int, rounds: int) -> None:
    """Take, hold alone, release; sometimes leave it as a process does that was killed."""
    chance = random.Random(number)
    done = 0
    while done < rounds:
        held = take(path)
        if held is None:
            continue
        inside = os.open(out / "inside", os.O_CREAT | os.O_EXCL)  # fails if another is inside
        (out / f"{number}-{done}").touch()
        os.close(inside)
        (out / "inside").unlink()
        done += 1
        if chance.random() < 0.3:
            elsewhere(path)
            held.abandon()
            aged(path, claims.STALE_SECONDS + 20)
        else:
            held.release()


@pytest.mark.integration
def test_processes_that_contend_are_never_inside_together(tmp_path: Path) -> None:
    path, out, processes, rounds = tmp_path / "run" / NAME, tmp_path / "out", 8, 25
    out.mkdir()
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    all_of_them = [context.Process(target=_contend, args=(path, out, n, rounds)) for n in range(processes)]
    for process in all_of_them:
        process.start()
    for process in all_of_them:
        process.join(120)
    assert [process.exitcode for process in all_of_them] == [0] * processes
    assert len(list(out.iterdir())) == processes * rounds


def test_a_refusal_names_host_and_process(tmp_path: Path) -> None:
    with claimed(tmp_path):
        elsewhere(tmp_path / NAME)
        for refused in (lambda: refuse_if_taken(tmp_path), lambda: claimed(tmp_path).__enter__()):
            with pytest.raises(Taken, match=r"is taken by process 4711 on n7, since 20.* goes on when"):
                refused()


@pytest.mark.integration
def test_fit_and_evaluate_leave_a_taken_run_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["fit", "--method=mae", f"--runs={tmp_path}", *TINY]
    assert main(argv) == 0
    finished = Path(capfd.readouterr().out.strip())
    assert NAME not in left(finished)
    with claimed(finished):
        assert main(argv) == 0  # there is nothing to do
        assert "already done" in capfd.readouterr().err
        evaluate = ["evaluate", str(finished), "pixels", "--protocols=knn", f"--runs={tmp_path}", "--device=cpu"]
        assert main(evaluate) == 75
        said = capfd.readouterr()
        assert f"error: {finished} is taken by process {os.getpid()} on " in said.err
        assert "pixels" in said.out and not (finished / "results").exists()  # the others are evaluated
    assert main(evaluate) == 0 and (finished / "results").exists()
    capfd.readouterr()


@pytest.mark.slow
def test_two_commands_train_a_run_once(tmp_path: Path) -> None:
    flags = ["--method=mae", f"--runs={tmp_path}", *TINY, "--trainer.max_epochs=400"]
    first = started(flags)
    wait_until(lambda: list(tmp_path.glob(f"*/{NAME}")), first)
    second = started(flags)
    out, said = second.communicate()
    assert second.returncode == 75 and f"is taken by process {first.pid} on" in said and out == ""
    first.kill()
    first.communicate()
    third = started([*flags, "--trainer.max_epochs=3"])
    assert third.wait() == 0
    third.communicate()
