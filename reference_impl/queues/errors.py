"""The errors of the queues. Adapters translate their drivers' errors into these; each message says what to do."""

from __future__ import annotations

__all__ = [
    "AccessRefused",
    "InvalidTask",
    "QueueClosed",
    "QueueError",
    "QueueFull",
    "QueueMismatch",
    "QueueUnavailable",
    "TaskTooLarge",
]


class QueueError(Exception):
    """Root of the errors of this folder."""


class InvalidTask(QueueError, ValueError):
    """The task is not one: a field is missing or out of range, or its payload is not JSON."""


class TaskTooLarge(InvalidTask):
    """The task, encoded, exceeds the queue's limit."""


class QueueFull(QueueError):
    """The queue holds as many tasks as it may. Try again later: this is back-pressure.

    Of a batch, brokers may have taken some: enqueue all of it again under the same idempotency keys.
    """


class QueueUnavailable(QueueError):
    """The broker did not answer in time.

    What was to be enqueued may or may not have been taken: enqueue it again under the same idempotency key.
    """


class AccessRefused(QueueError):
    """The broker refuses these credentials; trying again does not help."""


class QueueMismatch(QueueError):
    """The broker holds a queue of this name that was declared otherwise; the message names the difference."""


class QueueClosed(QueueError):
    """The queue object was closed and is used again."""
