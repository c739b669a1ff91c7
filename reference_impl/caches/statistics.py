"""What a cache layer has done since its start, by level: immutable snapshots."""

from __future__ import annotations

import msgspec

from reference_impl.caches.memory_cache import MemoryCacheStatistics

__all__ = ["CacheStatistics", "SharedLevelStatistics"]


class SharedLevelStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Level 2 as this process sees it.

    Attributes:
        hits, misses: look-ups that the store answered. stale: answers kept only in place of a failure.
        skipped: operations not tried: the breaker was open, or a time-out had just passed.
        errors: operations that failed; timeouts: those of them that took too long.
        stored: values written. refused: writes whose lease an invalidation or its expiry had ended.
        unserialisable: values that the codec could not write, or bytes that it could not read.
        lease_waits: computations awaited in another process.
        invalidations_pending: asked for while the store was away, to be repeated when it is back.
        breaker: `closed`, `open` or `half_open`.
    """

    hits: int
    misses: int
    stale: int
    skipped: int
    errors: int
    timeouts: int
    stored: int
    refused: int
    unserialisable: int
    lease_waits: int
    invalidations_pending: int
    breaker: str


class CacheStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One layer. Each look-up is exactly one of l1_hits, l2_hits, coalesced, misses, stale_served, negative_hits, failures.

    Attributes:
        misses: answered by computing. failures: look-ups that raised, cancelled ones included.
        stale_served: expired values given in place of a failure. negative_hits: remembered failures raised again.
        computations: calls of `compute_fn`; in_progress: computing now, over all keys.
        refreshes, refresh_failures: computations started ahead of expiry, and those that failed.
        invalidations: asked for here or announced by another process.
        shared: level 2, or None without one.
    """

    l1_hits: int
    l2_hits: int
    coalesced: int
    misses: int
    failures: int
    stale_served: int
    negative_hits: int
    computations: int
    in_progress: int
    refreshes: int
    refresh_failures: int
    invalidations: int
    memory: MemoryCacheStatistics
    shared: SharedLevelStatistics | None

    @property
    def lookups(self) -> int:
        return (
            self.l1_hits
            + self.l2_hits
            + self.coalesced
            + self.misses
            + self.failures
            + self.stale_served
            + self.negative_hits
        )

    @property
    def hit_ratio(self) -> float:
        """Look-ups answered without computing, as a fraction of all; 0 before the first."""
        hits = self.l1_hits + self.l2_hits + self.coalesced + self.stale_served
        return hits / self.lookups if self.lookups else 0.0
