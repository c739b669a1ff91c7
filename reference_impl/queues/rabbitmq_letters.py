"""Dead letters as messages of RabbitMQ: ours, and those that the broker buried itself."""

from __future__ import annotations

from typing import Any, Final

from aiormq.abc import DeliveredMessage

from reference_impl.queues.letters import read_letter
from reference_impl.queues.port import DeadLetter
from reference_impl.queues.rabbitmq_session import Publication

__all__ = ["headers_of", "letter_in", "letter_to"]

_REASON: Final = "x-twinload-reason"
_DIED: Final = "x-twinload-died"
# Headers are long strings of AMQP; a frame holds them all.
_LONGEST_REASON: Final = 10_000


def letter_to(queue: str, body: bytes, reason: str, died_s: float) -> Publication:
    """A dead letter on its way to `queue`."""
    headers = {_REASON: reason[:_LONGEST_REASON], _DIED: f"{died_s:.6f}"}
    return Publication(body, queue, headers=headers)


def letter_in(message: DeliveredMessage) -> DeadLetter:
    headers = headers_of(message)
    reason = headers.get(_REASON)
    if reason is None:  # the broker buried it
        count = headers.get("x-delivery-count", "too many")
        reason = f"lost {count} times; the connection of its consumer broke, or its lease ended"
    died_s = float(headers.get(_DIED, 0.0))
    for death in headers.get("x-death", ()):
        if not died_s and "time" in death:
            died_s = death["time"].timestamp()
    return read_letter(message.body, str(reason), died_s)


def headers_of(message: DeliveredMessage) -> dict[str, Any]:
    return dict(message.header.properties.headers or {})
