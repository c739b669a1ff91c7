"""Retries on Kafka: topics in which tasks wait.

Kafka delivers in order and delays nothing, so a task that must wait goes through topics with a fixed wait each. In such a topic
the oldest is due first; what follows waits unread, with its partition paused, and the consumer polls on, so that the group never
takes it for dead. A task goes from a longer topic to shorter ones until its instant has come.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiokafka.errors import KafkaError

__all__ = ["DUE", "TARGET", "WAITS_S", "RetryForwarder", "retry_topic"]

logger = logging.getLogger(__name__)

# Headers of a waiting task: when it may run, and the topic that it then goes to.
DUE: Final = "twinload-due"
TARGET: Final = "twinload-target"
WAITS_S: Final = (0.1, 1.0, 10.0, 100.0, 1000.0)
_POLL_MS: Final = 50
_MOST_AT_ONCE: Final = 100
_PAUSE_S: Final = 0.2


def retry_topic(name: str, delay_s: float) -> str:
    """The topic with the longest wait that is not too long."""
    fitting = [wait_s for wait_s in WAITS_S if wait_s <= delay_s]
    return f"{name}.retry.{(fitting or WAITS_S)[-1 if fitting else 0]:g}s"


class RetryForwarder:
    """Sends waiting tasks on when their time has come.

    Args:
        name: of the queue. consumer: reads the retry topics, started. producer: sends.
        clock: the clock that wrote the instants.
    """

    def __init__(self, name: str, consumer: Any, producer: Any, clock: Callable[[], float]) -> None:
        self._name = name
        self._consumer = consumer
        self._producer = producer
        self._clock = clock
        self._waiting: dict[Any, deque[Any]] = {}

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                await self._step()
            except KafkaError as error:
                logger.warning("retries wait for Kafka: %s", error)
                await asyncio.sleep(_PAUSE_S)

    async def _step(self) -> None:
        fetched = await self._consumer.getmany(timeout_ms=_POLL_MS, max_records=_MOST_AT_ONCE)
        for partition, records in fetched.items():
            self._waiting.setdefault(partition, deque()).extend(records)
            self._consumer.pause(partition)
        assigned = self._consumer.assignment()
        for partition in [p for p in self._waiting if p not in assigned]:
            del self._waiting[partition]
        for partition, records in self._waiting.items():
            last = None
            while records and self._is_over(records[0]):
                last = records[0]
                await self._send_on(last)
                records.popleft()
            if last is not None:
                await self._consumer.commit({partition: last.offset + 1})
            if not records and partition in self._consumer.paused():
                self._consumer.resume(partition)

    def _is_over(self, record: Any) -> bool:
        """Whether the wait of its topic is over, or its own instant has come."""
        now = self._clock()
        wait_s = float(record.topic.rpartition(".retry.")[2].removesuffix("s"))
        due_s, _ = _headers(record)
        if wait_s == WAITS_S[0]:
            return now >= due_s
        sent_s = float(record.timestamp) / 1000
        return now >= min(due_s, sent_s + wait_s)

    async def _send_on(self, record: Any) -> None:
        due_s, target = _headers(record)
        remaining_s = due_s - self._clock()
        topic = retry_topic(self._name, remaining_s) if remaining_s > 0 else target
        headers = list(record.headers) if remaining_s > 0 else []
        await self._producer.send_and_wait(
            topic, record.value, key=record.key, partition=record.partition, headers=headers
        )


def _headers(record: Any) -> tuple[float, str]:
    headers = dict(record.headers)
    return float(headers[DUE]), headers[TARGET].decode()
