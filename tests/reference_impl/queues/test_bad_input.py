"""Bad input to the queues: nothing is lost, and the error says what to do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

from reference_impl.deployment import QueueSpec
from reference_impl.queues.codec import decode_task, encode_task
from reference_impl.queues.commands import queue
from reference_impl.queues.connect import URL_VARIABLE, BadQueueUrl, connect_queue, queue_of
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
from reference_impl.queues.starting import without_password
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import shared_valkey_url, unique_prefix


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"task_id": "", "task_type": "t"}, "task_id is empty"),
        ({"task_id": "a", "task_type": ""}, "task_type is empty"),
        ({"task_id": "a", "task_type": "t", "priority": -1}, r"priority \(-1\)"),
        ({"task_id": "a", "task_type": "t", "max_retries": -2}, r"max_retries \(-2\)"),
        ({"task_id": "a", "task_type": "t", "priority": "high"}, r"priority \('high'\).*whole"),
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


def _nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


hostile = st.one_of(
    st.binary(max_size=200),
    st.text(max_size=50).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.sampled_from([10, 900, 5000]).map(_nested),
    st.integers(0, 6000).map(lambda digits: b"9" * digits),
    st.sampled_from([b"1e999", b"-0", b"NaN", b"null", b"true", b'"\\ud800"', b'"\\u0000"', b"-1"]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.floats(allow_nan=False)
        | st.integers()
        | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
    ).map(lambda value: json.dumps(value).encode()),
)


@example({"payload": _nested(5000)}, b"")
@given(st.dictionaries(st.sampled_from(QueuedTask.__struct_fields__), hostile), hostile)
def test_of_hostile_bytes_comes_a_task_or_one_error(fields: dict[str, bytes], junk: bytes) -> None:
    fields = {"task_id": b'"a"', "task_type": b'"t"', "payload": b"1"} | fields
    whole = b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), v) for name, v in fields.items())
    for data in (whole, junk, whole[: len(junk)], whole + junk):
        with contextlib.suppress(InvalidTask):
            encode_task(decode_task(data), max_bytes=len(data) * 4 + 1000)


def test_a_replay_loses_no_letter_of_a_task_that_only_just_fitted() -> None:
    async def body() -> None:
        queue = MemoryQueue(max_bytes=100)
        await queue.enqueue(QueuedTask("a", "t", "x" * 55))
        await queue.dequeue()
        assert await queue.reject("a", "not today")
        assert await queue.replay_dead_letters() == 1
        again = await queue.dequeue()
        assert again is not None
        assert again.payload == "x" * 55
        assert (await queue.statistics()).dead == 0

    asyncio.run(body())


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
    with pytest.raises(BadQueueUrl, match=r"'sqs'\): expected amqp"):
        connect_queue("sqs://somewhere")


BAD_URLS = [
    ("rabbitmq", "amqp://guest:sesame/w@host/", "%2F"),
    ("rabbitmq", "amqp://guest:12/sesame@host/", "%2F"),
    ("rabbitmq", "amqp://[::1/", "cannot be read"),
    ("rabbitmq", "amqp://guest:sesame@host/?heartbeat=often", "heartbeat is a whole number"),
    ("rabbitmq", "amqp://guest:sesame@host:0/", "port is 0"),
    ("redis", "redis://:sesame#ss@127.0.0.1:1", "%23"),
    ("redis", "redis://:sesame@127.0.0.1:1/0?foo=bar", "an option"),
    ("redis", "redis://:sesame@127.0.0.1:1/?db=abc", "an option"),
    ("redis", "redis://127.0.0.1:abc", "cannot be read"),
    ("redis", "unix://", "path of the socket"),
    ("kafka", "kafka://", "a host and a port"),
    ("kafka", "kafka://127.0.0.1:abc", "a host and a port"),
    ("kafka", "kafka://host:9092,other:99999", "a host and a port"),
    ("kafka", "kafka://user:sesame@127.0.0.1:1", "no user and password"),
]


@pytest.mark.parametrize(("broker", "url", "why"), BAD_URLS)
def test_a_url_that_no_queue_can_have_is_refused_alike_everywhere_and_not_repeated(
    broker: Any, url: str, why: str
) -> None:
    with pytest.raises(BadQueueUrl, match=why) as caught:
        queue_of(QueueSpec(broker=broker), url)
    told = CliRunner().invoke(queue, ["status"], env={URL_VARIABLE: url})
    assert told.exit_code == 2
    assert why in told.stderr
    assert isinstance(told.exception, SystemExit)
    for text in (str(caught.value), told.output):
        assert "sesame" not in text
        assert "Traceback" not in text


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://user:sesame@host:5672/v", "amqp://host:5672/v"),
        ("kafka://one:1,two:2", "kafka://one:1,two:2"),
        ("redis://:sesame@[::1]:1/0?password=sesame", "redis://[::1]:1/0"),
        ("amqp://user:sesame/w@host/", "amqp://..."),
        ("amqp://[::1/", "amqp://..."),
    ],
)
def test_of_a_url_only_what_is_no_secret_is_shown(url: str, shown: str) -> None:
    assert without_password(url) == shown
