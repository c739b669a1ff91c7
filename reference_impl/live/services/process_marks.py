"""A process by more than its number, which the kernel gives to others once it has ended."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import msgspec
import psutil

__all__ = ["ProcessMark", "mark_of"]


class ProcessMark(msgspec.Struct, frozen=True):
    """A process and when it started, in whatever unit this system tells it exactly."""

    pid: int
    started: str

    @property
    def is_alive(self) -> bool:
        """Whether this very process runs; a zombie does not."""
        return bool(self.started) and _started(self.pid) == self.started

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the group that it leads; to nobody if it is gone."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)


def mark_of(pid: int) -> ProcessMark:
    """The mark of a process that runs now; one that has ended is marked as what is never alive."""
    return ProcessMark(pid, _started(pid))


def _started(pid: int) -> str:
    """On Linux the boot and the ticks since then, which no correction of the clock moves. "": no such process, or a zombie."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else f"{boot}:{fields[19]}"
    except ProcessLookupError:
        return ""
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return ""
    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.NoSuchProcess:
        return ""
