"""What a queue on Redis Streams does beside the contract: cancelled reads, outages, and what was read too much."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from reference_impl.queues import redis_receiver
from reference_impl.queues.errors import AccessRefused, QueueClosed
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.redis_streams import RedisStreamsQueue
from tests.servers.valkey import ValkeyProcess, shared_valkey_url, unique_prefix


def task(name: str, priority: int = 0) -> QueuedTask:
    return QueuedTask(name, "echo", {}, priority)


def play(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await body()

    asyncio.run(main())


async def blocked(queue: RedisStreamsQueue) -> None:
    """Returns once the queue waits at its server for a task."""
    while queue._reading is None or not (await queue._client.info("clients"))["blocked_clients"]:
        await asyncio.sleep(0.01)


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


def test_a_worker_that_waits_says_once_that_its_server_went_and_that_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "reference_impl.queues")

    async def logged(text: str) -> None:
        while text not in caplog.text:
            await asyncio.sleep(0.01)

    async def body() -> None:
        with ValkeyProcess() as server:
            queue = RedisStreamsQueue(server.url, levels=1)
            await queue.statistics()
            waiting = asyncio.create_task(queue.dequeue(math.inf))
            await blocked(queue)
            for outage in range(2):
                await asyncio.to_thread(server.kill)
                await logged("is in trouble, trying on: " + server.url)
                await asyncio.to_thread(server.start)
                await logged("answers again")
                assert caplog.text.count("in trouble") == 1, f"outage {outage}"
                caplog.clear()
            await queue.enqueue(task("t"))
            assert await waiting is not None
            await queue.close()

    play(body)


def test_a_worker_that_waits_is_told_that_its_server_refuses_it() -> None:
    async def body() -> None:
        with ValkeyProcess() as server:
            queue = RedisStreamsQueue(server.url, levels=1)
            await queue.statistics()
            waiting = asyncio.create_task(queue.dequeue(math.inf))
            await blocked(queue)
            client: Any = Redis.from_url(server.url)
            await client.config_set("requirepass", "sesame")
            await client.execute_command("AUTH", "sesame")
            await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with pytest.raises(AccessRefused, match="correct user and password"):
                await asyncio.wait_for(waiting, 10)
            await client.config_set("requirepass", "")
            assert await queue.enqueue(task("t")) == "t"
            assert await queue.dequeue(math.inf) is not None
            await queue.close()
            await client.aclose()

    play(body)


class Failing:
    """An awaitable of an object, whose calls fail a number of times as nobody foresaw."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, failures: int
    ) -> None:
        self._call = getattr(owner, name)
        self.failures = failures
        monkeypatch.setattr(owner, name, self)

    async def __call__(self, *arguments: Any) -> Any:
        if self.failures:
            self.failures -= 1
            raise LookupError("unforeseen")
        return await self._call(*arguments)


@pytest.mark.parametrize("errand", ["renew", "move_due"])
def test_errands_go_on_after_an_error_that_nobody_foresaw_and_log_it(
    errand: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        url, name = shared_valkey_url(), unique_prefix()
        queue = RedisStreamsQueue(url, name=name, levels=2, lease_s=0.4)
        await queue.enqueue_many([task("low"), task("high", 1)])
        failing = Failing(monkeypatch, queue._commands, errand, failures=3)
        waiting = asyncio.create_task(queue.dequeue(math.inf))
        while failing.failures:
            await queue.dequeue(0.01)
        await waiting
        assert not any(loop.done() for loop in queue._background)
        await queue.close()

    play(body)
    assert caplog.text.count("LookupError: unforeseen") == 1
    assert "that nobody foresaw" in caplog.text


def fail(_data: bytes) -> QueuedTask:
    raise LookupError("unforeseen")


def test_a_dequeue_that_waits_fails_with_an_error_that_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        queue = RedisStreamsQueue(shared_valkey_url(), name=unique_prefix(), levels=1)
        assert await queue.dequeue() is None
        waiting = asyncio.create_task(queue.dequeue(math.inf))
        await blocked(queue)
        monkeypatch.setattr(redis_receiver, "decode_task", fail)
        await queue.enqueue(task("t"))
        with pytest.raises(LookupError):
            await asyncio.wait_for(waiting, 10)
        await queue.close()

    play(body)
    assert "that nobody foresaw" in caplog.text


def test_what_was_read_too_much_keeps_its_place_while_more_of_its_class_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        name = unique_prefix()
        queue = RedisStreamsQueue(shared_valkey_url(), name=name, levels=2, lease_s=0.4)
        await queue.enqueue_many(
            [task(f"{level}-{n}", level) for n in range(5) for level in (0, 1)]
        )
        look = Step(monkeypatch, queue._commands, "has_unread")
        look.may_return.set()
        taken: list[str] = []
        while len(taken) < 10:
            got = await queue.dequeue(5.0)
            assert got is not None
            taken.append(got.task_id)
            assert await queue.ack(got.task_id)
            look.happened.clear()
            while queue._inbox.waiting() and not look.happened.is_set():
                await asyncio.sleep(0.01)
        for level in "01":
            assert [t for t in taken if t[0] == level] == [f"{level}-{n}" for n in range(5)]
        await queue.close()

    play(body)


def test_an_extend_that_is_told_late_leaves_alone_what_was_delivered_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        queue = RedisStreamsQueue(shared_valkey_url(), name=unique_prefix(), levels=1)
        await queue.enqueue(task("t"))
        assert await queue.dequeue(5.0) is not None
        connecting = Step(monkeypatch, queue, "_connected")
        extending = asyncio.create_task(queue.extend("t"))
        await connecting.happened.wait()
        monkeypatch.undo()
        assert await queue.nack("t") == "retry"
        renewing = Step(monkeypatch, queue._commands, "renew")
        connecting.may_return.set()
        await renewing.happened.wait()
        assert await queue.dequeue(5.0) is not None
        renewing.may_return.set()
        assert not await extending
        assert await queue.ack("t")
        await queue.close()

    play(body)


def test_an_extend_that_is_told_late_keeps_a_copy_that_came_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        url, name = shared_valkey_url(), unique_prefix()
        queue, other = (RedisStreamsQueue(url, name=name, levels=1, lease_s=0.4) for _ in range(2))
        await queue.enqueue(task("t"))
        assert await queue.dequeue(5.0) is not None
        assert await other.dequeue(5.0) is not None  # the lease was lost
        renewing = Step(monkeypatch, queue._commands, "renew")
        extending = asyncio.create_task(queue.extend("t"))
        await renewing.happened.wait()
        assert await other.release("t")
        assert await queue.dequeue(0.2) is None, "a copy of what is held is not handed out"
        renewing.may_return.set()
        assert await extending
        assert await queue.ack("t")
        assert (await other.statistics()).held == 0
        await queue.close()
        await other.close()

    play(body)


def test_a_dequeue_that_reads_while_its_queue_is_closed_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body() -> None:
        queue = RedisStreamsQueue(shared_valkey_url(), name=unique_prefix(), levels=1)
        await queue.statistics()
        read = Step(monkeypatch, queue._commands, "read")
        asking = asyncio.create_task(queue.dequeue())
        await read.happened.wait()
        await queue.close()
        with pytest.raises(QueueClosed):
            await asking

    play(body)
