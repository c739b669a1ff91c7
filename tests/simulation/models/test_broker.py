"""The virtual broker where it goes away: who is told, when, and over what."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

import pytest

from reference_impl.queues.errors import QueueClosed, QueueUnavailable
from reference_impl.queues.port import QueuedTask
from simulation import kernel
from simulation.models.broker import Broker, VirtualQueue, Way
from simulation.scenario.distributions import Constant


def task(name: str) -> QueuedTask:
    return QueuedTask(name, "work", None)


def play(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await body()

    kernel.run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_who_waits_for_a_broker_that_hangs_is_told_when_it_dies() -> None:
    async def body() -> None:
        broker = Broker()
        queue = VirtualQueue(broker, "w", timeout_s=30)
        waiting = asyncio.create_task(queue.dequeue(math.inf))
        await asyncio.sleep(1)
        broker.fail("hanging")
        asking = asyncio.create_task(queue.enqueue(task("a")))
        await asyncio.sleep(1)
        broker.fail("refusing")
        for call, named in ((asking, "refused"), (waiting, "broke")):
            with pytest.raises(QueueUnavailable, match=named):
                await call
        assert now() == 2
        broker.recover()
        assert await queue.enqueue(task("a")) == "a"

    play(body)


def test_a_broker_that_hangs_on_after_it_was_gone_answers_when_it_is_back() -> None:
    async def body() -> None:
        broker = Broker()
        queue = VirtualQueue(broker, "w")
        broker.fail("refusing")
        broker.fail("hanging")
        asking = asyncio.create_task(queue.enqueue(task("a")))
        await asyncio.sleep(5)
        assert not asking.done()
        broker.recover()
        assert await asking == "a"
        assert 5 < now() < 5.01

    play(body)


@pytest.mark.parametrize("ways", [("up", "down"), ("up",), ("down",)])
def test_a_queue_does_not_connect_again_through_its_own_cut(ways: tuple[Way, ...]) -> None:
    async def body() -> None:
        broker = Broker(heartbeat_s=2, one_way=Constant(value=0.1))
        queue = VirtualQueue(broker, "w", timeout_s=1)
        queue.cut(ways)
        queue.reset()
        with pytest.raises(QueueUnavailable, match="within 1 s"):
            await queue.enqueue(task("a"))
        assert not broker.is_connected(queue._consumer)
        asking = [asyncio.create_task(queue.enqueue(task(name))) for name in "bc"]
        await asyncio.sleep(0.5)
        queue.mend()
        assert await asyncio.gather(*asking) == ["b", "c"]
        assert len(broker._consumers) == 1, "calls at once make one connection"
        assert {t.task_id for t in await queue.dequeue_many(3)} == {"b", "c"}

    play(body)


def test_a_goodbye_does_not_pass_a_cut_either() -> None:
    async def body() -> None:
        broker = Broker(heartbeat_s=30, lease_s=1000)
        gone, there = VirtualQueue(broker, "gone"), VirtualQueue(broker, "there")
        await there.enqueue(task("a"))
        assert await gone.dequeue()
        gone.cut()
        asking = asyncio.create_task(gone.ack("a"))
        await asyncio.sleep(1)
        await gone.close()
        with pytest.raises(QueueClosed):
            await asking
        again = await there.dequeue(math.inf)
        assert again is not None
        assert again.redeliveries == 1
        assert now() == pytest.approx(30, abs=0.1)

    play(body)


def test_the_end_of_a_connection_arrives_when_the_cut_is_mended() -> None:
    async def body() -> None:
        broker = Broker(heartbeat_s=30, lease_s=1000)
        gone, there = VirtualQueue(broker, "gone"), VirtualQueue(broker, "there")
        await there.enqueue(task("a"))
        assert await gone.dequeue()
        gone.cut()
        await gone.close()
        await asyncio.sleep(5)
        assert await there.dequeue() is None
        gone.mend()
        assert await there.dequeue() is not None

    play(body)
