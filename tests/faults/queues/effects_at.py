"""The store of effects that a URL stands for. A scheme more is a line here, and every fault of this folder is played over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from reference_impl.queues.effects import EffectStatistics, EffectStore
from reference_impl.queues.redis_effects import RedisEffects

__all__ = ["AuditedEffects", "effects_at"]


class AuditedEffects(EffectStore, Protocol):
    """An `EffectStore` that shows its books. Every call may raise EffectsUnavailable."""

    async def effect(self, key: str) -> bytes | None:
        """What was recorded under `key`."""
        ...

    async def statistics(self) -> EffectStatistics: ...


def _redis(url: str, name: str) -> AuditedEffects:
    return RedisEffects(url, name=name)


_STORES: Final[dict[str, Callable[[str, str], AuditedEffects]]] = {"redis": _redis}


def effects_at(url: str, name: str) -> AuditedEffects:
    """The effects of the queue `name` in the store at `url`."""
    return _STORES[url.partition("://")[0]](url, name)
