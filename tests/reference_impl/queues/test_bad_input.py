"""Bad input to the queues: nothing is lost, and the error says what to do."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from reference_impl.queues.codec import decode_task
from reference_impl.queues.connect import connect_queue
from reference_impl.queues.errors import (
    AccessRefused,
    InvalidTask,
    QueueFull,
    QueueMismatch,
    QueueUnavailable,
)
from reference_impl.queues.memory import MemoryQueue
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.queues.redis_streams import RedisStreamsQueue
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import shared_valkey_url, unique_prefix


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"task_id": "", "task_type": "t"}, "task_id is empty"),
        ({"task_id": "a", "task_type": ""}, "task_type is empty"),
        ({"task_id": "a", "task_type": "t", "priority": -1}, r"priority \(-1\)"),
        ({"task_id": "a", "task_type": "t", "max_retries": -2}, r"max_retries \(-2\)"),
    ],
)
def test_a_task_that_is_none_is_refused_where_it_is_made(
    fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidTask, match=named):
        QueuedTask(payload={}, **fields)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"no json", "malformed"),
        (b'{"task_id":"a","payload":{}}', "task_type"),
        (b'{"task_id":"a","task_type":"t","payload":{},"priority":"high"}', "priority"),
        (b'{"task_id":"a","task_type":"t","payload":{},"priority":-1}', "negative"),
        (b"\xff\xfe", "not a task"),
    ],
)
def test_bytes_that_are_no_task_are_refused_with_the_field(data: bytes, named: str) -> None:
    with pytest.raises(InvalidTask, match=named):
        decode_task(data)


def test_a_full_queue_takes_nothing_of_a_batch() -> None:
    async def body() -> None:
        queue = MemoryQueue(capacity=3)
        await queue.enqueue(QueuedTask("a", "t", {}))
        with pytest.raises(QueueFull, match="holds 1 of 3 tasks, 3 more"):
            await queue.enqueue_many([QueuedTask(str(n), "t", {}) for n in range(3)])
        assert (await queue.statistics()).depth == 1

    asyncio.run(body())


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_a_broker_that_is_not_there_is_waited_for_with_a_word_and_not_for_ever(
    scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{scheme}://user:sesame@127.0.0.1:{_closed_port()}/"

    async def body() -> None:
        queue = connect_queue(url, start_limit_s=0.3)
        with pytest.raises(QueueUnavailable, match=r"no broker at .* within 0.3 s .*start it"):
            await queue.enqueue(QueuedTask("a", "t", {}))
        await queue.close()

    asyncio.run(body())
    assert "waiting up to 0.3 s" in caplog.text
    assert "sesame" not in caplog.text


@pytest.mark.xdist_group("rabbitmq")
def test_rabbitmq_refuses_wrong_credentials_at_once_and_names_no_password() -> None:
    url = shared_rabbitmq_url().replace("guest:guest", "guest:sesame")

    async def body() -> None:
        queue = RabbitMQQueue(url)
        with pytest.raises(AccessRefused, match="correct user and password") as caught:
            await queue.enqueue(QueuedTask("a", "t", {}))
        assert "sesame" not in str(caught.value)
        await queue.close()

    asyncio.run(body())


def test_a_redis_queue_that_was_made_otherwise_is_named_with_the_difference() -> None:
    async def body() -> None:
        name = unique_prefix()
        one = RedisStreamsQueue(shared_valkey_url(), name=name, lease_s=30)
        await one.enqueue(QueuedTask("a", "t", {}))
        other = RedisStreamsQueue(shared_valkey_url(), name=name, lease_s=60)
        with pytest.raises(QueueMismatch, match="made with lease_s=30, here it is 60"):
            await other.enqueue(QueuedTask("b", "t", {}))
        await other.close()
        await one.close()

    asyncio.run(body())


def test_another_scheme_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match="'sqs': expected amqp"):
        connect_queue("sqs://somewhere")
