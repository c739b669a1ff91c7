"""Invalidations on their way to the store and from it: what the store could not hear is remembered and told again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from reference_impl.caches.background import BackgroundTasks
from reference_impl.caches.port import CacheStore, Invalidation, StoreUnavailable
from reference_impl.caches.store_guard import Budget, StoreGuard

__all__ = ["MAX_PENDING", "Invalidations"]

# Beyond so many, everything is invalidated instead.
MAX_PENDING: Final = 1000
_RETRY_S: Final = 0.5


class Invalidations:
    """Tells `store` what process `name` invalidates, and `name` what others do.

    `timeout_s` bounds one telling: a pattern walks through every key of the store, a million in about a second.
    """

    def __init__(
        self,
        name: str,
        store: CacheStore,
        guard: StoreGuard,
        tasks: BackgroundTasks,
        *,
        timeout_s: float = 30.0,
    ) -> None:
        self._name = name
        self._store = store
        self._guard = guard
        self._tasks = tasks
        self._timeout_s = timeout_s
        self._pending: dict[Invalidation, None] = {}
        self._replay: asyncio.Task[object] | None = None
        self._listener: asyncio.Task[object] | None = None

    def __len__(self) -> int:
        """How many the store has not heard of: until it has, it may hold what is invalid, and must not be read."""
        return len(self._pending)

    async def tell(self, what: Invalidation) -> int:
        """Entries deleted; 0 where the store is away, and is to be told when it is back."""
        try:
            return await self._ask(what)
        except StoreUnavailable:
            if len(self._pending) >= MAX_PENDING:
                self._pending.clear()
                what = Invalidation("pattern", "*", self._name)
            self._pending[what] = None
            if self._replay is None or self._replay.done():
                self._replay = self._tasks.start(self._tell_pending(), "replay")
            return 0

    def listen(self, on_invalidation: Callable[[Invalidation], None]) -> None:
        """Call back for what other processes invalidate, from now on; does nothing when called again."""
        if self._listener is None:
            self._listener = self._tasks.start(self._listen(on_invalidation), "invalidations")

    async def _ask(self, what: Invalidation) -> int:
        return await self._guard.ask(partial(self._store.invalidate, what), Budget(self._timeout_s))

    async def _tell_pending(self) -> None:
        while self._pending:
            what = next(iter(self._pending))
            try:
                await self._ask(what)
            except StoreUnavailable:
                await asyncio.sleep(_RETRY_S)
            else:
                self._pending.pop(what, None)

    async def _listen(self, on_invalidation: Callable[[Invalidation], None]) -> None:
        def heard(what: Invalidation) -> None:
            if what.origin != self._name:
                on_invalidation(what)

        while True:
            try:
                await self._store.listen(heard, lambda: None)
            except StoreUnavailable:
                pass  # the guard tells of the outage; what is missed meanwhile ends with the TTL of L1
            await asyncio.sleep(_RETRY_S)
