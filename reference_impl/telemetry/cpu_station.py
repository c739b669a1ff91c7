"""The CPU of a process as a station: how much of it was used between two samples."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from reference_impl.telemetry.records import StationSample

__all__ = ["CpuStation"]


class CpuStation:
    """Samples `used_s`, the CPU seconds of one process since its start. What waits for the CPU is not seen from here.

    Must be made on the running loop, whose clock it reads.
    """

    def __init__(self, name: str, used_s: Callable[[], float]) -> None:
        self._name = name
        self._cpu_s = used_s
        self._time = asyncio.get_running_loop().time
        self._sampled_s = self._time()
        self._used_s = used_s()

    def sample(self) -> StationSample:
        """The interval since the last sample, on the loop's clock."""
        now_s, used_s = self._time(), self._cpu_s()
        interval_s, busy_s = now_s - self._sampled_s, used_s - self._used_s
        self._sampled_s, self._used_s = now_s, used_s
        return StationSample(
            t_s=now_s,
            interval_s=interval_s,
            station=self._name,
            kind="cpu",
            arrivals=0,
            completions=0,
            busy_s=busy_s,
            queue_length=0.0,
            in_service=busy_s / interval_s if interval_s > 0 else 0.0,
            capacity=1.0,
        )
