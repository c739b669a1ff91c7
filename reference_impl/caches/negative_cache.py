"""Failures worth remembering: the same key would fail in the same way again, so it need not be tried for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from reference_impl.caches.memory_cache import MemoryCache, MemoryEntry

__all__ = ["NegativeCache"]

# A failure is an exception with its message; the bounds keep a flood of distinct bad keys in check.
_MAX_ENTRIES: Final = 10_000
_MAX_BYTES: Final = 16 * 1024 * 1024


class NegativeCache:
    """Exceptions by key, each for `ttl_s` of the loop's clock; with 0 nothing is remembered."""

    def __init__(self, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._errors: MemoryCache[Exception] = MemoryCache(_MAX_BYTES, _MAX_ENTRIES)
        self.hits = 0

    def raise_remembered(self, key: str, now_s: float) -> None:
        """Raise again what `key` failed with."""
        if self._ttl_s <= 0:
            return
        entry = self._errors.find(key, now_s)
        if entry is not None:
            self.hits += 1
            raise entry.value.with_traceback(None)

    def remember(self, key: str, error: Exception, now_s: float) -> None:
        if self._ttl_s <= 0:
            return
        until_s = now_s + self._ttl_s
        self._errors.put(
            key,
            MemoryEntry(
                error,
                size_bytes=len(str(error)),
                refresh_from_s=until_s,
                fresh_until_s=until_s,
                stale_until_s=until_s,
            ),
        )

    def discard(self, key: str) -> None:
        self._errors.discard(key)

    def discard_where(self, matches: Callable[[str, frozenset[str]], bool]) -> None:
        """Forget the failures of the keys that match; a failure carries no tags."""
        self._errors.discard_where(matches)
