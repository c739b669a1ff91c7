"""The brokers of the fault tests: real ones, each killed, stopped and started again under one set of names."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Final

from reference_impl.live.services.rabbitmq import RabbitMQNode
from tests.servers.kafka import shared_kafka_url
from tests.servers.valkey import ValkeyProcess

__all__ = ["BrokerUnderTest", "KafkaUnderTest", "RabbitMQUnderTest", "RedisUnderTest"]

# Redis keeps what it accepted only as well as its append-only file does.
_DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always")


class BrokerUnderTest(ABC):
    """A broker of the test's own.

    Attributes:
        url, port: of the broker itself. silence_s: after it a peer that says nothing has been given up, and its tasks handed to
            others, with the leases and heartbeats of `worker_process.connect`.
    """

    url: str
    port: int
    silence_s: float

    def url_at(self, port: int) -> str:
        """Its URL by way of another port."""
        return self.url.replace(f":{self.port}/", f":{port}/")

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL."""

    @abstractmethod
    async def start(self) -> None:
        """On the same port, with the data that it had written."""

    @abstractmethod
    def pause(self) -> None:
        """SIGSTOP."""

    @abstractmethod
    def resume(self) -> None:
        """SIGCONT."""


class RabbitMQUnderTest(BrokerUnderTest):
    """The broker looks every heartbeat and gives up who was silent at two looks."""

    silence_s = 3.0

    def __init__(self, node: RabbitMQNode) -> None:
        self.url = node.url
        self.port = node.port
        self._node = node

    def kill(self) -> None:
        self._node.kill()

    async def start(self) -> None:
        await self._node.start()

    def pause(self) -> None:
        self._node.pause()

    def resume(self) -> None:
        self._node.resume()


class RedisUnderTest(BrokerUnderTest):
    """Others look for what was left idle four times a lease."""

    silence_s = 2.5

    def __init__(self) -> None:
        self._server = ValkeyProcess()
        self.url = self._server.url
        self.port = self._server.port

    def kill(self) -> None:
        self._server.kill()

    async def start(self) -> None:
        await asyncio.to_thread(self._server.start, *_DURABLE)

    def pause(self) -> None:
        self._server.pause()

    def resume(self) -> None:
        self._server.resume()

    def close(self) -> None:
        self._server.close()


class KafkaUnderTest(BrokerUnderTest):
    """librdkafka's mock cluster: one consumer a group, a log in this process's memory, and clients that go where it tells them.

    So it is workers that die here, one at a time: no zombie finds its tasks taken over, no cut is on the way that clients take,
    and what is not on a disk cannot come back.
    """

    silence_s = 2.5

    def __init__(self) -> None:
        address = shared_kafka_url()
        self.url = f"kafka://{address}"
        self.port = int(address.rpartition(":")[2])

    def url_at(self, port: int) -> str:
        return self.url

    def kill(self) -> None:
        raise AssertionError("its log would be gone")

    async def start(self) -> None:
        """It runs for as long as this process."""

    def pause(self) -> None:
        raise AssertionError("it is in this process")

    def resume(self) -> None:
        raise AssertionError("it is in this process")
