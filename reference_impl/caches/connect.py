"""From a deployment's description to the store that its gateways share. The driver is loaded only where it is asked for."""

from __future__ import annotations

import importlib.util
from typing import Final
from urllib.parse import urlsplit

from reference_impl.caches.port import CacheError, CacheStore
from reference_impl.deployment import CacheSpec

__all__ = ["URL_VARIABLE", "BadStoreUrl", "store_of"]

# The URL may hold a password, so it comes through the environment and is in no file and no process list.
URL_VARIABLE: Final = "TWINLOAD_REDIS"

_SCHEMES = ("redis", "rediss", "unix")


class BadStoreUrl(CacheError, ValueError):
    """The store cannot be named like this, or its driver is missing: one line for people, without the password."""


def store_of(spec: CacheSpec, url: str) -> CacheStore | None:
    """The store that a cache wants to share, at `url`; None for none. Connects at its first use. Raises BadStoreUrl."""
    if not spec.enabled or spec.shared == "none":
        return None
    expected = f"set {URL_VARIABLE} to redis://[user:password@]host:port/db (or rediss://, unix://)"
    if not url:
        raise BadStoreUrl(f"cache.shared is {spec.shared}: {expected}")
    if importlib.util.find_spec("redis") is None:
        raise BadStoreUrl(
            "cache.shared needs redis-py: install the extra `caches` (pip install 'twinload[caches]')"
        )
    from reference_impl.caches.redis_store import RedisStore

    try:
        # What the driver says of a bad URL may quote it, password and all.
        parts = urlsplit(url)
        if parts.scheme not in _SCHEMES or (parts.scheme != "unix" and not parts.hostname):
            raise ValueError
        return RedisStore(url)
    except ValueError:
        raise BadStoreUrl(f"{URL_VARIABLE} is no URL of a Redis: {expected}") from None
