"""The provider's prompt cache: prefixes that were seen lately cost less and are read faster.

Entries are named by a digest of the prefix, its account and its model; they live for 5 minutes or an hour, renewed by use,
and can be read once the call that wrote them has answered its first token.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from simulation.scenario.endpoint import PromptCacheSpec

__all__ = ["CacheSplit", "PromptCache", "PromptPrefix"]


class PromptPrefix(msgspec.Struct, frozen=True):
    """A prefix of a prompt up to the end of one block.

    `tokens` counts from the start of the prompt. `mark`: the request asked for this prefix to be cached; `long`: for an
    hour. Prefixes without a mark can only be read.
    """

    name: bytes
    tokens: int
    mark: bool = False
    long: bool = False


class CacheSplit(msgspec.Struct, frozen=True):
    """Where the tokens of a prompt come from: read from the cache, written to it (5 minutes, 1 hour), or neither."""

    read: int = 0
    written_5m: int = 0
    written_1h: int = 0
    to_store: tuple[PromptPrefix, ...] = ()


class _Entry(msgspec.Struct):
    available_s: float
    expires_s: float
    ttl_s: float


class PromptCache:
    """Prefixes in order of last use; the oldest go when `max_entries` are held."""

    def __init__(self, spec: PromptCacheSpec, speedup: float) -> None:
        self._ttl_s = spec.ttl_s / speedup
        self._long_ttl_s = spec.long_ttl_s / speedup
        self._max_entries = spec.max_entries
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def split(self, prefixes: Sequence[PromptPrefix], min_tokens: int, now: float) -> CacheSplit:
        """What the longest known prefix saves, and what the marks behind it write.

        `prefixes` from short to long. Those under `min_tokens` are neither read nor written.
        """
        long_enough = [p for p in prefixes if p.tokens >= min_tokens]
        read = 0
        for prefix in reversed(long_enough):
            entry = self._entries.get(prefix.name)
            if entry is None:
                continue
            if now >= entry.expires_s:
                del self._entries[prefix.name]
            elif now >= entry.available_s:
                entry.expires_s = now + entry.ttl_s
                self._entries.move_to_end(prefix.name)
                read = prefix.tokens
                break
        written = {False: 0, True: 0}
        reached = read
        to_store = []
        for prefix in long_enough:
            if prefix.mark and prefix.tokens > reached:
                written[prefix.long] += prefix.tokens - reached
                reached = prefix.tokens
                to_store.append(prefix)
        return CacheSplit(read, written[False], written[True], tuple(to_store))

    def store(self, split: CacheSplit, available_s: float) -> None:
        """Keep the prefixes that `split` said are written."""
        for prefix in split.to_store:
            ttl_s = self._long_ttl_s if prefix.long else self._ttl_s
            known = self._entries.pop(prefix.name, None)
            # Two calls that write the same prefix at once: the first to answer makes it readable.
            readable_s = available_s if known is None else min(available_s, known.available_s)
            self._entries[prefix.name] = _Entry(readable_s, available_s + ttl_s, ttl_s)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)
