"""Records that Kafka's retention has deleted are neither counted nor waited for. The mock cluster deletes none: a stand-in does."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

import pytest
from aiokafka import TopicPartition

from reference_impl.queues.kafka_clients import lag
from reference_impl.queues.kafka_letters import LetterReader
from reference_impl.queues.kafka_topics import Topics


class Record(NamedTuple):
    offset: int


class Log:
    """A consumer of one partition that holds the offsets from `oldest` to before `end`; its group committed `done`."""

    def __init__(self, oldest: int, end: int, done: int | None) -> None:
        self._oldest, self._end, self._done = oldest, end, done
        self._position = 0

    def assign(self, _partitions: list[TopicPartition]) -> None:
        return

    async def partitions_for(self, _topic: str) -> set[int]:
        return {0}

    async def committed(self, _partition: TopicPartition) -> int | None:
        return self._done

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[Any, int]:
        return dict.fromkeys(partitions, self._oldest)

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[Any, int]:
        return dict.fromkeys(partitions, self._end)

    def seek(self, _partition: TopicPartition, offset: int) -> None:
        self._position = offset

    async def position(self, _partition: TopicPartition) -> int:
        return self._position

    async def getmany(self, *, timeout_ms: int) -> dict[TopicPartition, list[Record]]:
        """Two at a time."""
        await asyncio.sleep(timeout_ms / 1000)
        first = max(self._position, self._oldest)
        self._position = min(first + 2, self._end)
        found = [Record(offset) for offset in range(first, self._position)]
        return {TopicPartition("tasks.dead", 0): found} if found else {}


@pytest.mark.parametrize(
    ("oldest", "done", "left"),
    [
        (0, None, [0, 1, 2, 3, 4, 5, 6]),
        (3, 1, [3, 4, 5, 6]),
        (7, 2, []),
        (7, None, []),
        (2, 5, [5, 6]),
    ],
)
def test_only_what_is_there_is_counted_and_read(
    oldest: int, done: int | None, left: list[int]
) -> None:
    async def body() -> None:
        log: Any = Log(oldest, 7, done)
        letters = LetterReader(Topics("tasks", 1, 1), log)
        start, end = await letters.bounds()
        assert end - start == len(left)
        assert [record.offset for record in await letters.read(None)] == left
        assert [record.offset for record in await letters.read(2)] == left[:2]
        assert await lag(log, log, ["tasks.0"]) == [len(left)]

    asyncio.run(asyncio.wait_for(body(), 10))
