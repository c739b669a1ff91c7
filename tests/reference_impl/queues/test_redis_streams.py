"""What a queue on Redis Streams does beside the contract: cancelled reads, outages, and what was read too much."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from reference_impl.queues.port import QueuedTask
from reference_impl.queues.redis_streams import RedisStreamsQueue
from tests.servers.valkey import shared_valkey_url, unique_prefix


def task(name: str, priority: int = 0) -> QueuedTask:
    return QueuedTask(name, "echo", {}, priority)


def play(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60):
            await body()

    asyncio.run(main())


class Step:
    """An awaitable of an object, whose calls stop once they have happened, before they are told of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self._call = getattr(owner, name)
        self.happened = asyncio.Event()
        self.may_return = asyncio.Event()
        monkeypatch.setattr(owner, name, self)

    async def __call__(self, *arguments: Any) -> Any:
        result = await self._call(*arguments)
        self.happened.set()
        await self.may_return.wait()
        return result


def test_what_a_cancelled_dequeue_had_read_goes_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        queue = RedisStreamsQueue(shared_valkey_url(), name=unique_prefix(), levels=1)
        await queue.enqueue(task("t"))
        read = Step(monkeypatch, queue._commands, "read")
        asking = asyncio.create_task(queue.dequeue())
        await read.happened.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        read.may_return.set()
        again = await queue.dequeue(5.0)
        assert again is not None
        assert (again.task_id, again.redeliveries) == ("t", 0)
        assert await queue.ack("t")
        await queue.close()

    play(body)


def test_what_a_cancelled_dequeue_had_read_is_handed_back_uncounted_by_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        name = unique_prefix()
        queue, other = (
            RedisStreamsQueue(shared_valkey_url(), name=name, levels=1) for _ in range(2)
        )
        await queue.enqueue(task("t"))
        read = Step(monkeypatch, queue._commands, "read")
        asking = asyncio.create_task(queue.dequeue())
        await read.happened.wait()
        asking.cancel()
        await queue.close()
        got = await other.dequeue(5.0)
        assert got is not None
        assert (got.task_id, got.redeliveries) == ("t", 0)
        assert await other.ack("t")
        await other.close()

    play(body)
