"""The CPU of this process as a station: what the operating system says it used."""

from __future__ import annotations

import asyncio
import os

from reference_impl.telemetry import StationSample

__all__ = ["ProcessCpuStation"]


class ProcessCpuStation:
    """CPU seconds (user and system) of this process between samples, at the resolution of `os.times`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._time = asyncio.get_running_loop().time
        self._sampled_s = self._time()
        self._used_s = _used_s()

    def sample(self) -> StationSample:
        now_s, used_s = self._time(), _used_s()
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


def _used_s() -> float:
    times = os.times()
    return times.user + times.system
