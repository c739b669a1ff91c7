"""When an answer's tokens come: the instants of the first and the last one, and the chunks between them.

First and last are drawn alone, so a virtual stream may be played as two events or chunk by chunk at the same instants: the
gaps share out the drawn duration in proportion to weights from a table, and never add to it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Final, Protocol

from simulation.scenario.endpoint import ProviderService, ServiceTimeService
from simulation.scenario.random_streams import generator

__all__ = [
    "FAULT_LUCK",
    "GAP_LUCK",
    "OVERLOAD_LUCK",
    "RATE_LUCK",
    "TTFT_LUCK",
    "GapTable",
    "ProviderTiming",
    "ServiceTiming",
    "Timing",
]

# Which of an attempt's eight uniforms decides what. A place is never reused: adding a draw must not change another.
TTFT_LUCK: Final = 0
RATE_LUCK: Final = 1
GAP_LUCK: Final = 2
FAULT_LUCK: Final = 3
OVERLOAD_LUCK: Final = 4

_GAP_TABLE_SIZE: Final = 1 << 14


class GapTable:
    """Relative instants of chunks: lognormal gaps, a fraction of them stalls, in a table that wraps around."""

    def __init__(self, service: ProviderService) -> None:
        draws = generator(0, "endpoint/gaps")
        weights = draws.lognormal(0.0, service.gap_sigma, _GAP_TABLE_SIZE)
        weights[draws.random(_GAP_TABLE_SIZE) < service.stall_fraction] *= service.stall_gaps
        self._cumulative: list[float] = [0.0, *accumulate(weights.tolist())]

    def _at(self, index: int) -> float:
        turns, rest = divmod(index, _GAP_TABLE_SIZE)
        return turns * self._cumulative[-1] + self._cumulative[rest]

    def shares(self, luck: float, chunks: int) -> list[float]:
        """Of `chunks` chunks, when each comes: 0.0 for the first, rising to 1.0 for the last."""
        start = int(luck * _GAP_TABLE_SIZE)
        if start + chunks <= _GAP_TABLE_SIZE:
            marks = self._cumulative[start : start + chunks]
        else:
            marks = [self._at(start + k) for k in range(chunks)]
        span = marks[-1] - marks[0]
        if span <= 0:
            return [1.0] * chunks
        origin = marks[0]
        return [(mark - origin) / span for mark in marks]


class Timing(Protocol):
    """Draws the times of an answer whose course is known when it begins."""

    def draw(
        self, luck: tuple[float, ...], uncached_tokens: int, cached_tokens: int, output_tokens: int
    ) -> tuple[float, float]:
        """Seconds from the arrival to the first and to the last token."""
        ...

    def shares(self, luck: float, chunks: int) -> list[float]:
        """When each chunk comes, as a share of the time between first and last."""
        ...


class ProviderTiming:
    """A hosted API: time to first token with prefill, then the request's own rate."""

    def __init__(self, service: ProviderService, speedup: float) -> None:
        self._service = service
        self._ttft_s = service.ttft_s.quantile
        self._tokens_per_s = service.tokens_per_s.quantile
        self._prefill_s = service.prefill_s_per_token
        self._cached_prefill_s = service.cached_prefill_s_per_token
        self._speedup = speedup
        self._gaps: GapTable | None = None

    def draw(
        self, luck: tuple[float, ...], uncached_tokens: int, cached_tokens: int, output_tokens: int
    ) -> tuple[float, float]:
        first_s = (
            self._ttft_s(luck[TTFT_LUCK])
            + uncached_tokens * self._prefill_s
            + cached_tokens * self._cached_prefill_s
        )
        last_s = first_s + (output_tokens - 1) / self._tokens_per_s(luck[RATE_LUCK])
        return first_s / self._speedup, last_s / self._speedup

    def shares(self, luck: float, chunks: int) -> list[float]:
        if self._gaps is None:  # two-event streams never need the table
            self._gaps = GapTable(self._service)
        return self._gaps.shares(luck, chunks)


class ServiceTiming:
    """One drawn time for the whole answer, whatever its length."""

    def __init__(self, service: ServiceTimeService, speedup: float) -> None:
        self._service_s = service.service_s.quantile
        self._first_share = service.first_token_share
        self._speedup = speedup

    def draw(
        self,
        luck: tuple[float, ...],
        uncached_tokens: int,  # noqa: ARG002 - sizes do not matter here
        cached_tokens: int,  # noqa: ARG002
        output_tokens: int,  # noqa: ARG002
    ) -> tuple[float, float]:
        last_s = self._service_s(luck[TTFT_LUCK]) / self._speedup
        return last_s * self._first_share, last_s

    def shares(self, luck: float, chunks: int) -> list[float]:  # noqa: ARG002 - evenly
        return [k / (chunks - 1) for k in range(chunks)] if chunks > 1 else [1.0]
