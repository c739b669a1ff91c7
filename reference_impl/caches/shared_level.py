"""Level 2 as a look-up may use it: never an error, never longer than stated.

This is the only caller of a `CacheStore`. It serialises values, bounds the time that one look-up may spend on the store,
opens a breaker when the store is away, holds the lease that makes one process of many compute, and remembers the
invalidations that the store did not hear, so that what was invalid before an outage is not served after it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Final, Generic, TypeVar

from reference_impl.caches.background import BackgroundTasks
from reference_impl.caches.codec import Codec, MsgpackCodec
from reference_impl.caches.port import (
    CacheError,
    CacheStore,
    Invalidation,
    NotSerialisable,
    Stored,
    StoreRefused,
    StoreUnavailable,
)
from reference_impl.caches.statistics import SharedLevelStatistics
from reference_impl.overload.breaker import BreakerState, CircuitBreaker
from reference_impl.overload.jitter import Uniform, hashed_uniform

__all__ = ["Claim", "Found", "SharedLevel"]

T = TypeVar("T")
R = TypeVar("R")

logger = logging.getLogger(__name__)

_FIRST_POLL_S: Final = 0.005
_LONGEST_POLL_S: Final = 0.2
_RECONNECT_S: Final = 0.5
_REPLAY_TIMEOUT_S: Final = 5.0
_MAX_PENDING_INVALIDATIONS: Final = 1000


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


class Claim(Generic[T]):
    """The right, or without a `token` the mere need, to compute `key`. `stale`: what to give if that fails.

    `remaining_s` is what this look-up may still spend on the store.
    """

    __slots__ = ("key", "remaining_s", "stale", "token")

    def __init__(self, key: str, remaining_s: float) -> None:
        self.key = key
        self.remaining_s = remaining_s
        self.stale: Found[T] | None = None
        self.token = ""


class SharedLevel(Generic[T]):
    """A `CacheStore` behind a codec, a time-out and a breaker.

    Args:
        store: where the bytes are.
        name: of this process among those that share the store; unique, it marks leases and messages.
        codec: values to bytes and back; by default MessagePack of plain data.
        timeout_s: the longest that one look-up waits for the store, over all its steps.
        breaker: makes the breaker, given its listener; the default opens after five failures in a row, or when half of
            the last ten seconds failed, and asks again after a second or a little more.
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
        breaker: Callable[[Callable[[float, BreakerState, BreakerState], None]], CircuitBreaker]
        | None = None,
        uniform: Uniform | None = None,
        lease_s: float = 5.0,
        lease_wait_s: float = 60.0,
        on_breaker_change: Callable[[float, BreakerState, BreakerState], None] | None = None,
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
        self._breaker = (breaker or _default_breaker)(self._breaker_changed)
        self._uniform = hashed_uniform(0) if uniform is None else uniform
        self._lease_s = lease_s
        self._lease_wait_s = lease_wait_s
        self._on_breaker_change = on_breaker_change
        self._tasks = BackgroundTasks("cache")
        self._listener: asyncio.Task[object] | None = None
        self._replay: asyncio.Task[object] | None = None
        self._pending: dict[Invalidation, None] = {}
        self._last_error = ""
        self._paused_until_s = -math.inf
        self._claims = 0
        self._warned: set[str] = set()
        self._hits = self._misses = self._stale = self._skipped = self._errors = 0
        self._timeouts = self._stored = self._refused = self._unserialisable = 0
        self._lease_waits = 0

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
            self._tasks.start(self._give_up(claim), "lease")
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
            self._warn_once(f"type {type(value).__name__}", error)
            self._tasks.start(self._give_up(claim), "lease")
            return
        try:
            stored = await self._ask(
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
        self._stored += stored
        self._refused += not stored

    async def release(self, claim: Claim[T]) -> None:
        """Give up the lease of a claim whose value will not be shared."""
        if claim.token:
            await self._give_up(claim)

    # -- groups: small collections beside the values --------------------------------------------------------------------

    async def members(self, group: str, *, timeout_s: float = 5.0) -> Mapping[str, bytes] | None:
        """What every process added to `group`; None while the store is away. Not for the path of a request."""
        try:
            return await self._ask(lambda: self.store.members(group), Claim[T]("", timeout_s))
        except StoreUnavailable:
            return None

    async def add_member(self, group: str, member: str, payload: bytes, *, ttl_s: float) -> None:
        """Add to `group` for all processes; not kept while the store is away."""
        try:
            await self._ask(
                lambda: self.store.add_member(group, member, payload, ttl_s=ttl_s),
                Claim[T]("", self.timeout_s),
            )
        except StoreUnavailable:
            pass  # counted; the group only saves work

    async def remove_members(self, group: str, members: Collection[str]) -> None:
        try:
            await self._ask(
                lambda: self.store.remove_members(group, members), Claim[T]("", self.timeout_s)
            )
        except StoreUnavailable:
            pass  # counted; whoever meets the member again removes it

    # -- invalidation -------------------------------------------------------------------------------------------------

    async def invalidate(self, what: Invalidation, *, timeout_s: float = 5.0) -> int:
        """Forget `what` in the store and tell every process; entries deleted.

        While the store is away, and until it has heard, nothing is read from it; then 0 is returned at once.
        """
        claim = Claim[T]("", timeout_s)
        try:
            return await self._ask(lambda: self.store.invalidate(what), claim)
        except StoreUnavailable:
            if len(self._pending) >= _MAX_PENDING_INVALIDATIONS:
                self._pending.clear()
                what = Invalidation("pattern", "*", self.name)
            self._pending[what] = None
            if self._replay is None or self._replay.done():
                self._replay = self._tasks.start(self._replay_invalidations(), "replay")
            return 0

    def listen(self, on_invalidation: Callable[[Invalidation], None]) -> None:
        """Call back for what other processes invalidate, from now to `aclose`; does nothing when called again."""
        if self._listener is None:
            self._listener = self._tasks.start(self._listen(on_invalidation), "invalidations")

    async def aclose(self) -> None:
        await self._tasks.aclose()
        await self.store.aclose()

    def statistics(self) -> SharedLevelStatistics:
        return SharedLevelStatistics(
            hits=self._hits,
            misses=self._misses,
            stale=self._stale,
            skipped=self._skipped,
            errors=self._errors,
            timeouts=self._timeouts,
            stored=self._stored,
            refused=self._refused,
            unserialisable=self._unserialisable,
            lease_waits=self._lease_waits,
            invalidations_pending=len(self._pending),
            breaker=self._breaker.state.value,
        )

    # -- the store ----------------------------------------------------------------------------------------------------

    async def _read(self, claim: Claim[T], *, waited: bool) -> Found[T] | None:
        if self._pending:
            self._skipped += 1
            raise StoreUnavailable("the store has not heard of every invalidation yet")
        stored: Stored | None = await self._ask(lambda: self.store.get(claim.key), claim)
        if stored is None:
            self._misses += 1
            return None
        try:
            value = self._codec.decode(stored.payload)
        except NotSerialisable as error:
            self._unserialisable += 1
            self._misses += 1
            self._warn_once("bytes of a value", error)
            return None
        if stored.fresh_s > 0:
            self._hits += 1
        else:
            self._stale += 1
        return Found(value, stored.fresh_s, stored.ttl_s, frozenset(stored.tags), waited)

    async def _lease(self, claim: Claim[T]) -> bool:
        self._claims += 1
        token = f"{self.name}/{self._claims}"
        if await self._ask(lambda: self.store.take_lease(claim.key, token, self._lease_s), claim):
            claim.token = token
            return True
        return False

    async def _renew(self, claim: Claim[T]) -> None:
        try:
            await self._ask(
                lambda: self.store.extend_lease(claim.key, claim.token, self._lease_s),
                Claim[T](claim.key, self.timeout_s),
            )
        except StoreUnavailable:
            pass  # counted; the lease lapses and another process may compute too

    async def _give_up(self, claim: Claim[T]) -> None:
        token, claim.token = claim.token, ""
        try:
            await self._ask(
                lambda: self.store.end_lease(claim.key, token), Claim[T](claim.key, self.timeout_s)
            )
        except StoreUnavailable:
            pass  # counted; the lease lapses by itself

    async def _ask(self, operation: Callable[[], Awaitable[R]], claim: Claim[T]) -> R:
        """One question to the store, within what `claim` may still spend; raises only StoreUnavailable."""
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        may_ask = claim.remaining_s > 0 and asked_s >= self._paused_until_s
        permit = self._breaker.try_acquire(asked_s) if may_ask else 0
        if not permit:
            self._skipped += 1
            raise StoreUnavailable(
                "not asked: no time left, a pause after a time-out, or the breaker is open"
            )
        try:
            async with asyncio.timeout_at(asked_s + claim.remaining_s):
                answer = await operation()
        except (StoreUnavailable, TimeoutError) as error:
            now_s = loop.time()
            claim.remaining_s = 0.0
            self._errors += 1
            if isinstance(error, StoreRefused):
                self._breaker.succeeded(permit, now_s)
                self._warn_once("refused", error)
                raise
            if isinstance(error, TimeoutError):
                self._timeouts += 1
                # Who has just waited in vain, and everyone else, goes on at once instead of waiting in vain again.
                self._paused_until_s = now_s + self.timeout_s
                error = StoreUnavailable(f"no answer within {now_s - asked_s:.3f} s")
            self._last_error = str(error)
            openings = self._breaker.statistics().openings
            luck = self._uniform(f"cache breaker {self.name}", openings, 0)
            self._breaker.failed(permit, now_s, luck)
            raise error
        except BaseException:
            self._breaker.abandoned(permit)
            raise
        now_s = loop.time()
        claim.remaining_s -= now_s - asked_s
        self._breaker.succeeded(permit, now_s)
        return answer

    async def _listen(self, on_invalidation: Callable[[Invalidation], None]) -> None:
        def heard(what: Invalidation) -> None:
            if what.origin != self.name:
                on_invalidation(what)

        while True:
            try:
                await self.store.listen(heard, lambda: None)
            except StoreUnavailable:
                pass  # the breaker tells of the outage; what is missed meanwhile ends with the TTL of L1
            await asyncio.sleep(_RECONNECT_S)

    async def _replay_invalidations(self) -> None:
        while self._pending:
            what = next(iter(self._pending))
            try:
                await self._ask(
                    partial(self.store.invalidate, what), Claim[T]("", _REPLAY_TIMEOUT_S)
                )
            except StoreUnavailable:
                await asyncio.sleep(_RECONNECT_S)
            else:
                self._pending.pop(what, None)

    def _breaker_changed(self, now_s: float, old: BreakerState, new: BreakerState) -> None:
        if new is BreakerState.OPEN and old is BreakerState.CLOSED:
            logger.warning(
                "cache store away (%s): going on without it, asking again in %.1f s",
                self._last_error,
                self._breaker.retry_after_s(now_s),
            )
        elif new is BreakerState.CLOSED:
            logger.warning("cache store is back")
        if self._on_breaker_change is not None:
            self._on_breaker_change(now_s, old, new)

    def _warn_once(self, subject: str, error: CacheError) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            logger.warning("not shared: %s", error)


def _default_breaker(
    on_change: Callable[[float, BreakerState, BreakerState], None],
) -> CircuitBreaker:
    return CircuitBreaker(
        max_failures_in_row=5,
        open_s=1.0,
        open_max_s=10.0,
        probes=2,
        on_change=on_change,
    )
