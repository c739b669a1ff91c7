"""The mock's ASGI application: routes, authentication, and the API's shape of every error."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from loadtests.mock.batches import BatchRoutes
from loadtests.mock.catalog import ModelRoutes
from loadtests.mock.exchange import Exchange, Receive, Scope, Send
from loadtests.mock.keys import Keys
from loadtests.mock.messages import MessagesRoutes
from loadtests.mock.metrics import MockMetrics
from reference_impl.errors import InvalidRequest, NotFound, ServiceError, UpstreamFailed
from simulation.models.endpoint.request import KNOWN_VERSIONS

__all__ = ["MockApp"]

log = logging.getLogger(__name__)

_TEXT: Final = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")

Handler = Callable[[Exchange], Awaitable[None]]


class MockApp:
    """Serves one endpoint over HTTP."""

    def __init__(
        self,
        keys: Keys,
        messages: MessagesRoutes,
        models: ModelRoutes,
        batches: BatchRoutes,
        metrics: MockMetrics,
    ) -> None:
        self._keys = keys
        self._messages = messages
        self._models = models
        self._batches = batches
        self._metrics = metrics
        self._serial = itertools.count(1)
        self._serving: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, f"req_{next(self._serial):012d}")
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            await self._route(exchange)
        except ServiceError as error:
            await exchange.refuse(error)
        except Exception as error:
            log.exception("unexpected error in %s %s", exchange.method, exchange.path)
            await exchange.refuse(
                UpstreamFailed(f"Internal server error: {type(error).__name__}", status=500)
            )
        finally:
            self._serving.discard(task)

    def stop(self) -> None:
        """Cut off what is still being served."""
        for task in tuple(self._serving):
            task.cancel()

    async def _route(self, exchange: Exchange) -> None:
        method, path = exchange.method, exchange.path
        # The hot path first.
        if path == "/v1/messages" and method == "POST":
            account, version = self._admit(exchange)
            await self._messages.create(exchange, account, version)
            return
        if path == "/healthz":
            await exchange.reply_json(self._metrics.health())
        elif path == "/metrics":
            await exchange.reply(200, self._metrics.text(), content_type=_TEXT)
        elif path == "/":
            await exchange.reply(200, b"")
        else:
            await self._route_rest(exchange, method, path)

    async def _route_rest(self, exchange: Exchange, method: str, path: str) -> None:
        account, version = self._admit(exchange)
        parts = path.strip("/").split("/")
        match (method, parts):
            case ("POST", ["v1", "messages", "count_tokens"]):
                await self._messages.count_tokens(exchange)
            case ("GET", ["v1", "models"]):
                await self._models.list(exchange)
            case ("GET", ["v1", "models", name]):
                await self._models.get(exchange, name)
            case (_, ["v1", "messages", "batches", *rest]):
                await self._batches.route(exchange, account, version, method, rest)
            case (_, ["v1", "messages" | "models", *_]):
                raise InvalidRequest(f"Method {method} is not allowed here", status=405)
            case _:
                raise NotFound(f"Not found: {path[:100]}")

    def _admit(self, exchange: Exchange) -> tuple[str, str]:
        """(account, API version) of a request; raises what it is refused with."""
        account = self._keys.account(exchange)
        version = exchange.header(b"anthropic-version")
        if not version:
            raise InvalidRequest("anthropic-version: header is required")
        if version not in KNOWN_VERSIONS:
            raise InvalidRequest(
                f"anthropic-version: {version[:40]!r} is not a valid version; "
                f"valid: {', '.join(sorted(KNOWN_VERSIONS))}"
            )
        return account, version
