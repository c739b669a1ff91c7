"""Whether the mock kept up: a run against a late mock measures the mock, and is not valid.

An answer is late when it, or its first token, came more than 10 ms after the instant that the model drew. A run is valid
while at most 1% of its answers are late. Where an engine decides as it goes, the event loop's own wake-ups stand in for the
answers. (A client that does not read its stream makes the mock wait, and counts as late too.)
"""

from __future__ import annotations

import math

import msgspec

from simulation.models.llm_endpoint import AttemptRecord

__all__ = ["LATE_S", "Punctuality", "Verdict"]

LATE_S = 0.010
_ALLOWED = 0.01


class Verdict(msgspec.Struct, frozen=True):
    """Whether a run against the mock is valid, and if not, why in one line."""

    valid: bool
    judged: int
    late: int
    worst_late_s: float
    reason: str = ""


class Punctuality:
    """Counts planned instants, and those that were met late."""

    def __init__(self, what: str = "answers") -> None:
        self._what = what
        self._judged = 0
        self._late = 0
        self._worst_late_s = 0.0

    def observe(self, record: AttemptRecord) -> None:
        """Judge one ended attempt; only complete answers count."""
        late_s = _late_s(record)
        if late_s is not None:
            self.add(late_s)

    def add(self, late_s: float) -> None:
        """Judge one planned instant."""
        self._judged += 1
        self._late += late_s > LATE_S
        self._worst_late_s = max(self._worst_late_s, late_s)

    def verdict(self) -> Verdict:
        """As of now."""
        valid = self._late <= _ALLOWED * self._judged
        reason = ""
        if not valid:
            reason = (
                f"the mock was the bottleneck: {self._late} of {self._judged} {self._what} came more than "
                f"{LATE_S * 1e3:.0f} ms late, the worst by {self._worst_late_s * 1e3:.0f} ms; "
                "offer less load, or give the mock a core of its own"
            )
        return Verdict(valid, self._judged, self._late, self._worst_late_s, reason)


def _late_s(record: AttemptRecord) -> float | None:
    """How late a complete answer was; None for others, and where nothing was drawn."""
    if record.outcome != "ok" or math.isnan(record.drawn_endpoint_s):
        return None
    late_s = record.endpoint_s - record.drawn_endpoint_s
    if not record.stream:
        return late_s
    return max(late_s, record.first_token_s - record.drawn_first_token_s)
