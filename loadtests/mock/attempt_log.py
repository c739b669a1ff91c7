"""The mock's log: one line of JSON per attempt, the truth against which losses and billing are checked."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from simulation.models.llm_endpoint import AttemptRecord

__all__ = ["AttemptLog"]

_FLUSH_S = 0.25


class AttemptLog:
    """Appends records to a file; what is buffered reaches the file within a quarter of a second.

    NaN is written as null.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")
        self._encode = msgspec.json.Encoder().encode
        self._flushing: asyncio.TimerHandle | None = None

    def write(self, record: AttemptRecord) -> None:
        """Append one record."""
        self._file.write(self._encode(record) + b"\n")
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._flushing = None
        self._file.flush()

    def close(self) -> None:
        """Write out what is left."""
        if self._flushing is not None:
            self._flushing.cancel()
        self._file.close()
