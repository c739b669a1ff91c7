"""What one live process writes about a run: traces, station samples, events. Joined into the run's tables afterwards.

Files of JSON lines, one set a process, flushed with every sample, so that a kill loses one interval at most. Instants are on
the machine's monotonic clock.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from reference_impl.messages import Call
from reference_impl.telemetry import StationSample, SystemEvent
from reference_impl.telemetry.trace_log import TraceLog

__all__ = ["EVENTS_PATTERN", "STATIONS_PATTERN", "TRACES_PATTERN", "RunLog", "read_samples"]

TRACES_PATTERN = "traces-*.jsonl"
STATIONS_PATTERN = "stations-*.jsonl"
EVENTS_PATTERN = "events-*.jsonl"


class RunLog:
    """The files of one process in `folder`; None writes nothing."""

    def __init__(self, folder: Path | None, hop: Literal["gateway", "instance"], name: str) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._traces: TraceLog | None = None
        if folder is not None:
            self._traces = TraceLog(folder / TRACES_PATTERN.replace("*", name), hop)
            self._stations = (folder / STATIONS_PATTERN.replace("*", name)).open("ab")
            self._events = (folder / EVENTS_PATTERN.replace("*", name)).open("ab", buffering=0)

    def trace(self, call: Call) -> None:
        if self._traces is not None:
            self._traces.record(call)

    def event(self, event: SystemEvent) -> None:
        if self._traces is not None:
            self._events.write(self._encode(event) + b"\n")

    def stations(self, samples: Iterable[StationSample]) -> None:
        """Write samples, and flush all that was recorded so far."""
        if self._traces is not None:
            for sample in samples:
                self._stations.write(self._encode(sample) + b"\n")
            self._traces.flush()
            self._stations.flush()

    async def sample_every(
        self, interval_s: float, take: Callable[[], Iterable[StationSample]]
    ) -> None:
        """Write what `take` gives, every `interval_s`, on absolute deadlines, until cancelled."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        tick = 0
        while True:
            tick = max(tick + 1, int((loop.time() - started_s) / interval_s))
            await asyncio.sleep(started_s + tick * interval_s - loop.time())
            self.stations(take())

    def close(self) -> None:
        if self._traces is not None:
            self._traces.close()
            self._stations.close()
            self._events.close()


def read_samples(path: Path) -> Iterator[StationSample]:
    """The station samples of one process; a last line that a kill cut short is left out."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                fields = msgspec.json.decode(line)
                if fields["capacity"] is None:  # JSON has no infinity
                    fields["capacity"] = math.inf
                yield msgspec.convert(fields, StationSample)
