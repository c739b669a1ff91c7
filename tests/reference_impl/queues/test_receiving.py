"""What stops a broker's tasks from coming is told, or got over: nobody waits for ever without a word."""

from __future__ import annotations

import asyncio
import math
import socket
from typing import Any

import pytest

from reference_impl.queues import kafka, kafka_receiver, rabbitmq_receiver
from reference_impl.queues.codec import decode_task
from reference_impl.queues.errors import AccessRefused, QueueClosed
from reference_impl.queues.kafka import KafkaQueue
from reference_impl.queues.kafka_receiver import KafkaReceiver
from reference_impl.queues.port import MessageQueue, QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.queues.rabbitmq_session import RabbitMQSession
from tests.servers.kafka import shared_kafka_url
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import unique_prefix


def task(name: str) -> QueuedTask:
    return QueuedTask(name, "t", {})


def kafka_queue() -> MessageQueue:
    return KafkaQueue(shared_kafka_url(), name=unique_prefix(), levels=1, in_group=False)


def rabbitmq_queue() -> MessageQueue:
    return RabbitMQQueue(shared_rabbitmq_url(), name=unique_prefix(), levels=1, lease_s=0.8)


BROKERS = [
    pytest.param(kafka_queue, id="kafka"),
    pytest.param(rabbitmq_queue, id="rabbitmq", marks=pytest.mark.xdist_group("rabbitmq")),
]


def decode_or_break(data: bytes) -> QueuedTask:
    if b"broken" in data:
        raise RecursionError("too deep")
    return decode_task(data)


@pytest.mark.parametrize("make", BROKERS)
def test_a_message_whose_reading_breaks_is_buried_and_holds_nothing_up(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for receiver in (kafka_receiver, rabbitmq_receiver):
        monkeypatch.setattr(receiver, "decode_task", decode_or_break)
    queue = make()

    async def body() -> None:
        async with asyncio.timeout(60):
            await queue.enqueue_many([task("before"), task("broken"), task("after")])
            for name in ("before", "after"):
                got = await queue.dequeue(10)
                assert got is not None
                assert got.task_id == name
                assert await queue.ack(name)
            while not (letters := await queue.dead_letters()):
                await asyncio.sleep(0.02)
            assert [letter.reason for letter in letters] == ["RecursionError while it was read"]
            await queue.close()

    asyncio.run(body())
    assert "could not be read" in caplog.text


def test_kafka_goes_on_fetching_after_an_error_that_nobody_foresaw(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kafka, "_PAUSE_S", 0.01)
    ask, failures = KafkaReceiver._wanted_partitions, iter([RuntimeError("unforeseen")])

    def fail_once(receiver: KafkaReceiver) -> Any:
        for error in failures:
            raise error
        return ask(receiver)

    monkeypatch.setattr(KafkaReceiver, "_wanted_partitions", fail_once)
    queue = kafka_queue()

    async def body() -> None:
        async with asyncio.timeout(60):
            await queue.enqueue(task("t"))
            assert await queue.dequeue(10) is not None
            await queue.close()

    asyncio.run(body())
    assert "Kafka (fetch): an error that nobody foresaw, going on" in caplog.text


def test_a_kafka_queue_closes_at_once_while_it_waits_for_its_cluster() -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        queue = KafkaQueue(f"127.0.0.1:{bound.getsockname()[1]}", start_limit_s=600)

        async def body() -> None:
            waiting = asyncio.create_task(queue.dequeue(math.inf))
            while queue._start is None:
                await asyncio.sleep(0)
            async with asyncio.timeout(60):
                await queue.close()
                with pytest.raises(QueueClosed):
                    await waiting
            left = [t for t in asyncio.all_tasks() if t.get_name().startswith("background:kafka")]
            assert left == []

        asyncio.run(body())


@pytest.mark.xdist_group("rabbitmq")
def test_who_waits_on_rabbitmq_is_told_that_its_credentials_are_refused_by_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue = rabbitmq_queue()

    async def refuse(*_: Any) -> None:
        raise AccessRefused("the user is gone")

    async def body() -> None:
        async with asyncio.timeout(60):
            assert await queue.dequeue() is None
            waiting = asyncio.create_task(queue.dequeue(math.inf))
            await asyncio.sleep(0)
            monkeypatch.setattr(RabbitMQSession, "open", refuse)
            assert isinstance(queue, RabbitMQQueue)
            assert queue._session is not None
            await queue._session.close()
            with pytest.raises(AccessRefused, match="the user is gone"):
                await waiting
            await queue.close()

    asyncio.run(body())
