"""Retries on Kafka: topics in which tasks wait.

Kafka delivers in order and delays nothing, so a task that must wait goes through topics with a fixed wait each. In such a topic
the oldest is due first; what follows waits unread, and the consumer polls on, so that the group never
takes it for dead. A task goes from a longer topic to shorter ones until its instant has come.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

__all__ = ["RetryForwarder", "retry_headers", "retry_topic", "retry_topics"]

logger = logging.getLogger(__name__)

# Headers of a waiting task: when it may run, and the topic that it then goes to.
_DUE: Final = "twinload-due"
_TARGET: Final = "twinload-target"
_WAITS_S: Final = (0.1, 1.0, 10.0, 100.0, 1000.0)
_POLL_MS: Final = 50
_MOST_AT_ONCE: Final = 100
_PAUSE_S: Final = 0.2


def retry_topics(name: str) -> list[str]:
    """Those of a queue, from the shortest wait to the longest."""
    return [f"{name}.retry.{wait_s:g}s" for wait_s in _WAITS_S]


def retry_topic(name: str, delay_s: float) -> str:
    """The topic with the longest wait that is not too long."""
    fitting = sum(wait_s <= delay_s for wait_s in _WAITS_S)
    return retry_topics(name)[max(0, fitting - 1)]


def retry_headers(due_s: float, target: str) -> list[tuple[str, bytes]]:
    """Of a task that may run at `due_s` and then goes to the topic `target`."""
    return [(_DUE, b"%.6f" % due_s), (_TARGET, target.encode())]


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
        assigned = self._consumer.assignment()
        # Not paused, because that throws away what is fetched already. Asked for a partition that is not its own, the
        # consumer gives nothing, and the group sees that it is alive.
        read = [p for p in sorted(assigned) if not self._waiting.get(p)]
        fetched = await self._consumer.getmany(
            *(read or [TopicPartition(f"{self._name}.dead", 0)]),
            timeout_ms=_POLL_MS,
            max_records=_MOST_AT_ONCE,
        )
        # All of them before anything can fail: what was fetched is not fetched again.
        for partition, records in fetched.items():
            self._waiting.setdefault(partition, deque()).extend(records)
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

    def _is_over(self, record: Any) -> bool:
        """Whether the wait of its topic is over, or its own instant has come."""
        now = self._clock()
        wait_s = float(record.topic.rpartition(".retry.")[2].removesuffix("s"))
        due_s, _ = self._headers(record)
        if wait_s == _WAITS_S[0]:
            return now >= due_s
        sent_s = float(record.timestamp) / 1000
        return now >= min(due_s, sent_s + wait_s)

    async def _send_on(self, record: Any) -> None:
        due_s, target = self._headers(record)
        remaining_s = due_s - self._clock()
        topic = retry_topic(self._name, remaining_s) if remaining_s > 0 else target
        headers = list(record.headers) if remaining_s > 0 else []
        await self._producer.send_and_wait(
            topic, record.value, key=record.key, partition=record.partition, headers=headers
        )

    def _headers(self, record: Any) -> tuple[float, str]:
        """What others wrote here goes on at once, to a class whose consumers bury it if it is no task."""
        headers = dict(record.headers)
        try:
            return float(headers[_DUE]), headers[_TARGET].decode()
        except (KeyError, ValueError):
            return 0.0, f"{self._name}.0"
