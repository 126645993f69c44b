"""Whether the process that wrote a file still lives, as far as another process of its machine can know. Torch-free."""

import os
from pathlib import Path


def machine() -> str:
    """Boot and process namespace: processes of two containers may have the same number."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{os.uname().nodename} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no Linux
        return os.uname().nodename


def born(process: int) -> str:
    """When a process of this machine was started, in the kernel's ticks, since numbers are given again; or nothing."""
    try:
        after_name = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        return after_name.split()[19]
    except (OSError, IndexError):
        return ""


def runs(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
