"""What makes a task that runs twice take effect once.

A queue delivers at least once, so a task may run again: its worker died, or lost its lease. Its *effect* is what `finish`
records under the task's idempotency key, and only the first record counts. A ledger implements this port by making the debit
and the record one transaction (insert unless the key exists); a handler that returns its result and leaves recording to the
store then needs no care of its own.

`begin` counts the runs before they happen, so that what a crash made again is known as waste afterwards: the runs of a key
beyond its first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

import msgspec

__all__ = ["Begun", "EffectStatistics", "EffectStore", "EffectsUnavailable", "MemoryEffects"]

DAY_S = 86_400.0  # Stripe keeps idempotency keys for 24 hours


class EffectsUnavailable(Exception):
    """The store did not answer; the effect may or may not have been recorded. Asking again is safe."""


class Begun(msgspec.Struct, frozen=True):
    """`runs` of this key including the one that begins; `effect` is what was recorded already, or None: do the work."""

    runs: int
    effect: bytes | None = None


class EffectStatistics(msgspec.Struct, frozen=True):
    """Keys that took effect, and runs that were begun: retries and what a crash made again are among them."""

    effects: int
    runs: int


class EffectStore(Protocol):
    """Remembers effects by idempotency key. Every call may raise EffectsUnavailable."""

    async def begin(self, key: str) -> Begun:
        """A run of `key` is about to start; counts it unless the effect is recorded already."""
        ...

    async def finish(self, key: str, effect: bytes) -> bool:
        """Record the effect of `key` unless there is one; atomically. Returns whether it is this one."""
        ...

    async def aclose(self) -> None: ...


class MemoryEffects:
    """Effects of one process, the latest `max_keys`, each for `ttl_s`. Duplicates that come later run again."""

    def __init__(self, *, max_keys: int = 100_000, ttl_s: float = DAY_S) -> None:
        if max_keys < 1 or ttl_s <= 0:
            raise ValueError(f"max_keys ({max_keys}) and ttl_s ({ttl_s}) must be positive")
        self._max_keys = max_keys
        self._ttl_s = ttl_s
        self._runs: OrderedDict[str, int] = OrderedDict()
        self._effects: OrderedDict[str, tuple[float, bytes]] = OrderedDict()
        self._totals = [0, 0]

    async def begin(self, key: str) -> Begun:
        effect = self.effect(key)
        if effect is not None:
            return Begun(self._runs.get(key, 1), effect)
        runs = self._runs[key] = self._runs.get(key, 0) + 1
        self._totals[1] += 1
        if len(self._runs) > self._max_keys:
            self._runs.popitem(last=False)
        return Begun(runs)

    async def finish(self, key: str, effect: bytes) -> bool:
        if self.effect(key) is not None:
            return False
        self._effects[key] = (asyncio.get_running_loop().time() + self._ttl_s, effect)
        self._totals[0] += 1
        if len(self._effects) > self._max_keys:
            self._effects.popitem(last=False)
        return True

    def effect(self, key: str) -> bytes | None:
        """What was recorded under `key`."""
        kept = self._effects.get(key)
        if kept is None:
            return None
        if asyncio.get_running_loop().time() >= kept[0]:
            del self._effects[key]
            self._runs.pop(key, None)
            return None
        return kept[1]

    def statistics(self) -> EffectStatistics:
        return EffectStatistics(*self._totals)

    async def aclose(self) -> None:
        """Nothing is held beyond this object."""
