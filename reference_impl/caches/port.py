"""The port to a cache that several processes share (level 2), and the errors of this folder.

A store keeps opaque bytes under a key for a time. It also holds leases, so that one process of many computes a missing
value, and carries invalidations to every process. It raises `StoreUnavailable` when it cannot answer, and nothing else that
a caller must expect: what an outage means for a request is decided in `shared_level.py`, once for all stores.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Literal, Protocol

import msgspec

__all__ = [
    "CacheError",
    "CacheStore",
    "InvalidCacheKey",
    "Invalidation",
    "NotSerialisable",
    "PatternTooBroad",
    "StoreRefused",
    "StoreUnavailable",
    "Stored",
]


class CacheError(Exception):
    """Root of the errors of the caches."""


class InvalidCacheKey(CacheError, ValueError):
    """The key is empty, not a string, or too long to be kept a million times."""


class PatternTooBroad(CacheError, ValueError):
    """The pattern matches every key, and nothing said that this is meant."""


class NotSerialisable(CacheError, TypeError):
    """The codec cannot turn a value into bytes, or bytes into a value."""


class StoreUnavailable(CacheError):
    """The store did not answer: refused, lost, out of memory or too late. The cause is chained."""


class StoreRefused(StoreUnavailable):
    """The store answered, and would not do it: out of memory, read only, not permitted. Others of its answers may help."""


class Stored(msgspec.Struct, frozen=True):
    """What a store holds under a key.

    `fresh_s` is the time for which the value may still be served; zero or less: only in place of a failure.
    `ttl_s` and `tags` are what it was stored with: a reader can tell its age, and heed an invalidation of a tag.
    """

    payload: bytes
    fresh_s: float
    ttl_s: float
    tags: tuple[str, ...] = ()


class Invalidation(msgspec.Struct, frozen=True):
    """Entries to forget: the keys that match a glob `pattern` (see `glob.py`), or those that carry a tag.

    `origin` names the layer that asked, so that it does not act on its own message twice.
    """

    kind: Literal["pattern", "tag"]
    target: str
    origin: str = ""


class CacheStore(Protocol):
    """A cache behind a network, or a model of one. Times are seconds; keys are at most `keys.MAX_KEY_LENGTH` characters."""

    async def get(self, key: str) -> Stored | None:
        """The value under `key`, fresh or stale, or None."""
        ...

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
        """Keep `payload` fresh for `ttl_s` (> 0), then stale for `stale_s` more.

        `size_bytes` is what the value weighs where its payload is a stand-in (virtual time); real stores weigh the payload.

        With the token of a `lease`, the value is stored only if that lease still stands, and the lease ends with it: an
        invalidation takes leases too, so a value that was computed before an invalidation is never stored after it
        (Nishtala et al., Scaling Memcache at Facebook, NSDI 2013, section 3.2.1). Returns whether it was stored.
        """
        ...

    async def take_lease(self, key: str, token: str, lease_s: float) -> bool:
        """Become the one that computes `key` for `lease_s`; False while anyone holds its lease."""
        ...

    async def extend_lease(self, key: str, token: str, lease_s: float) -> bool:
        """Hold the lease of `token` for `lease_s` from now; False if it has ended: what was taken away stays taken."""
        ...

    async def end_lease(self, key: str, token: str) -> None:
        """Give up the lease of `token`, if it still stands."""
        ...

    async def invalidate(self, what: Invalidation) -> int:
        """Delete the entries and leases that `what` names, announce it to every listener; returns the entries deleted."""
        ...

    async def listen(
        self, on_invalidation: Callable[[Invalidation], None], on_ready: Callable[[], None]
    ) -> None:
        """Call back for every invalidation announced from `on_ready()` on; ends only by cancellation or an error."""
        ...

    async def add_member(self, group: str, member: str, payload: bytes, *, ttl_s: float) -> None:
        """Keep `payload` as `member` of `group`; the group lives for `ttl_s` from its last addition."""
        ...

    async def remove_members(self, group: str, members: Collection[str]) -> None:
        """Forget these members; unknown ones are no error."""
        ...

    async def members(self, group: str) -> Mapping[str, bytes]:
        """Every member of `group`; empty where there is none."""
        ...

    async def aclose(self) -> None:
        """Release connections; the store is not used afterwards."""
        ...
