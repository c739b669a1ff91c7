"""A `CacheStore` in this process's memory: level 2 for several layers of one process, and the heart of the virtual one.

It never suspends, so every operation is atomic; what a network adds is added around it (`simulation/models/cache_server.py`).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection, Mapping

import msgspec

from reference_impl.caches.glob import compile_glob
from reference_impl.caches.memory_cache import MemoryCache, MemoryCacheStatistics, MemoryEntry
from reference_impl.caches.port import Invalidation, Stored

__all__ = ["MemoryStore"]


class _Value(msgspec.Struct, frozen=True):
    payload: bytes
    fresh_until_s: float
    ttl_s: float
    tags: tuple[str, ...]


class _Lease(msgspec.Struct, frozen=True):
    token: str
    until_s: float


class MemoryStore:
    """Bytes by key, at most `max_bytes`, least recently used out first."""

    def __init__(self, max_bytes: int = 256 * 1024 * 1024) -> None:
        self._values: MemoryCache[_Value] = MemoryCache(max_bytes)
        self._leases: dict[str, _Lease] = {}
        self._groups: dict[str, tuple[float, dict[str, bytes]]] = {}
        self._listeners: dict[int, Callable[[Invalidation], None]] = {}
        self._listeners_ever = 0

    async def get(self, key: str) -> Stored | None:
        now_s = _now_s()
        entry = self._values.find(key, now_s)
        if entry is None:
            return None
        value = entry.value
        return Stored(value.payload, value.fresh_until_s - now_s, value.ttl_s, value.tags)

    async def put(
        self,
        key: str,
        payload: bytes,
        *,
        ttl_s: float,
        stale_s: float = 0.0,
        tags: Collection[str] = (),
        lease: str = "",
        size_bytes: int = 0,
    ) -> bool:
        now_s = _now_s()
        if lease:
            held = self._leases.get(key)
            if held is None or held.token != lease or held.until_s <= now_s:
                return False
            del self._leases[key]
        fresh_until_s = now_s + ttl_s
        return self._values.put(
            key,
            MemoryEntry(
                _Value(payload, fresh_until_s, ttl_s, tuple(tags)),
                size_bytes=max(len(payload), size_bytes),
                refresh_from_s=fresh_until_s,
                fresh_until_s=fresh_until_s,
                stale_until_s=fresh_until_s + stale_s,
                tags=frozenset(tags),
            ),
        )

    async def take_lease(self, key: str, token: str, lease_s: float) -> bool:
        now_s = _now_s()
        held = self._leases.get(key)
        if held is not None and held.until_s > now_s:
            return False
        self._leases[key] = _Lease(token, now_s + lease_s)
        return True

    async def extend_lease(self, key: str, token: str, lease_s: float) -> bool:
        now_s = _now_s()
        held = self._leases.get(key)
        if held is None or held.token != token or held.until_s <= now_s:
            return False
        self._leases[key] = _Lease(token, now_s + lease_s)
        return True

    async def end_lease(self, key: str, token: str) -> None:
        held = self._leases.get(key)
        if held is not None and held.token == token:
            del self._leases[key]

    async def invalidate(self, what: Invalidation) -> int:
        if what.kind == "tag":
            doomed = self._values.keys_where(lambda _, tags: what.target in tags)
        else:
            matches = compile_glob(what.target).fullmatch
            doomed = self._values.keys_where(lambda key, _: matches(key) is not None)
            for key in [key for key in self._leases if matches(key)]:
                del self._leases[key]
        for key in doomed:
            self._leases.pop(key, None)
            self._values.discard(key)
        for listener in list(self._listeners.values()):
            listener(what)
        return len(doomed)

    async def listen(
        self, on_invalidation: Callable[[Invalidation], None], on_ready: Callable[[], None]
    ) -> None:
        self._listeners_ever += 1
        number = self._listeners_ever
        self._listeners[number] = on_invalidation
        try:
            on_ready()
            await asyncio.get_running_loop().create_future()
        finally:
            del self._listeners[number]

    async def add_member(self, group: str, member: str, payload: bytes, *, ttl_s: float) -> None:
        now_s = _now_s()
        until_s, members = self._groups.get(group, (-math.inf, {}))
        if until_s <= now_s:
            members = {}
        members[member] = payload
        self._groups[group] = (max(until_s, now_s + ttl_s), members)

    async def remove_members(self, group: str, members: Collection[str]) -> None:
        _, held = self._groups.get(group, (0.0, {}))
        for member in members:
            held.pop(member, None)

    async def members(self, group: str) -> Mapping[str, bytes]:
        until_s, members = self._groups.get(group, (-math.inf, {}))
        return dict(members) if until_s > _now_s() else {}

    def clear(self) -> None:
        """Forget everything, as a server without persistence does when it restarts."""
        self._values.discard_where(lambda _, __: True)
        self._leases.clear()
        self._groups.clear()

    def statistics(self) -> MemoryCacheStatistics:
        return self._values.statistics()

    async def aclose(self) -> None:
        """Nothing is held beyond this object."""


def _now_s() -> float:
    return asyncio.get_running_loop().time()
