"""However a command ends, it says so in one line and in its exit code."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from paths import ROOT

from ssl_bench.cli import main as command_line
from ssl_bench.errors import LostProcess, RunFailed, Terminated, UserError

NO_ROOM = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 99"


def ending(error: Callable[[], BaseException], monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(argv: list[str]) -> int:
        raise error()

    monkeypatch.setattr(command_line, "_dispatch", fail)
    monkeypatch.setattr(command_line, "CAUSE_FIRST_SECONDS", 0.0)
    monkeypatch.setattr(command_line, "FIRST_FIRST_SECONDS", 0.0)
    return command_line.main(["fit"])


def os_error(number: int, name: str | None = "runs/x") -> OSError:
    return OSError(number, os.strerror(number), name)


def test_memory_that_torch_lacks_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    def claim() -> None:
        torch.empty(2**50)

    with pytest.raises(RuntimeError) as cpu:
        claim()
    for error in (cpu.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")):
        assert ending(lambda error=error: error, monkeypatch) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert "not enough memory" in line and "--data.batch_size" in line


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        ending(lambda: RuntimeError("shapes do not fit"), monkeypatch)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (lambda: UserError("no such thing"), 2, "error: no such thing"),
        (lambda: RunFailed("it went wrong"), 1, "error: it went wrong"),
        (lambda: LostProcess("one is gone"), 1, "error: one is gone"),
        (KeyboardInterrupt, 130, "interrupted; the same command"),
        (Terminated, 143, "ended by SIGTERM; the same command"),
        (lambda: os_error(errno.EACCES), 2, "error: runs/x: Permission denied; choose another place"),
        (lambda: os_error(errno.EROFS), 2, "error: runs/x: Read-only file system; choose another place"),
        (lambda: os_error(errno.ENOSPC), 1, "error: runs/x: No space left on device; make room"),
        (lambda: os_error(errno.EFBIG), 1, "error: runs/x: File too large; make room"),
        (lambda: os_error(errno.EDQUOT), 1, "make room"),
        (lambda: os_error(errno.EIO), 1, "error: runs/x: Input/output error; nothing that was written whole is lost"),
        (lambda: os_error(errno.ENOSPC, None), 1, "error: No space left on device; make room"),
        (
            lambda: RuntimeError(f"{NO_ROOM}\nmore"),
            1,
            "not enough memory ([enforce fail at alloc_cpu",
        ),
        (MemoryError, 1, "error: there is not enough memory (MemoryError): a smaller network, image size or --data.b"),
        (lambda: ConnectionResetError("by the server"), 1, "error: by the server; "),
    ],
)
def test_every_end_is_a_line_and_a_code(
    error: Callable[[], BaseException],
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ending(error, monkeypatch) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ssl-bench: ") and said in line


def test_other_processes_say_which_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert ending(lambda: UserError("no such file here"), monkeypatch) == 2
    assert capsys.readouterr().err == "ssl-bench: error: process 3: no such file here\n"
    assert ending(KeyboardInterrupt, monkeypatch) == 130
    assert capsys.readouterr().err == ""


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ending(ZeroDivisionError, monkeypatch)


@pytest.mark.integration
def test_sigterm_lets_a_command_clean_up(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ssl_bench.cli import main\n"
        "from ssl_bench.records.files import replacing\n"
        "def act(argv):\n"
        "    with replacing(Path(sys.argv[1]) / 'a') as file:\n"
        "        file.write_text('half'); print('there', flush=True); time.sleep(60)\n"
        "main._dispatch = act; sys.exit(main.main([]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "there\n"
    process.send_signal(signal.SIGTERM)
    assert "ended by SIGTERM" in process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert not list(tmp_path.iterdir())
