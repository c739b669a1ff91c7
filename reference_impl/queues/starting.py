"""Waiting for a broker that is not there yet: with a word to people, and not for ever."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

from reference_impl.queues.errors import QueueUnavailable

__all__ = ["await_broker", "unavailable", "without_password"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_WAIT_S = 0.05
_LONGEST_WAIT_S = 1.0
_SERVER = re.compile(r"(\[[0-9a-fA-F:.]*\]|[^:\[\]]*)(:[0-9]*)?")


async def await_broker(connect: Callable[[], Awaitable[T]], where: str, limit_s: float) -> T:
    """What `connect` gives as soon as it does not raise QueueUnavailable. Raises the last one after `limit_s`."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + limit_s
    wait_s = _FIRST_WAIT_S
    told = False
    while True:
        try:
            return await connect()
        except QueueUnavailable as error:
            if loop.time() + wait_s > until_s:
                raise QueueUnavailable(
                    f"no broker at {where} within {limit_s:g} s ({error}): start it (twinload services up), or correct "
                    "the URL"
                ) from error
            if not told:
                logger.warning(
                    "no broker at %s yet (%s); waiting up to %g s", where, error, limit_s
                )
                told = True
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def unavailable(error: BaseException, where: str) -> QueueUnavailable:
    """What a driver's error means that is about the connection."""
    text = "no answer in time" if isinstance(error, TimeoutError) else str(error)
    return QueueUnavailable(f"{where}: {text or type(error).__name__}")


def without_password(url: str) -> str:
    """Scheme, hosts, ports and path of a URL: what may stand in a message or a log. Of one that cannot be read the scheme."""
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
    except ValueError:
        return f"{scheme}://..."
    servers = parts.netloc.rpartition("@")[2]
    if "@" in parts.path or not all(map(_SERVER.fullmatch, servers.split(","))):
        return f"{scheme}://..."
    return f"{scheme}://{servers}{parts.path}"
