"""What one live process knows of its requests: one JSON line each, joined by (request id, attempt) after the run.

Only durations cross processes. Lines rather than columns, because a process that is killed must lose no more than what it
had not flushed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from reference_impl.messages import Call
from reference_impl.telemetry.records import RequestTrace

__all__ = ["TraceLog", "TraceRow", "read_traces"]

Hop = Literal["gateway", "instance"]


class TraceRow(msgspec.Struct, frozen=True):
    """One request as seen by one process. `attempt` is the last attempt that the process knows of."""

    hop: Hop
    request_id: int
    attempt: int
    trace: RequestTrace


class TraceLog:
    """Appends `TraceRow`s to a file; `flush()` from a periodic task, `close()` at the end."""

    def __init__(self, path: Path, hop: Hop) -> None:
        self._file = path.open("ab")
        self._hop: Hop = hop
        self._encode = msgspec.json.Encoder().encode

    def record(self, call: Call) -> None:
        row = TraceRow(self._hop, call.request_id, call.attempt, call.trace)
        self._file.write(self._encode(row) + b"\n")

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_traces(path: Path) -> Iterator[TraceRow]:
    """The rows of a log; a last line that a kill cut short is left out."""
    decoder = msgspec.json.Decoder(TraceRow)
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield decoder.decode(line)
