"""Level 2 as a look-up may use it: never an error, never longer than stated.

It serialises values, holds the lease that makes one process of many compute, and reads nothing from a store that has not
heard of every invalidation yet. What a store that is away means is decided in `store_guard.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

from reference_impl.caches.background import BackgroundTasks
from reference_impl.caches.codec import Codec, MsgpackCodec
from reference_impl.caches.invalidations import Invalidations
from reference_impl.caches.port import (
    CacheStore,
    Invalidation,
    NotSerialisable,
    Stored,
    StoreUnavailable,
)
from reference_impl.caches.statistics import SharedLevelStatistics
from reference_impl.caches.store_guard import (
    Budget,
    MakeBreaker,
    OnBreakerChange,
    StoreGuard,
    default_breaker,
)
from reference_impl.overload.jitter import Uniform

__all__ = ["Claim", "Found", "SharedLevel"]

T = TypeVar("T")

_FIRST_POLL_S: Final = 0.005
_LONGEST_POLL_S: Final = 0.2


class Found(Generic[T]):
    """A value of level 2; fresh while `fresh_s` > 0. `waited`: another process computed it during the look-up."""

    __slots__ = ("fresh_s", "tags", "ttl_s", "value", "waited")

    def __init__(
        self, value: T, fresh_s: float, ttl_s: float, tags: frozenset[str], waited: bool
    ) -> None:
        self.value = value
        self.fresh_s = fresh_s
        self.ttl_s = ttl_s
        self.tags = tags
        self.waited = waited


class Claim(Budget, Generic[T]):
    """The right, or without a `token` the mere need, to compute `key`. `stale`: what to give if that fails.

    As a budget it is what this look-up may still spend on the store.
    """

    __slots__ = ("key", "stale", "token")

    def __init__(self, key: str, remaining_s: float) -> None:
        super().__init__(remaining_s)
        self.key = key
        self.stale: Found[T] | None = None
        self.token = ""


class SharedLevel(Generic[T]):
    """A `CacheStore` behind a codec, a time-out and a breaker.

    Args:
        store: where the bytes are.
        name: of this process among those that share the store; unique, it marks leases and messages.
        codec: values to bytes and back; by default MessagePack of plain data.
        timeout_s: the longest that one look-up waits for the store, over all its steps.
        make_breaker: makes the breaker, given its listener.
        uniform: the luck that keeps the breakers of many processes from probing together.
        lease_s: how long a dead process keeps others from computing its key; a live one renews it.
        lease_wait_s: the longest wait for another process's computation, after which this one computes too.
        on_breaker_change: told (now, old state, new state), beside the log.
    """

    def __init__(
        self,
        store: CacheStore,
        *,
        name: str,
        codec: Codec[T] | None = None,
        timeout_s: float = 0.05,
        make_breaker: MakeBreaker = default_breaker,
        uniform: Uniform | None = None,
        lease_s: float = 5.0,
        lease_wait_s: float = 60.0,
        on_breaker_change: OnBreakerChange | None = None,
    ) -> None:
        if not name:
            raise ValueError("name is empty: processes that share a store are told apart by it")
        if timeout_s <= 0 or lease_s <= 0 or lease_wait_s <= 0:
            raise ValueError(
                f"timeout_s ({timeout_s}), lease_s ({lease_s}) and lease_wait_s ({lease_wait_s}) must be positive"
            )
        self.name = name
        self.store = store
        self.timeout_s = timeout_s
        self._codec: Codec[T] = MsgpackCodec() if codec is None else codec
        self._lease_s = lease_s
        self._lease_wait_s = lease_wait_s
        self._tasks = BackgroundTasks("cache")
        self._guard = StoreGuard(
            name,
            timeout_s=timeout_s,
            make_breaker=make_breaker,
            uniform=uniform,
            on_breaker_change=on_breaker_change,
        )
        self._invalidations = Invalidations(name, store, self._guard, self._tasks)
        self._claims = 0
        self._hits = self._misses = self._stale = self._lease_waits = 0
        self._stored = self._refused = self._unserialisable = 0

    # -- a look-up ----------------------------------------------------------------------------------------------------

    async def obtain(self, key: str, *, may_lead: bool = True) -> Found[T] | Claim[T]:
        """The fresh value of `key`, awaited if another process computes it; else a claim to compute it here.

        With `may_lead` false the claim holds no lease and no other process is waited for.
        """
        claim = Claim[T](key, self.timeout_s)
        waited_s = 0.0
        poll_s = _FIRST_POLL_S
        try:
            while True:
                found = await self._read(claim, waited=waited_s > 0)
                if found is not None and found.fresh_s > 0:
                    return found
                claim.stale = found
                if not may_lead or waited_s >= self._lease_wait_s or await self._lease(claim):
                    return claim
                if not waited_s:
                    self._lease_waits += 1
                await asyncio.sleep(poll_s)
                waited_s += poll_s
                poll_s = min(1.5 * poll_s, _LONGEST_POLL_S)
                # The wait was for a computation, not for the store: the next question has the whole time again.
                claim.remaining_s = self.timeout_s
        except StoreUnavailable:
            return claim

    async def lease(self, key: str) -> Claim[T] | None:
        """A claim to compute `key` anew although a value is there; None if another process does, or the store is away."""
        claim = Claim[T](key, self.timeout_s)
        try:
            return claim if await self._lease(claim) else None
        except StoreUnavailable:
            return None

    @contextmanager
    def renewing(self, claim: Claim[T]) -> Iterator[None]:
        """Keep the lease of `claim` alive while the body runs, and give it up if the body fails."""
        if not claim.token:
            yield
            return
        renewal: list[asyncio.TimerHandle] = []

        def renew_later() -> None:
            renewal[:] = [asyncio.get_running_loop().call_later(self._lease_s / 3, renew)]

        def renew() -> None:
            self._tasks.start(self._renew(claim), "lease")
            renew_later()

        renew_later()
        try:
            yield
        except BaseException:
            self._give_up(claim)
            raise
        finally:
            renewal[0].cancel()

    async def write(
        self,
        claim: Claim[T],
        value: T,
        *,
        ttl_s: float,
        stale_s: float,
        tags: frozenset[str],
        size_bytes: int,
    ) -> None:
        """Share `value`, if the claim's lease still stands; what cannot be serialised is logged once a type."""
        if not claim.token:
            return
        try:
            payload = self._codec.encode(value)
        except NotSerialisable as error:
            self._unserialisable += 1
            self._guard.warn_once(f"type {type(value).__name__}", error)
            self._give_up(claim)
            return
        try:
            stored = await self._guard.ask(
                lambda: self.store.put(
                    claim.key,
                    payload,
                    ttl_s=ttl_s,
                    stale_s=stale_s,
                    tags=sorted(tags),
                    lease=claim.token,
                    size_bytes=size_bytes,
                ),
                claim,
            )
        except StoreUnavailable:
            return
        except asyncio.CancelledError:
            self._give_up(claim)
            raise
        self._stored += stored
        self._refused += not stored

    def release(self, claim: Claim[T]) -> None:
        """Give up the lease of a claim whose value will not be shared; the store is told in the background."""
        if claim.token:
            self._give_up(claim)

    # -- groups: small collections beside the values --------------------------------------------------------------------

    async def members(self, group: str, *, timeout_s: float = 5.0) -> Mapping[str, bytes] | None:
        """What every process added to `group`; None while the store is away. Not for the path of a request."""
        try:
            return await self._guard.ask(lambda: self.store.members(group), Budget(timeout_s))
        except StoreUnavailable:
            return None

    async def add_member(self, group: str, member: str, payload: bytes, *, ttl_s: float) -> None:
        """Add to `group` for all processes; not kept while the store is away."""
        try:
            await self._guard.ask(
                lambda: self.store.add_member(group, member, payload, ttl_s=ttl_s)
            )
        except StoreUnavailable:
            pass  # counted; the group only saves work

    async def remove_members(self, group: str, members: Collection[str]) -> None:
        try:
            await self._guard.ask(lambda: self.store.remove_members(group, members))
        except StoreUnavailable:
            pass  # counted; whoever meets the member again removes it

    # -- invalidation -------------------------------------------------------------------------------------------------

    async def invalidate(self, what: Invalidation) -> int:
        """Forget `what` in the store and tell every process; entries deleted.

        While the store is away, and until it has heard, nothing is read from it; then 0 is returned.
        """
        return await self._invalidations.tell(what)

    def listen(self, on_invalidation: Callable[[Invalidation], None]) -> None:
        """Call back for what other processes invalidate, from now to `aclose`; does nothing when called again."""
        self._invalidations.listen(on_invalidation)

    async def aclose(self) -> None:
        await self._tasks.aclose()
        await self.store.aclose()

    def statistics(self) -> SharedLevelStatistics:
        return SharedLevelStatistics(
            hits=self._hits,
            misses=self._misses,
            stale=self._stale,
            skipped=self._guard.skipped,
            errors=self._guard.errors,
            timeouts=self._guard.timeouts,
            stored=self._stored,
            refused=self._refused,
            unserialisable=self._unserialisable,
            lease_waits=self._lease_waits,
            invalidations_pending=len(self._invalidations),
            breaker=self._guard.state.value,
        )

    # -- the store ----------------------------------------------------------------------------------------------------

    async def _read(self, claim: Claim[T], *, waited: bool) -> Found[T] | None:
        if self._invalidations:
            raise self._guard.skip("the store has not heard of every invalidation yet")
        stored: Stored | None = await self._guard.ask(lambda: self.store.get(claim.key), claim)
        if stored is None:
            self._misses += 1
            return None
        try:
            value = self._codec.decode(stored.payload)
        except NotSerialisable as error:
            self._unserialisable += 1
            self._misses += 1
            self._guard.warn_once("bytes of a value", error)
            return None
        if stored.fresh_s > 0:
            self._hits += 1
        else:
            self._stale += 1
        return Found(value, stored.fresh_s, stored.ttl_s, frozenset(stored.tags), waited)

    async def _lease(self, claim: Claim[T]) -> bool:
        self._claims += 1
        token = claim.token = f"{self.name}/{self._claims}"
        try:
            taken = await self._guard.ask(
                lambda: self.store.take_lease(claim.key, token, self._lease_s), claim
            )
        except asyncio.CancelledError:
            # The store may have heard the question: nobody must wait for one who has left.
            self._give_up(claim)
            raise
        except StoreUnavailable:
            claim.token = ""
            raise
        if not taken:
            claim.token = ""
        return taken

    async def _renew(self, claim: Claim[T]) -> None:
        try:
            await self._guard.ask(
                lambda: self.store.extend_lease(claim.key, claim.token, self._lease_s)
            )
        except StoreUnavailable:
            pass  # counted; the lease lapses and another process may compute too

    def _give_up(self, claim: Claim[T]) -> None:
        token, claim.token = claim.token, ""
        self._tasks.start(self._end_lease(claim.key, token), "lease")

    async def _end_lease(self, key: str, token: str) -> None:
        try:
            await self._guard.ask(lambda: self.store.end_lease(key, token))
        except StoreUnavailable:
            pass  # counted; the lease lapses by itself
