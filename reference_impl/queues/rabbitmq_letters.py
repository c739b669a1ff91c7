"""Dead letters as messages of RabbitMQ: ours, and those that the broker buried itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from aiormq.abc import DeliveredMessage

from reference_impl.queues.letters import read_letter
from reference_impl.queues.port import DeadLetter, QueuedTask
from reference_impl.queues.rabbitmq_session import Publication, RabbitMQSession

__all__ = ["headers_of", "letter_in", "letter_to", "oldest_letters", "replay_oldest"]

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


async def oldest_letters(session: RabbitMQSession, looked_at: int, limit: int) -> list[DeadLetter]:
    """Of the first `looked_at`; they stay where they are."""
    async with session.looking_at(session.layout.dead) as look:
        letters = [letter_in(message) for _, message in await look.messages(looked_at)]
    return sorted(letters, key=lambda letter: letter.died_s)[:limit]


async def replay_oldest(
    session: RabbitMQSession,
    looked_at: int,
    limit: int | None,
    again: Callable[[QueuedTask], Publication],
) -> tuple[int, int]:
    """Publish the tasks among the first `looked_at`, at most `limit`; how many letters were seen, and how many replayed."""
    replayed = 0
    async with session.looking_at(session.layout.dead) as look:
        messages = await look.messages(looked_at)
        found = [(tag, letter_in(message)) for tag, message in messages]
        for tag, letter in sorted(found, key=lambda pair: pair[1].died_s):
            if limit is not None and replayed >= limit:
                break
            if letter.task is not None:
                await session.publish(again(letter.task))
                await look.remove(tag)
                replayed += 1
    return len(found), replayed
