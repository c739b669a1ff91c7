"""CacheLayer: computed values by key, in this process's memory (L1) and, given a store, shared with others (L2).

The order of a look-up: L1, a computation that this process has under way, L2, a computation that another process has under
way, and only then `compute_fn`. No failure of a cache is a failure of a look-up: what happens while the store of L2 is
away is decided in `shared_level.py`.

A value is opaque here. Time is the running loop's clock, so the layer behaves the same in virtual time.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import Awaitable, Callable, Collection
from typing import Generic, TypeVar, cast

from reference_impl.caches.background import BackgroundTasks
from reference_impl.caches.glob import compile_glob, is_literal, refuse_broad
from reference_impl.caches.keys import check_key
from reference_impl.caches.memory_cache import MemoryCache, MemoryEntry
from reference_impl.caches.negative_cache import NegativeCache
from reference_impl.caches.port import Invalidation
from reference_impl.caches.shared_level import Claim, Found, SharedLevel
from reference_impl.caches.single_flight import LEAD, Flight, SingleFlight
from reference_impl.caches.sizes import size_of_value
from reference_impl.caches.statistics import CacheStatistics
from reference_impl.errors import AuthenticationFailed, InvalidRequest, PermissionDenied
from reference_impl.telemetry import CacheResult

__all__ = ["CacheLayer", "ComputeFn", "is_final"]

T = TypeVar("T")
ComputeFn = Callable[[], Awaitable[T] | T]

logger = logging.getLogger(__name__)


def is_final(error: Exception) -> bool:
    """Whether computing the same key again must fail in the same way: the request itself is wrong.

    What is wrong with a caller's or our own credentials, or may pass (409), is not final.
    """
    return (
        isinstance(error, InvalidRequest)
        and not isinstance(error, AuthenticationFailed | PermissionDenied)
        and not error.retryable
    )


class CacheLayer(Generic[T]):
    """A cache of computed values with single flight, two levels and invalidation.

    Args:
        ttl_seconds: how long a value is served where the call names no `ttl`; 0 stores nothing.
        max_bytes: bound on L1, by `size_of` of each value plus key and overhead; max_entries: a further bound.
        size_of: bytes that a value takes in memory.
        shared: level 2 (an attribute too), or None for a cache of this process alone.
        l1_ttl_seconds: with level 2, how long L1 serves without asking it again: the longest that an invalidation whose
            message was lost stays unheeded. 0: L1 keeps nothing.
        refresh_ahead: fraction of a value's life, at its end, in which a hit starts a new computation in the background
            (0: never). `compute_fn` then runs after the look-up that brought it has returned.
        stale_if_error_seconds: how long after its end a value may still be given when computing fails (0: never).
        negative_ttl_seconds: how long a final failure is remembered and raised again (0: not at all).
        final: tells final failures, which are shared with every waiting look-up at once; by default `is_final`.
    """

    def __init__(
        self,
        ttl_seconds: float = 3600,
        *,
        max_bytes: int = 256 * 1024 * 1024,
        max_entries: int | None = None,
        size_of: Callable[[T], int] = size_of_value,
        shared: SharedLevel[T] | None = None,
        l1_ttl_seconds: float = 60.0,
        refresh_ahead: float = 0.0,
        stale_if_error_seconds: float = 0.0,
        negative_ttl_seconds: float = 0.0,
        final: Callable[[Exception], bool] = is_final,
    ) -> None:
        _check_seconds("ttl_seconds", ttl_seconds)
        _check_seconds("l1_ttl_seconds", l1_ttl_seconds)
        _check_seconds("stale_if_error_seconds", stale_if_error_seconds)
        _check_seconds("negative_ttl_seconds", negative_ttl_seconds)
        if not 0 <= refresh_ahead < 1:
            raise ValueError(f"refresh_ahead is {refresh_ahead}: expected a fraction in [0, 1)")
        self.ttl_seconds = ttl_seconds
        self._size_of = size_of
        self.shared = shared
        self._l1_ttl_s = math.inf if shared is None else l1_ttl_seconds
        self._refresh_ahead = refresh_ahead
        self._stale_s = stale_if_error_seconds
        self._final = final
        self._memory: MemoryCache[T] = MemoryCache(max_bytes, max_entries)
        self._failed = NegativeCache(negative_ttl_seconds)
        self._flights: SingleFlight[T] = SingleFlight()
        self._tasks = BackgroundTasks("cache")
        self._l1_hits = self._l2_hits = self._coalesced = self._misses = self._failures = 0
        self._stale_served = self._computations = 0
        self._refreshes = self._refresh_failures = self._invalidations = 0

    # -- look-ups -----------------------------------------------------------------------------------------------------

    async def get_or_compute(
        self,
        key: str,
        compute_fn: ComputeFn[T],
        ttl: float | None = None,
        *,
        tags: Collection[str] = (),
    ) -> T:
        """The value under `key`, computed by `compute_fn` (plain or async) if no level has it; see `fetch`."""
        # As in `fetch`, once more: half of the time of a hit would be the call of it.
        now_s = asyncio.get_running_loop().time()
        entry = self._memory.find(key, now_s)
        if entry is not None and now_s < entry.refresh_from_s:
            self._l1_hits += 1
            return entry.value
        value, _ = await self.fetch(key, compute_fn, ttl, tags=tags)
        return value

    async def fetch(
        self,
        key: str,
        compute_fn: ComputeFn[T],
        ttl: float | None = None,
        *,
        tags: Collection[str] = (),
    ) -> tuple[T, CacheResult]:
        """The value under `key` and where it came from: `l1`, `l2`, `coalesced` (another's computation) or `miss`.

        `ttl` is in seconds, by default the layer's; with 0 the value is not stored, though what is stored already is
        served and look-ups at the same time share one computation. `tags` name groups for `invalidate(tag=...)`.

        Raises what `compute_fn` raises, InvalidCacheKey, and ValueError for a negative `ttl`.
        """
        now_s = asyncio.get_running_loop().time()
        entry = self._memory.find(key, now_s)
        if entry is not None and now_s < entry.refresh_from_s:
            self._l1_hits += 1
            return entry.value, "l1"
        ttl_s = self.ttl_seconds if ttl is None else ttl
        check_key(key)
        _check_seconds("ttl", ttl_s)
        if entry is not None and now_s < entry.fresh_until_s:
            # One attempt in the life of an entry: a failing computation must not be called by every hit.
            entry.refresh_from_s = entry.fresh_until_s
            if ttl_s > 0 and self._flights.find(key) is None:
                self._tasks.start(self._refresh(key, compute_fn, ttl_s, frozenset(tags)), "refresh")
            self._l1_hits += 1
            return entry.value, "l1"
        self._failed.raise_remembered(key, now_s)
        try:
            return await self._join_or_lead(key, compute_fn, ttl_s, frozenset(tags), entry)
        except BaseException:
            self._failures += 1
            raise

    async def find(self, key: str) -> tuple[T, CacheResult] | None:
        """The fresh value under `key` and its level, `l1` or `l2`, without computing; None counts as no look-up."""
        check_key(key)
        now_s = asyncio.get_running_loop().time()
        entry = self._memory.find(key, now_s)
        if entry is not None and now_s < entry.fresh_until_s:
            self._l1_hits += 1
            return entry.value, "l1"
        if self.shared is None:
            return None
        self.shared.listen(self._heard)
        invalidations = self._invalidations
        found = await self.shared.obtain(key, may_lead=False)
        if not isinstance(found, Found):
            return None
        self._l2_hits += 1
        if self._invalidations == invalidations:
            self._keep(key, found.value, found.fresh_s, found.ttl_s, found.tags)
        return found.value, "l2"

    async def _join_or_lead(
        self,
        key: str,
        compute_fn: ComputeFn[T],
        ttl_s: float,
        tags: frozenset[str],
        stale: MemoryEntry[T] | None,
    ) -> tuple[T, CacheResult]:
        flight = self._flights.find(key)
        if flight is None:
            flight = self._flights.lead(key, tags)
        else:
            result = await self._flights.join(key, flight)
            if result is not LEAD:
                self._coalesced += 1
                return result, "coalesced"
        try:
            return await self._lead(key, flight, compute_fn, ttl_s, tags)
        except Exception as error:
            final = self._final(error)
            if stale is not None and not final:
                self._flights.land(key, flight, stale.value)
                self._stale_served += 1
                return stale.value, "l1"
            if final and not flight.doomed:
                self._failed.remember(key, error, asyncio.get_running_loop().time())
            self._flights.fail(key, flight, error, final=final)
            raise
        except BaseException:
            self._flights.hand_over(key, flight)
            raise

    async def _lead(
        self,
        key: str,
        flight: Flight[T],
        compute_fn: ComputeFn[T],
        ttl_s: float,
        tags: frozenset[str],
    ) -> tuple[T, CacheResult]:
        """Take from level 2 or compute, store, and give the value to the followers."""
        shared = self.shared
        if shared is None:
            value = await self._compute(compute_fn)
            self._land(key, flight, value, ttl_s, ttl_s, tags)
            self._misses += 1
            return value, "miss"
        shared.listen(self._heard)
        found = await shared.obtain(key, may_lead=ttl_s > 0)
        if isinstance(found, Found):
            self._land(key, flight, found.value, found.fresh_s, found.ttl_s, found.tags)
            if found.waited:
                self._coalesced += 1
                return found.value, "coalesced"
            self._l2_hits += 1
            return found.value, "l2"
        try:
            value = await self._compute_and_share(shared, found, flight, compute_fn, ttl_s, tags)
        except Exception as error:
            if found.stale is None or self._final(error):
                raise
            self._flights.land(key, flight, found.stale.value)
            self._stale_served += 1
            return found.stale.value, "l2"
        self._misses += 1
        return value, "miss"

    async def _compute_and_share(
        self,
        shared: SharedLevel[T],
        claim: Claim[T],
        flight: Flight[T],
        compute_fn: ComputeFn[T],
        ttl_s: float,
        tags: frozenset[str],
    ) -> T:
        """Compute under the lease of `claim`; followers first, then this memory, then the other processes."""
        with shared.renewing(claim):
            value = await self._compute(compute_fn)
        self._land(claim.key, flight, value, ttl_s, ttl_s, tags)
        if ttl_s > 0 and not flight.doomed:
            await shared.write(
                claim,
                value,
                ttl_s=ttl_s,
                stale_s=self._stale_s,
                tags=tags,
                size_bytes=self._size_of(value),
            )
        else:
            shared.release(claim)
        return value

    async def _compute(self, compute_fn: ComputeFn[T]) -> T:
        self._computations += 1
        result = compute_fn()
        if inspect.isawaitable(result):
            result = await result
        return cast("T", result)

    async def _refresh(
        self, key: str, compute_fn: ComputeFn[T], ttl_s: float, tags: frozenset[str]
    ) -> None:
        """Compute `key` again before its value ends; a failure leaves the value that is there."""
        claim = Claim[T](key, 0.0)
        if self.shared is not None:
            leased = await self.shared.lease(key)
            if leased is None:
                return
            claim = leased
        if self._flights.find(key) is not None:
            if self.shared is not None:
                self.shared.release(claim)
            return
        flight = self._flights.lead(key, tags)
        self._refreshes += 1
        try:
            if self.shared is None:
                value = await self._compute(compute_fn)
                self._land(key, flight, value, ttl_s, ttl_s, tags)
            else:
                await self._compute_and_share(self.shared, claim, flight, compute_fn, ttl_s, tags)
        except Exception as error:  # noqa: BLE001 - whatever it is, the value that is there goes on being served
            self._refresh_failures += 1
            logger.info("refresh ahead of expiry failed: %s", error)
            self._flights.fail(key, flight, error, final=self._final(error))
        except BaseException:
            self._flights.hand_over(key, flight)
            raise

    def _land(
        self,
        key: str,
        flight: Flight[T],
        value: T,
        fresh_s: float,
        ttl_s: float,
        tags: frozenset[str],
    ) -> None:
        """Keep `value` unless it was invalidated meanwhile, and give it to the followers."""
        if not flight.doomed:
            self._keep(key, value, fresh_s, ttl_s, tags)
        self._flights.land(key, flight, value)

    def _keep(self, key: str, value: T, fresh_s: float, ttl_s: float, tags: frozenset[str]) -> None:
        """Hold `value` in memory for what is left of its life, at most the cap of L1."""
        if fresh_s <= 0 or self._l1_ttl_s <= 0:
            return
        now_s = asyncio.get_running_loop().time()
        fresh_until_s = now_s + min(fresh_s, self._l1_ttl_s)
        self._memory.put(
            key,
            MemoryEntry(
                value,
                size_bytes=self._size_of(value),
                refresh_from_s=min(fresh_until_s, now_s + fresh_s - self._refresh_ahead * ttl_s),
                fresh_until_s=fresh_until_s,
                stale_until_s=fresh_until_s + self._stale_s,
                tags=tags,
            ),
        )

    # -- invalidation -------------------------------------------------------------------------------------------------

    def invalidate(
        self, pattern: str | None = None, *, tag: str | None = None, everything: bool = False
    ) -> asyncio.Future[int]:
        """Forget the keys that match the glob `pattern`, or every entry that carries `tag`, in all levels and processes.

        This memory has forgotten when the call returns; what is being computed now will not be stored. Await the result
        for the store and the word to the other processes: the number of entries forgotten there, or here without a store.

        Raises PatternTooBroad for a pattern of mere wildcards without `everything`, ValueError unless exactly one of
        `pattern` and `tag` is given.
        """
        if (pattern is None) == (tag is None):
            raise ValueError("invalidate takes a pattern or a tag, and not both")
        origin = "" if self.shared is None else self.shared.name
        if pattern is not None:
            if not everything:
                refuse_broad(pattern)
            what = Invalidation("pattern", pattern, origin)
        else:
            what = Invalidation("tag", cast("str", tag), origin)
        forgotten = self._forget(what)
        if self.shared is not None:
            return self._tasks.start(self._invalidate_shared(self.shared, what), "invalidate")
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        done.set_result(forgotten)
        return done

    async def _invalidate_shared(self, shared: SharedLevel[T], what: Invalidation) -> int:
        deleted = await shared.invalidate(what)
        # Again: a look-up meanwhile may have taken the old value from the store.
        self._forget(what)
        return deleted

    def _heard(self, what: Invalidation) -> None:
        """Another process has invalidated something."""
        try:
            self._forget(what)
        except ValueError as error:
            logger.warning("invalidation by %r not understood: %s", what.origin, error)

    def _forget(self, what: Invalidation) -> int:
        self._invalidations += 1
        if what.kind == "tag":
            return self._forget_where(lambda _, tags: what.target in tags)
        if is_literal(what.target):
            forgotten = self._memory.discard(what.target)
            self._failed.discard(what.target)
            self._flights.doom_key(what.target)
            return int(forgotten)
        matches = compile_glob(what.target).fullmatch
        return self._forget_where(lambda key, _: matches(key) is not None)

    def _forget_where(self, matches: Callable[[str, frozenset[str]], bool]) -> int:
        self._failed.discard_where(matches)
        self._flights.doom_where(matches)
        return self._memory.discard_where(matches)

    # -- life ---------------------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """End what runs in the background, and the shared level with its store."""
        await self._tasks.aclose()
        if self.shared is not None:
            await self.shared.aclose()

    def statistics(self) -> CacheStatistics:
        return CacheStatistics(
            l1_hits=self._l1_hits,
            l2_hits=self._l2_hits,
            coalesced=self._coalesced,
            misses=self._misses,
            failures=self._failures,
            stale_served=self._stale_served,
            negative_hits=self._failed.hits,
            computations=self._computations,
            in_progress=len(self._flights),
            refreshes=self._refreshes,
            refresh_failures=self._refresh_failures,
            invalidations=self._invalidations,
            memory=self._memory.statistics(),
            shared=None if self.shared is None else self.shared.statistics(),
        )


def _check_seconds(name: str, seconds: float) -> None:
    if not (seconds >= 0 and math.isfinite(seconds)):
        raise ValueError(f"{name} is {seconds}: expected seconds, zero or more, and finite")
