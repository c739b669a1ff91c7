"""Where a swarm sends its requests: the address of something that speaks the Messages API."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

__all__ = ["API_VERSION", "PATH", "BadTarget", "parse_target"]

API_VERSION: Final = "2023-06-01"
PATH: Final = "/v1/messages"


class BadTarget(ValueError):
    """A target's address cannot be used."""


def parse_target(url: str) -> tuple[str, int, str]:
    """Host, port and path prefix of `http://host[:port][/prefix]`; raises BadTarget."""
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise BadTarget(f"target {url!r}: {error}") from None
    if parts.scheme != "http" or not parts.hostname:
        raise BadTarget(
            f"target {url!r}: expected http://HOST[:PORT]; for TLS put a terminating proxy on this machine"
        )
    if parts.query or parts.fragment or parts.username:
        raise BadTarget(
            f"target {url!r}: expected no user, query or fragment in http://HOST[:PORT][/PREFIX]"
        )
    return parts.hostname, port, parts.path.rstrip("/")
