"""The clock that processes on several machines share."""

from __future__ import annotations

import time

__all__ = ["wall_clock_s"]


def wall_clock_s() -> float:
    """Seconds since 1970. Queues between processes stamp their tasks with it; monotonic clocks end at their machine."""
    return time.time()  # noqa: TID251 - instants that other machines, and later boots, must understand
