"""The rate that limits let through, measured so that neither a full bucket at the start nor a half-done swing counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from simulation.models.llm_endpoint import AttemptRecord

__all__ = ["accepted_per_min"]

_PAUSE = 5  # times the mean gap between arrivals


def accepted_per_min(
    records: Sequence[AttemptRecord], what: Literal["requests", "input_tokens", "output_tokens"]
) -> float:
    """Requests or tokens a minute, from the first acceptance after a refusal to the last such one.

    At each of these instants the bucket has just enough again, so whole swings between plenty and debt lie between them.
    (One that a pause in the arrivals delayed is passed over: the bucket has more by then.)
    Requests and input count when they are accepted, output when it is produced: evenly between the drawn first and last
    token, or at the end where an engine decides as it goes.
    """
    ordered = sorted(records, key=lambda record: record.arrived_s)
    whole_s = ordered[-1].arrived_s - ordered[0].arrived_s
    pause_s = _PAUSE * whole_s / len(ordered)
    restarts_s = [
        after.arrived_s
        for before, after in pairwise(ordered)
        if before.status == 429 != after.status and after.arrived_s - before.arrived_s < pause_s
    ]
    begin_s, end_s = restarts_s[0], restarts_s[-1]
    assert end_s - begin_s > 0.7 * whole_s, "too few swings to measure"
    total = 0.0
    for record in ordered:
        if record.status == 429:
            continue
        if what == "output_tokens":
            total += record.output_tokens * _produced_share(record, begin_s, end_s)
        elif begin_s <= record.arrived_s < end_s:
            total += 1.0 if what == "requests" else record.input_tokens
    return total / (end_s - begin_s) * 60.0


def _produced_share(record: AttemptRecord, begin_s: float, end_s: float) -> float:
    """The share of a record's output that is produced between two instants."""
    last_s = record.arrived_s + record.drawn_endpoint_s
    if last_s != last_s:  # NaN: nothing was drawn
        return float(begin_s <= record.arrived_s + record.endpoint_s < end_s)
    first_s = record.arrived_s + record.drawn_first_token_s
    overlap_s = min(last_s, end_s) - max(first_s, begin_s)
    return max(0.0, overlap_s) / (last_s - first_s)
