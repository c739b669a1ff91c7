"""What the errors of AMQP mean to a user of a queue."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import aiormq

from reference_impl.queues.errors import AccessRefused, QueueError, QueueMismatch, QueueUnavailable
from reference_impl.queues.starting import unavailable

__all__ = ["AMQP_ERRORS", "closed_is_an_error", "translated"]

# Every error that aiormq and the sockets below it raise for a broker that is away, or went.
AMQP_ERRORS: Final = (
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,
    OSError,
    TimeoutError,
)
_REFUSALS: Final = (
    aiormq.exceptions.AuthenticationError,
    aiormq.exceptions.ProbableAuthenticationError,
    aiormq.exceptions.ChannelAccessRefused,
)

# How the broker tells that a queue exists with another argument.
_INEQUIVALENT: Final = re.compile(
    r"inequivalent arg '(?P<argument>[^']+)' for queue '(?P<queue>[^']+)'.*"
    r"received (?:(?:the value )?'(?P<here>[^']*)'.*|none) but current is (?:(?:the value )?'(?P<there>[^']*)'|none)"
)
_OURS: Final = {"x-delivery-limit": "delivery_limit", "x-max-length": "capacity"}


def translated(error: BaseException, where: str) -> QueueError:
    """What one of AMQP_ERRORS means."""
    if isinstance(error, _REFUSALS):
        return AccessRefused(
            f"{where} refuses these credentials ({error}): correct user and password in the URL, or the permissions"
        )
    if isinstance(error, aiormq.exceptions.ChannelPreconditionFailed):
        return QueueMismatch(
            f"{_difference(str(error), where)}: use the same, or another name, or delete the queue when it is empty"
        )
    if "Connection.OpenOk" in str(error):  # aiormq hides what the broker says
        return QueueUnavailable(f"{where}: the virtual host is not there, or not for this user")
    return unavailable(error, where)


def _difference(text: str, where: str) -> str:
    """The argument in which a queue differs, what it is there and here; the broker's words where they say something else."""
    found = _INEQUIVALENT.search(text)
    if found is None:
        return f"{where} has a queue of this name that was declared otherwise ({text})"
    argument = found["argument"]
    ours = f"{_OURS[argument]} ({argument})" if argument in _OURS else argument
    there, here = found["there"] or "none", found["here"] or "none"
    return f"queue {found['queue']!r} at {where} was made with {ours} {there}, here it is {here}"


@contextmanager
def closed_is_an_error(ended: asyncio.Event) -> Iterator[None]:
    """aiormq cancels what waits for an answer when its connection closes. Nobody had cancelled the caller: an error.

    The other way round, the answer that a caller got as it was cancelled may hide that: it is cancelled.
    """
    caller = asyncio.current_task()
    assert caller is not None
    cancels = caller.cancelling()
    try:
        yield
    except asyncio.CancelledError as error:
        if caller.cancelling() > cancels:
            raise
        ended.set()
        raise aiormq.exceptions.ChannelInvalidStateError("the connection closed") from error
    except AMQP_ERRORS as error:
        if caller.cancelling() > cancels:
            raise asyncio.CancelledError from error
        raise
    if caller.cancelling() > cancels:
        raise asyncio.CancelledError
