"""A task as a `QueueBook` keeps it: its bytes, and beside them what changes while it waits and is held."""

from __future__ import annotations

import math
from typing import Self

import msgspec

from reference_impl.queues.codec import decode_task, encode_task
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.weighted_round import level_of

__all__ = ["Entry"]


class Entry(msgspec.Struct, eq=False, gc=False):
    """A task in the book, of class `level`. `lease` numbers its present lease of `consumer`; 0: it is not held.

    It refers to nothing that could refer back to it, so that the collector need not walk a long backlog.
    """

    data: bytes
    level: int
    enqueued_s: float
    deadline_s: float
    retries: int
    redeliveries: int = 0
    lease: int = 0
    consumer: int = 0
    task_id: str = ""

    @classmethod
    def of(cls, task: QueuedTask, now: float, levels: int, max_bytes: int) -> Self:
        """Raises InvalidTask."""
        deadline_s, enqueued_s = task.deadline_s, task.enqueued_s
        return cls(
            encode_task(task, max_bytes),
            level_of(task.priority, levels),
            now if enqueued_s is None else enqueued_s,
            math.inf if deadline_s is None else deadline_s,
            task.retry_count,
        )

    def task(self) -> QueuedTask:
        """Raises InvalidTask where its bytes are none."""
        task = decode_task(self.data)
        if (
            self.retries != task.retry_count
            or self.redeliveries
            or self.enqueued_s != task.enqueued_s
        ):
            return msgspec.structs.replace(
                task,
                retry_count=self.retries,
                redeliveries=self.redeliveries,
                enqueued_s=self.enqueued_s,
            )
        return task
