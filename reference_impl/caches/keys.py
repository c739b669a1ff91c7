"""Cache keys: a digest of the canonical parts, so that no two different requests can share a key by how text is glued."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from reference_impl.caches.port import InvalidCacheKey

__all__ = ["MAX_KEY_LENGTH", "cache_key", "check_key"]

MAX_KEY_LENGTH: Final = 1024


def cache_key(*parts: object, tenant: str = "") -> str:
    """Hex digest (128 bits of blake2b) of `parts`, scoped to `tenant`.

    The parts are JSON-able values (strings, numbers, lists, mappings, msgspec structs); mappings are equal whatever their
    order. `cache_key("ab", "c") != cache_key("a", "bc")`. Raises InvalidCacheKey for a part without a canonical form.
    """
    try:
        canonical = msgspec.json.encode([tenant, *parts], order="deterministic")
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidCacheKey(
            f"a part of the cache key has no canonical form: {error}: use JSON-able values"
        ) from error
    return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def check_key(key: str) -> None:
    """Raise InvalidCacheKey unless `key` is a string of 1 to `MAX_KEY_LENGTH` characters."""
    if not isinstance(key, str):
        raise InvalidCacheKey(f"a cache key is a string, not {type(key).__name__}: {key!r:.60}")
    if not key:
        raise InvalidCacheKey("the cache key is empty")
    if len(key) > MAX_KEY_LENGTH:
        raise InvalidCacheKey(
            f"the cache key {key[:24]!r}... has {len(key):,} characters, at most {MAX_KEY_LENGTH:,} are kept: "
            "use the digest that cache_key(...) makes of its parts"
        )
