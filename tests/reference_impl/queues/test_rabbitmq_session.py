"""aiormq cancels what waits for an answer when its connection closes; who called is told, and is not cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiormq.exceptions import ChannelInvalidStateError, ChannelNotFoundEntity

from reference_impl.queues.rabbitmq_layout import Layout
from reference_impl.queues.rabbitmq_session import Publication, RabbitMQSession


class _Channel:
    """A channel whose answers never come."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    is_closed = False

    async def close(self) -> None:
        await self.answer

    async def basic_publish(self, *_: Any, **__: Any) -> Any:
        return await self.answer


class _Deaf(_Channel):
    """It answers a cancel: with an error, or not even that."""

    hides: Exception | None = None

    async def basic_publish(self, *_: Any, **__: Any) -> Any:
        try:
            await self.answer
        except asyncio.CancelledError:
            if self.hides is not None:
                raise self.hides from None


def session_over(channel: _Channel) -> RabbitMQSession:
    session = RabbitMQSession(Layout("tasks", levels=1, delivery_limit=1, capacity=None))
    session._publisher = channel
    return session


def test_a_connection_that_closes_under_a_call_is_an_error_of_the_call() -> None:
    async def main() -> None:
        channel = _Channel()
        session = session_over(channel)
        call = asyncio.create_task(session.publish(Publication(b"{}", "tasks.0")))
        await asyncio.sleep(0)
        channel.answer.cancel()  # as aiormq does with its calls when the connection is gone
        with pytest.raises(ChannelInvalidStateError):
            await call
        assert not session.is_open

    asyncio.run(main())


def test_a_connection_that_closes_under_the_farewell_is_closed() -> None:
    async def main() -> None:
        channel = _Channel()
        session = session_over(channel)
        session._connection = session._consumer = channel
        closing = asyncio.create_task(session.close())
        await asyncio.sleep(0)
        channel.answer.cancel()
        await closing
        assert not session.is_open

    asyncio.run(main())


def test_a_caller_that_is_cancelled_as_its_answer_comes_is_cancelled() -> None:
    async def main() -> None:
        for answer in (None, ChannelNotFoundEntity()):
            channel = _Deaf()
            call = asyncio.create_task(session_over(channel).publish(Publication(b"{}", "tasks.0")))
            await asyncio.sleep(0)
            channel.hides = answer
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(main())


def test_a_caller_that_is_cancelled_is_cancelled() -> None:
    async def main() -> None:
        session = session_over(_Channel())
        call = asyncio.create_task(session.publish(Publication(b"{}", "tasks.0")))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert session.is_open

    asyncio.run(main())
