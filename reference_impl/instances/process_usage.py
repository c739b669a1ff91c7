"""CPU and memory of this process, by psutil: the live source of an instance's usage."""

from __future__ import annotations

import os
from collections.abc import Callable

from reference_impl.instances.heartbeat import Usage

__all__ = ["cpu_used_s", "process_usage"]


def cpu_used_s() -> float:
    """CPU seconds (user and system) of this process since its start, in steps of the system's clock tick (10 ms)."""
    times = os.times()
    return times.user + times.system


def process_usage() -> Callable[[], Usage]:
    """A function that returns the CPU used since its last call (of one core, at most 1) and the share of the memory."""
    import psutil

    process = psutil.Process()
    process.cpu_percent(None)  # the first call has nothing to compare with

    def usage() -> Usage:
        return Usage(
            cpu=min(1.0, process.cpu_percent(None) / 100.0),
            memory=process.memory_percent() / 100.0,
        )

    return usage
