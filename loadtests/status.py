"""What a running swarm says to whoever started it: one JSON line each, appended to `swarm.jsonl` in the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

__all__ = [
    "STATUS_FILE",
    "Failed",
    "Finished",
    "Progress",
    "Ready",
    "Started",
    "Status",
    "StatusReader",
    "StatusWriter",
]

STATUS_FILE: Final = "swarm.jsonl"


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The process that conducts the swarm is up. `master_port` is where workers report (0: there are none)."""

    master_port: int = 0


class Started(msgspec.Struct, frozen=True, tag="started"):
    """t0 is set: instant 0 of the run on this machine's monotonic clock, a moment in the future."""

    t0_monotonic_s: float
    t0_unix_s: float
    injectors: int


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """Where the run stands at `t_s`. Latency and lag are p50 and p99 so far, from the intended start, NaN as None."""

    t_s: float
    requests: int
    failures: int
    latency_p50_s: float | None
    latency_p99_s: float | None
    lag_p99_s: float | None


class Finished(msgspec.Struct, frozen=True, tag="finished"):
    """Every injector has ended and flushed its rows. `requests` is the number of rows that they wrote."""

    t_s: float
    requests: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The swarm cannot go on; one line for people."""

    message: str


Status = Ready | Started | Progress | Finished | Failed


class StatusWriter:
    """Appends one line at once."""

    def __init__(self, folder: Path) -> None:
        self._file = (folder / STATUS_FILE).open("ab", buffering=0)

    def write(self, status: Status) -> None:
        self._file.write(msgspec.json.encode(status) + b"\n")


class StatusReader:
    """Follows the file of a running swarm; the file may not exist yet."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATUS_FILE
        self._offset = 0
        self._decode = msgspec.json.Decoder(Status).decode

    def poll(self) -> list[Status]:
        """What was said since the last poll."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [self._decode(line) for line in whole.splitlines()]
