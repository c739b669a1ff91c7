"""Bad input to the queues on real brokers: nothing is lost, and the error says what to do."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import aiokafka.errors
import pytest

from reference_impl.queues import rabbitmq
from reference_impl.queues.connect import connect_queue
from reference_impl.queues.errors import (
    AccessRefused,
    QueueError,
    QueueFull,
    QueueMismatch,
    QueueUnavailable,
)
from reference_impl.queues.kafka import KafkaQueue
from reference_impl.queues.kafka_errors import translated
from reference_impl.queues.port import MessageQueue, QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.queues.rabbitmq_session import Publication, RabbitMQSession
from reference_impl.queues.redis_streams import RedisStreamsQueue
from tests.contracts import smuggle
from tests.servers.kafka import shared_kafka_url
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import shared_valkey_url, unique_prefix


def task(name: str, **fields: Any) -> QueuedTask:
    return QueuedTask(name, "echo", {}, **fields)


class Site(ABC):
    """A queue of one class on a broker, and another program's way into it."""

    def __init__(self) -> None:
        self.name = unique_prefix()

    @abstractmethod
    def queue(self, **options: Any) -> MessageQueue: ...

    @abstractmethod
    async def smuggle(self, data: bytes) -> None:
        """Put bytes among the tasks."""


class OnRedis(Site):
    def queue(self, **options: Any) -> MessageQueue:
        return RedisStreamsQueue(shared_valkey_url(), name=self.name, **{"levels": 1, **options})

    async def smuggle(self, data: bytes) -> None:
        await smuggle.into_redis(shared_valkey_url(), self.name, data)


class OnRabbitMQ(Site):
    def __init__(self) -> None:
        super().__init__()
        self.url = shared_rabbitmq_url()

    def queue(self, **options: Any) -> MessageQueue:
        return RabbitMQQueue(self.url, name=self.name, **{"levels": 1, **options})

    async def smuggle(self, data: bytes) -> None:
        await smuggle.into_rabbitmq(self.url, self.name, data)


class OnKafka(Site):
    def queue(self, **options: Any) -> MessageQueue:
        options = {"levels": 1, "in_group": False, **options}
        return KafkaQueue(shared_kafka_url(), name=self.name, **options)

    async def smuggle(self, data: bytes) -> None:
        await self.smuggle_into(f"{self.name}.0", data)

    async def smuggle_into(self, topic: str, data: bytes) -> None:
        await smuggle.into_kafka(shared_kafka_url(), topic, data)


@pytest.fixture(
    params=[
        OnRedis,
        OnKafka,
        pytest.param(OnRabbitMQ, marks=pytest.mark.xdist_group("rabbitmq")),
    ]
)
def site(request: pytest.FixtureRequest) -> Site:
    made: Site = request.param()
    return made


def play(body: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


async def letters(queue: MessageQueue, number: int) -> list[Any]:
    while len(found := await queue.dead_letters()) < number:
        await asyncio.sleep(0.02)
    return found


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b'{"task_id":"x","payload":{}}', "task_type"),
        (b'{"task_id":"x","task_type":"t","payload":{},"priority":-1}', "negative"),
        (b"\xff\xfe no json", "not a task"),
    ],
)
def test_a_message_that_is_no_task_is_kept_among_the_dead_and_holds_nothing_up(
    site: Site, data: bytes, named: str
) -> None:
    async def body() -> None:
        queue = site.queue()
        await queue.enqueue(task("before"))
        await site.smuggle(data)
        await queue.enqueue(task("after"))
        for name in ("before", "after"):
            got = await queue.dequeue(10)
            assert got is not None
            assert got.task_id == name
            assert await queue.ack(name)
        (letter,) = await letters(queue, 1)
        assert (letter.task, letter.raw) == (None, data)
        assert named in letter.reason
        assert await queue.replay_dead_letters() == 0
        (letter,) = await letters(queue, 1)
        assert letter.raw == data
        await queue.close()

    play(body)


@pytest.mark.parametrize(
    ("first", "other", "named"),
    [
        ({"levels": 2}, {"levels": 3}, "made with levels=2, here it is 3"),
        ({"levels": 3}, {"levels": 2}, "made with levels=3, here it is 2"),
    ],
)
def test_a_queue_with_other_classes_is_refused_with_the_difference(
    site: Site, first: dict[str, Any], other: dict[str, Any], named: str
) -> None:
    async def body() -> None:
        one, another = site.queue(**first), site.queue(**other)
        await one.enqueue(task("kept", priority=1))
        with pytest.raises(QueueMismatch, match=named):
            await another.enqueue(task("refused"))
        kept = await one.dequeue(10)
        assert kept is not None
        assert kept.task_id == "kept"
        assert await one.ack("kept")
        await another.close()
        await one.close()

    play(body)


@pytest.mark.xdist_group("rabbitmq")
@pytest.mark.parametrize(
    ("first", "other", "named"),
    [
        ({}, {"delivery_limit": 7}, r"delivery_limit \(x-delivery-limit\) 20, here it is 7"),
        ({"capacity": 5}, {}, r"capacity \(x-max-length\) 5, here it is none"),
        ({}, {"capacity": 5}, r"capacity \(x-max-length\) none, here it is 5"),
    ],
)
def test_a_rabbitmq_queue_with_other_arguments_is_refused_with_the_difference(
    first: dict[str, Any], other: dict[str, Any], named: str
) -> None:
    site = OnRabbitMQ()

    async def body() -> None:
        one, another = site.queue(**first), site.queue(**other)
        await one.enqueue(task("kept"))
        with pytest.raises(QueueMismatch, match=rf"'{site.name}.0' .* made with {named}"):
            await another.enqueue(task("refused"))
        await another.close()
        await one.close()

    play(body)


def test_a_kafka_topic_with_too_few_partitions_is_refused_with_the_difference() -> None:
    async def body() -> None:
        queue = OnKafka().queue(partitions=50)
        with pytest.raises(QueueMismatch, match=r"has partitions=\d+, here it is 50: add some"):
            await queue.enqueue(task("refused"))
        await queue.close()

    play(body)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (aiokafka.errors.SaslAuthenticationFailed("bad"), AccessRefused, "refuses these"),
        (aiokafka.errors.TopicAuthorizationFailedError("t"), AccessRefused, "the ACLs"),
        (aiokafka.errors.MessageSizeTooLargeError("5"), QueueMismatch, "max.message.bytes"),
        (TimeoutError(), QueueUnavailable, "no answer in time"),
    ],
)
def test_kafkas_errors_say_what_to_do(error: Exception, kind: type[QueueError], says: str) -> None:
    """The mock cluster has neither credentials nor limits, so the translation alone is shown."""
    ours = translated(error, "host:9092")
    assert type(ours) is kind
    assert says in str(ours)
    assert "host:9092" in str(ours)


def test_redis_refuses_wrong_credentials_at_once_and_names_no_password() -> None:
    url = shared_valkey_url().replace("://", "://bob:sesame@")

    async def body() -> None:
        queue = connect_queue(url)
        with pytest.raises(AccessRefused, match="correct user and password") as caught:
            await queue.enqueue(task("refused"))
        assert "sesame" not in str(caught.value)
        await queue.close()

    play(body)


def test_a_kafka_that_is_not_there_is_waited_for_with_a_word_and_not_for_ever(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        queue = connect_queue(f"kafka://127.0.0.1:{bound.getsockname()[1]}", start_limit_s=0.3)

        async def body() -> None:
            with pytest.raises(QueueUnavailable, match=r"no broker at .* within 0.3 s .*start it"):
                await queue.enqueue(task("refused"))
            await queue.close()

        play(body)
    assert "waiting up to 0.3 s" in caplog.text


@pytest.mark.xdist_group("rabbitmq")
def test_a_virtual_host_that_is_not_there_is_named() -> None:
    url = shared_rabbitmq_url().rstrip("/") + "/nowhere"

    async def body() -> None:
        queue = RabbitMQQueue(url, start_limit_s=0.3)
        with pytest.raises(QueueUnavailable, match="virtual host is not there, or not for"):
            await queue.enqueue(task("refused"))
        await queue.close()

    play(body)


class NoDeadLetters:
    """Kafka's producer, whose sends to the dead letters fail a number of times."""

    def __init__(self, producer: Any, failures: int) -> None:
        self._producer = producer
        self.failures = failures

    async def send_and_wait(self, topic: str, *arguments: Any, **options: Any) -> Any:
        if topic.endswith(".dead") and self.failures:
            self.failures -= 1
            raise aiokafka.errors.NotEnoughReplicasError("the dead letters are away")
        return await self._producer.send_and_wait(topic, *arguments, **options)


def test_kafka_loses_nothing_while_what_is_no_task_cannot_be_buried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = OnKafka()

    async def body() -> None:
        queue = site.queue()
        assert isinstance(queue, KafkaQueue)
        await site.smuggle(b"no task")
        await queue.enqueue_many([task(f"t-{n}") for n in range(5)])
        receiver = await queue._receiving()
        receiver._producer = NoDeadLetters(queue._producer, failures=2)
        names = [f"t-{n}" for n in range(5)]
        taken: list[str] = []
        while len(taken) < 5:
            taken += [t.task_id for t in await queue.dequeue_many(5, 10)]
        assert taken == names
        assert await queue.ack_many(names) == [True] * 5
        (letter,) = await letters(queue, 1)
        assert letter.raw == b"no task"
        assert receiver._producer.failures == 0
        while (await queue.statistics()).depth:  # its offset was passed only then
            await asyncio.sleep(0.02)
        await queue.close()

    play(body)
    assert "could not be buried, trying on" in caplog.text


def test_what_others_wrote_among_kafkas_retries_is_buried_and_retries_go_on() -> None:
    site = OnKafka()

    async def body() -> None:
        queue = site.queue()
        await queue.enqueue(task("t"))
        assert await queue.dequeue(10) is not None
        await site.smuggle_into(f"{site.name}.retry.0.1s", b"no task")
        assert await queue.nack("t", delay_s=0.2) == "retry"
        again = await queue.dequeue(10)
        assert again is not None
        assert again.retry_count == 1
        assert await queue.ack("t")
        (letter,) = await letters(queue, 1)
        assert letter.raw == b"no task"
        await queue.close()

    play(body)


@pytest.mark.xdist_group("rabbitmq")
def test_rabbitmq_delivers_again_what_is_no_task_and_could_not_be_buried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = OnRabbitMQ()
    publish = RabbitMQSession.publish
    failures = 2

    async def refusing(session: RabbitMQSession, publication: Publication) -> None:
        nonlocal failures
        if publication.queue.endswith(".dead") and failures:
            failures -= 1
            raise QueueFull("the dead letters take no more")
        await publish(session, publication)

    monkeypatch.setattr(RabbitMQSession, "publish", refusing)

    async def body() -> None:
        queue = site.queue(lease_s=0.4)
        await queue.statistics()
        await site.smuggle(b"no task")
        assert await queue.dequeue(5) is None
        (letter,) = await letters(queue, 1)
        assert letter.raw == b"no task"
        assert failures == 0
        await queue.enqueue(task("t"))
        assert (await queue.dequeue(10)) is not None
        assert await queue.ack("t")
        await queue.close()

    play(body)


@pytest.mark.xdist_group("rabbitmq")
def test_connections_that_look_at_rabbitmqs_dead_letters_at_once_all_see_them() -> None:
    site = OnRabbitMQ()

    async def body() -> None:
        queues = [site.queue() for _ in range(3)]
        for number in range(20):
            await queues[0].enqueue(task(str(number)))
            assert await queues[0].dequeue(10) is not None
            assert await queues[0].reject(str(number), "poison")
        await asyncio.gather(*(queue.statistics() for queue in queues))
        looks = await asyncio.gather(*(queue.dead_letters() for queue in [*queues, queues[0]]))
        for look in looks:
            assert [d.task and d.task.task_id for d in look] == [str(n) for n in range(20)]
        replayed = await asyncio.gather(*(queue.replay_dead_letters() for queue in queues))
        assert sum(replayed) == 20, "each by one of them"
        for queue in queues:
            await queue.close()

    play(body)


@pytest.mark.xdist_group("rabbitmq")
def test_a_replay_of_rabbitmq_takes_more_than_one_look_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rabbitmq, "_MOST_LOOKED_AT", 4)
    site = OnRabbitMQ()

    async def body() -> None:
        queue = site.queue()
        await queue.enqueue_many([task(str(n)) for n in range(10)])
        for number in range(10):
            assert await queue.dequeue(10) is not None
            assert await queue.reject(str(number), "poison")
        assert await queue.replay_dead_letters(limit=5) == 5
        assert await queue.replay_dead_letters() == 5
        assert await queue.replay_dead_letters() == 0
        await queue.close()

    play(body)


def test_what_dies_again_during_a_replay_is_not_replayed_in_it() -> None:
    site = OnRedis()

    async def body() -> None:
        queue, other = site.queue(), site.queue()
        await queue.enqueue_many([task(f"t-{n}") for n in range(250)])
        for got in await queue.dequeue_many(250, 10):
            assert await queue.reject(got.task_id, "poison")

        async def kill() -> None:
            while True:
                for got in await other.dequeue_many(10, 10):
                    await other.reject(got.task_id, "poison again")

        killing = asyncio.create_task(kill())
        assert await queue.replay_dead_letters(limit=120) == 120
        assert await queue.replay_dead_letters() in range(130, 251)
        while (await queue.statistics()).dead < 250:
            await asyncio.sleep(0.02)
        killing.cancel()
        await asyncio.gather(killing, return_exceptions=True)
        await other.close()
        await queue.close()

    play(body)
