"""Dead letters in their topic on Kafka, which is read from where the last replay ended.

That place is the offset of a group of its own, without members.
"""

from __future__ import annotations

from typing import Any, Final

from reference_impl.queues.kafka_topics import Topics
from reference_impl.queues.letters import read_letter
from reference_impl.queues.port import DeadLetter

__all__ = ["LetterReader", "letter_headers", "letter_in"]

_REASON: Final = "twinload-reason"
_DIED: Final = "twinload-died"
_POLL_MS: Final = 50


def letter_headers(reason: str, died_s: float) -> list[tuple[str, bytes]]:
    return [(_REASON, reason.encode()), (_DIED, b"%.6f" % died_s)]


def letter_in(record: Any) -> DeadLetter:
    headers = dict(record.headers)
    reason = headers.get(_REASON, b"").decode()
    return read_letter(record.value or b"", reason, float(headers.get(_DIED, b"0")))


class LetterReader:
    """Reads the dead letters with `consumer`, which is started, of the group of replays, and used for nothing else."""

    def __init__(self, topics: Topics, consumer: Any) -> None:
        self._partition = topics.dead_partition
        self._consumer = consumer
        consumer.assign([self._partition])

    async def bounds(self) -> tuple[int, int]:
        """Offset of the oldest that is there and was not replayed, and the one behind the youngest."""
        committed = await self._consumer.committed(self._partition) or 0
        oldest = await self._consumer.beginning_offsets([self._partition])
        ends = await self._consumer.end_offsets([self._partition])
        end = ends[self._partition]
        return min(max(committed, oldest[self._partition]), end), end

    async def read(self, limit: int | None) -> list[Any]:
        """The records of the oldest, of those that there are now."""
        start, end = await self.bounds()
        if limit is not None:
            end = min(end, start + limit)
        if start >= end:
            return []
        self._consumer.seek(self._partition, start)
        records: list[Any] = []
        while await self._consumer.position(self._partition) < end:
            fetched = await self._consumer.getmany(timeout_ms=_POLL_MS)
            records += fetched.get(self._partition, [])
        return [record for record in records if record.offset < end]

    async def pass_over(self, record: Any) -> None:
        """It was replayed, or put behind the others."""
        await self._consumer.commit({self._partition: record.offset + 1})
