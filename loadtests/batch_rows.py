"""What the submitter of a batch saw of it: a JSON line at each turn of its fate, the last of which counts.

Instants are seconds on the monotonic clock, counted from t0, the start of the run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from reference_impl.telemetry import Outcome

__all__ = ["BATCHES_FILE", "BatchRow", "read_batch_rows"]

BATCHES_FILE: Final = "batches.jsonl"


class BatchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One batch so far.

    Attributes:
        number: its place in the scenario's list. batch_id: the gateway's, "" until it was accepted.
        intended_s, sent_s: when it was due, and was submitted first.
        refused: how it was turned away for good; None: it was not.
        ended_s: when its submitter heard that it had ended; None: not yet.
    """

    number: int
    intended_s: float
    sent_s: float
    batch_id: str = ""
    refused: Outcome | None = None
    ended_s: float | None = None


def read_batch_rows(folder: Path) -> dict[int, BatchRow]:
    """The last row of each batch by its number; a last line that a kill cut short is left out."""
    path = folder / BATCHES_FILE
    if not path.exists():
        return {}
    decoder = msgspec.json.Decoder(BatchRow)
    with path.open("rb") as file:
        rows = [decoder.decode(line) for line in file if line.endswith(b"\n")]
    return {row.number: row for row in rows}
