"""Dead letters: what was buried, read again, and made a task once more."""

from __future__ import annotations

import msgspec

from reference_impl.queues.codec import decode_task
from reference_impl.queues.errors import InvalidTask
from reference_impl.queues.port import DeadLetter, QueuedTask
from reference_impl.sane_text import sane_text

__all__ = ["LATE", "as_new", "kept_reason", "read_letter", "reason_of_failure"]

# Why a task is dead whose deadline had passed when it was next.
LATE = "its deadline passed while it waited"


# Of a reason: some brokers keep it in a header, which one frame of AMQP must hold.
_LONGEST_REASON = 10_000


def kept_reason(reason: str) -> str:
    """A reason as every broker can keep it. It may hold anything: it is often the text of a handler's error."""
    return sane_text(reason, _LONGEST_REASON)


def reason_of_failure(task: QueuedTask, reason: str) -> str:
    """Why a task is dead after its last retry."""
    return f"failed {task.retry_count + 1} times: {reason}"


def read_letter(data: bytes, reason: str, died_s: float) -> DeadLetter:
    """A letter as a broker keeps it: the task, or the bytes where they are none."""
    try:
        return DeadLetter(decode_task(data), reason, died_s)
    except InvalidTask:
        return DeadLetter(None, reason, died_s, data)


def as_new(task: QueuedTask, now: float) -> QueuedTask:
    """A dead task as it is replayed: with its counts at zero, enqueued now, and its deadline, which may have killed it, gone.

    The attempts that it had are kept, so that those that follow are not taken for repetitions; the last one is counted though it
    may not have begun.
    """
    return msgspec.structs.replace(
        task,
        retry_count=0,
        redeliveries=0,
        enqueued_s=now,
        deadline_s=None,
        earlier_attempts=task.earlier_attempts + task.retry_count + 1,
    )
