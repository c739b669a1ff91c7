"""Serving an ASGI application on a loopback port, from the ready line to the drain."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import msgspec
import uvicorn

from reference_impl.live.stop_signals import stop_signals
from reference_impl.process_config import ConfigError

__all__ = ["announce", "serving", "stop_on_signals"]


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, which would end the process before it has drained."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()


def _listening_socket(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} on 127.0.0.1 cannot be used: {error.strerror}; name another, or 0 for a free one"
        ) from error
    return listener


@contextlib.asynccontextmanager
async def serving(
    app: Any,
    port: int,
    *,
    keep_alive_s: float = 75.0,
    http: type[asyncio.Protocol] | Literal["httptools"] = "httptools",
) -> AsyncIterator[str]:
    """Serve an ASGI application on 127.0.0.1 inside the block; gives its base URL once it listens.

    `keep_alive_s` is longer than the clients' own, so that a server never closes a connection that a client is about to use.
    """
    listener = _listening_socket(port)
    config = uvicorn.Config(
        app,
        loop="none",
        http=http,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=int(keep_alive_s),
        backlog=4096,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]), name="background:http")
    try:
        listening = asyncio.create_task(server.listening.wait())
        await asyncio.wait({task, listening}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            listening.cancel()
            await task
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        listener.close()


def stop_on_signals() -> asyncio.Event:
    """An event that SIGTERM, SIGINT or the end of the terminal sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in stop_signals():
        loop.add_signal_handler(number, stop.set)
    return stop


def announce(url: str) -> None:
    """The ready line, for whoever started this process."""
    sys.stdout.write(msgspec.json.encode({"ready": url}).decode() + "\n")
    sys.stdout.flush()
