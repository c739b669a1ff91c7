"""What the injectors count while a swarm runs: mergeable histograms, small enough to send every few seconds.

A dict of logarithmic buckets (1% wide) costs 0.24 µs a record, merges by addition and gives a quantile within 0.5%;
Locust's own statistics cost ten times that and round to two digits. The exact rows are on disk; this is for the page and
for progress.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from loadtests.client_rows import ClientRow

__all__ = ["ClientMetrics", "LogHistogram"]

BUCKET_WIDTH: Final = 0.01
_PER_LOG: Final = 1.0 / math.log1p(BUCKET_WIDTH)
_ZERO: Final = -(10**6)  # the bucket of values that have no logarithm
_SMALLEST: Final = 1e-9

# Durations that are shown, each under a name of its own (definitions in docs/swarm.md).
DURATIONS: Final = (
    "latency_s",
    "service_s",
    "ttft_s",
    "ttft_service_s",
    "tpot_s",
    "lag_s",
)
COUNTS: Final = ("requests", "attempts", "overflow", "input_tokens", "output_tokens")


class LogHistogram:
    """Counts of non-negative values in buckets 1% wide."""

    __slots__ = ("buckets", "count")

    def __init__(self, buckets: Mapping[int, int] | None = None) -> None:
        self.buckets: dict[int, int] = dict(buckets or {})
        self.count = sum(self.buckets.values())

    def record(self, value: float) -> None:
        bucket = math.floor(math.log(value) * _PER_LOG) if value > _SMALLEST else _ZERO
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1

    def merge(self, buckets: Mapping[int, int]) -> None:
        for bucket, count in buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
            self.count += count

    def quantile(self, q: float) -> float:
        """The value at fraction `q` (0..1), nearest rank, within 0.5%; NaN if nothing was recorded."""
        if not self.count:
            return math.nan
        rank = max(1, math.ceil(q * self.count))
        seen = 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= rank:
                return 0.0 if bucket == _ZERO else math.exp((bucket + 0.5) / _PER_LOG)
        raise AssertionError("counts of the buckets do not add up")


class ClientMetrics:
    """Everything that one injector, or the master for all of them, has counted."""

    def __init__(self) -> None:
        self.durations = {name: LogHistogram() for name in DURATIONS}
        self.counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self.outcomes: dict[str, int] = {}
        self.cost_usd = 0.0

    def record(self, row: ClientRow) -> None:
        """Count one finished request. Latencies are of answers that came; the lag is of every request."""
        counts = self.counts
        counts["requests"] += 1
        counts["attempts"] += row.attempts
        counts["input_tokens"] += row.input_tokens
        counts["output_tokens"] += row.output_tokens
        self.cost_usd += row.cost_usd
        self.outcomes[row.outcome] = self.outcomes.get(row.outcome, 0) + 1
        durations = self.durations
        durations["lag_s"].record(row.sent_s - row.intended_s)
        if row.outcome != "ok":
            return
        durations["latency_s"].record(row.done_s - row.intended_s)
        durations["service_s"].record(row.done_s - row.sent_s)
        first_token_s = row.first_token_s
        if first_token_s is not None:
            durations["ttft_s"].record(first_token_s - row.intended_s)
            durations["ttft_service_s"].record(first_token_s - row.sent_s)
            if row.output_tokens > 1 and row.done_s > first_token_s:
                durations["tpot_s"].record((row.done_s - first_token_s) / (row.output_tokens - 1))

    def merge(self, report: Mapping[str, Any]) -> None:
        """Add what `take()` of another injector gave."""
        for name, buckets in report["durations"].items():
            self.durations[name].merge(buckets)
        for name, count in report["counts"].items():
            self.counts[name] += count
        self.cost_usd += report["cost_usd"]
        for name, count in report["outcomes"].items():
            self.outcomes[name] = self.outcomes.get(name, 0) + count

    def take(self) -> dict[str, Any]:
        """All counts since the last `take()`, as plain dicts for a message; then starts from zero."""
        report = {
            "durations": {n: h.buckets for n, h in self.durations.items() if h.buckets},
            "counts": {name: count for name, count in self.counts.items() if count},
            "outcomes": self.outcomes,
            "cost_usd": self.cost_usd,
        }
        self.durations = {name: LogHistogram() for name in DURATIONS}
        self.counts = dict.fromkeys(COUNTS, 0)
        self.outcomes = {}
        self.cost_usd = 0.0
        return report
