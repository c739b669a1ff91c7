"""The connection of the queues on real brokers: one that is closed while it opens leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from reference_impl.queues.broker_queue import BrokerQueue
from reference_impl.queues.errors import QueueClosed
from reference_impl.queues.kafka import KafkaQueue
from reference_impl.queues.port import QueuedTask
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.queues.redis_streams import RedisStreamsQueue
from tests.servers.kafka import shared_kafka_url
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import shared_valkey_url, unique_prefix


class Site(ABC):
    """A broker, and queues of one name on it."""

    def __init__(self) -> None:
        self.name = unique_prefix()
        self.url = self.find()

    @abstractmethod
    def find(self) -> str: ...

    @abstractmethod
    def queue(self, url: str) -> BrokerQueue[Any, Any]: ...

    def at_port(self, port: int) -> str:
        """The URL of a broker elsewhere on the loopback."""
        scheme, _, _ = self.url.rpartition("127.0.0.1:")
        return f"{scheme}127.0.0.1:{port}"


class OnRedis(Site):
    def find(self) -> str:
        return shared_valkey_url()

    def queue(self, url: str) -> BrokerQueue[Any, Any]:
        return RedisStreamsQueue(url, name=self.name, levels=1)


class OnRabbitMQ(Site):
    def find(self) -> str:
        return shared_rabbitmq_url()

    def queue(self, url: str) -> BrokerQueue[Any, Any]:
        return RabbitMQQueue(url, name=self.name, levels=1)


class OnKafka(Site):
    def find(self) -> str:
        return shared_kafka_url()

    def queue(self, url: str) -> BrokerQueue[Any, Any]:
        return KafkaQueue(url, name=self.name, levels=1, in_group=False)


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


def task(name: str) -> QueuedTask:
    return QueuedTask(name, "echo", {})


def play(body: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(body(), 60))


def connections() -> int:
    """Of this process, over TCP."""
    found = psutil.Process().net_connections("tcp")
    return sum(connection.status == psutil.CONN_ESTABLISHED for connection in found)


def test_who_waits_for_a_broker_is_told_when_the_queue_is_closed(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        with socket.socket() as bound:  # and does not listen
            bound.bind(("127.0.0.1", 0))
            queue = site.queue(site.at_port(bound.getsockname()[1]))
            waiting = asyncio.create_task(queue.enqueue(task("t")))
            async with asyncio.timeout(10):
                while "no broker at" not in caplog.text:
                    await asyncio.sleep(0.01)
                await queue.close()
                with pytest.raises(QueueClosed):
                    await waiting

    play(body)


def test_a_session_that_opens_while_the_queue_is_closed_ends_with_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        other = site.queue(site.url)
        assert (await other.statistics()).depth == 0
        tasks, open_connections = asyncio.all_tasks(), connections()
        queue = site.queue(site.url)
        is_open, may_go_on = asyncio.Event(), asyncio.Event()
        open_session = queue._open

        async def open_slowly() -> Any:
            session = await open_session()
            is_open.set()
            await may_go_on.wait()
            return session

        monkeypatch.setattr(queue, "_open", open_slowly)
        enqueuing = asyncio.create_task(queue.enqueue(task("t")))
        await is_open.wait()
        assert connections() > open_connections
        await queue.close()
        may_go_on.set()
        with pytest.raises(QueueClosed):
            await enqueuing
        async with asyncio.timeout(10):
            while asyncio.all_tasks() - tasks or connections() > open_connections:
                await asyncio.sleep(0.02)
        assert (await other.statistics()).depth == 0
        await other.close()

    play(body)
