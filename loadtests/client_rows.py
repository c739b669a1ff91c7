"""What a client saw of each request: one JSON line, written as the run goes, so that a kill loses at most a moment.

Instants are seconds on the monotonic clock, counted from t0, the start of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from reference_impl.telemetry import Outcome

__all__ = [
    "ROWS_PATTERN",
    "ClientRow",
    "RowWriter",
    "read_client_rows",
    "rows_file",
]

ROWS_PATTERN: Final = "client-*.jsonl"


class ClientRow(msgspec.Struct, frozen=True, kw_only=True):
    """One logical request, whatever number of attempts the client made for it.

    Attributes:
        request_id: the row of the compiled workload.
        intended_s, sent_s, first_token_s, done_s: the four stamps; `first_token_s` is None if none came. `sent_s` is the
            first attempt's; a request that was never sent (overflow at the end of a run) has `sent_s == done_s`.
        attempts: attempts of this client (1 without client retries, 0 if it was never sent).
        cost_usd: at list prices, from the tokens that the answer reported.
        overflow: it had to wait for a free place among the requests in flight.
    """

    request_id: int
    intended_s: float
    sent_s: float
    first_token_s: float | None
    done_s: float
    outcome: Outcome
    status: int
    attempts: int = 1
    overflow: bool = False
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0


def rows_file(folder: Path, injector: int) -> Path:
    """The file of injector number `injector`."""
    return folder / f"client-{injector}.jsonl"


class RowWriter:
    """Appends rows to a new file; `flush()` from a periodic task. Raises FileExistsError if the file is there already."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("xb")
        self._encode = msgspec.json.Encoder().encode
        self.rows = 0

    def write(self, row: ClientRow) -> None:
        self._file.write(self._encode(row) + b"\n")
        self.rows += 1

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_client_rows(folder: Path) -> Iterator[ClientRow]:
    """The rows of all injectors of a run, file by file; a last line that a kill cut short is left out."""
    decoder = msgspec.json.Decoder(ClientRow)
    for path in sorted(folder.glob(ROWS_PATTERN)):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield decoder.decode(line)
