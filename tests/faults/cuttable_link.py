"""A network that can be cut: a relay of TCP on the loopback, between a process under test and a server.

A cut is told to nobody (`cut`): connections stay open, new ones are accepted and hang, and what is sent waits, as TCP keeps
and repeats what is not acknowledged. `mend` delivers it, late, in its order. With `forget=True` the connections of before the
mending stay dead without a word, as behind a firewall that lost its table. `reset` is the other kind: both ends are told at
once. A cut of one way leaves a connection half open.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import struct
from collections import deque
from types import TracebackType
from typing import Any, Final, Literal

__all__ = ["BOTH_WAYS", "Connection", "Link", "Way"]

# up: from who connected to the server. down: back.
Way = Literal["up", "down"]
BOTH_WAYS: Final[tuple[Way, ...]] = ("up", "down")

# What may be under way before the sender has to wait: TCP's window.
_WINDOW_BYTES: Final = 1 << 20
_LINGER_AND_RESET: Final = struct.pack("ii", 1, 0)


class _Sign(enum.Enum):
    """What a socket tells besides bytes."""

    END = "no more bytes"
    CLOSED = "closed"
    RESET = "reset"


class _Lane:
    """One way of a connection: what is under way from one socket to the other."""

    def __init__(self, source: _Socket, one_way_s: float) -> None:
        self.cut = False
        self.target: _Socket | None = None
        self._source = source
        self._one_way_s = one_way_s
        self._travelling: deque[bytes | _Sign] = deque()
        self._waiting: deque[bytes | _Sign] = deque()
        self.waiting_bytes = 0

    def send(self, item: bytes | _Sign) -> None:
        if self._one_way_s > 0:
            self._travelling.append(item)
            asyncio.get_running_loop().call_later(self._one_way_s, self._arrive)
        else:
            self._pass_on(item)

    def flow(self) -> None:
        """Deliver what waits, if it may pass."""
        while self._waiting and not self.cut and self.target is not None:
            item = self._waiting.popleft()
            self._deliver(self.target, item)
        self.waiting_bytes = sum(len(item) for item in self._waiting if isinstance(item, bytes))
        if self.waiting_bytes < _WINDOW_BYTES:
            self._source.listen(True)

    def _arrive(self) -> None:
        self._pass_on(self._travelling.popleft())

    def _pass_on(self, item: bytes | _Sign) -> None:
        if self.cut or self.target is None or self._waiting:
            self._waiting.append(item)
            self.waiting_bytes += len(item) if isinstance(item, bytes) else 0
            if self.waiting_bytes >= _WINDOW_BYTES:
                self._source.listen(False)
        else:
            self._deliver(self.target, item)

    def _deliver(self, target: _Socket, item: bytes | _Sign) -> None:
        if isinstance(item, bytes):
            target.write(item)
        elif item is _Sign.END:
            target.end()
        elif item is _Sign.CLOSED:
            target.close()
        else:
            target.reset()


class _Socket(asyncio.Protocol):
    """One of the two sockets of a connection."""

    def __init__(self) -> None:
        self.lane: _Lane | None = None
        self.other: _Socket | None = None
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self.lane is not None
        self.lane.send(data)

    def eof_received(self) -> bool:
        assert self.lane is not None
        self.lane.send(_Sign.END)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        assert self.lane is not None
        self._transport = None
        self.lane.send(_Sign.CLOSED if exc is None else _Sign.RESET)

    def pause_writing(self) -> None:
        if self.other is not None:
            self.other.listen(False)

    def resume_writing(self) -> None:
        if self.other is not None:
            self.other.listen(True)

    def listen(self, wanted: bool) -> None:
        if self._transport is not None and not self._transport.is_closing():
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def end(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """RST: whatever is unsent is gone."""
        if self._transport is None:
            return
        # uvloop's sockets have no setsockopt; the option belongs to the socket, whoever holds a descriptor of it.
        with socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as own:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_AND_RESET)
        self._transport.abort()


class Connection:
    """One connection through a link."""

    def __init__(self, near: _Socket, one_way_s: float) -> None:
        self._near = near
        self._far = _Socket()
        self._lanes: dict[Way, _Lane] = {
            "up": _Lane(near, one_way_s),
            "down": _Lane(self._far, one_way_s),
        }
        self._lanes["down"].target = near
        near.lane, self._far.lane = self._lanes["up"], self._lanes["down"]
        near.other, self._far.other = self._far, near
        self._forgotten = False

    async def reach(self, port: int) -> None:
        """Connect to the server; one that refuses is a reset to who asked."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self._far, "127.0.0.1", port)
        except OSError:
            self._near.reset()
            return
        self._lanes["up"].target = self._far
        self._lanes["up"].flow()

    def cut(self, ways: tuple[Way, ...] = BOTH_WAYS) -> None:
        """From now on nothing passes these ways, and nobody is told."""
        for way in ways:
            self._lanes[way].cut = True

    def mend(self) -> None:
        """What was sent meanwhile arrives."""
        if not self._forgotten:
            for lane in self._lanes.values():
                lane.cut = False
                lane.flow()

    def forget(self) -> None:
        """Nothing passes any more, ever."""
        self._forgotten = True
        self.cut()

    @property
    def waiting_bytes(self) -> int:
        """What was sent into the cut and waits."""
        return sum(lane.waiting_bytes for lane in self._lanes.values())

    def reset(self) -> None:
        """Both ends are told that it is gone."""
        self._near.reset()
        self._far.reset()


class Link:
    """A port that leads to `server_port` of the loopback, `one_way_s` away in each direction.

    Attributes:
        port: where to connect to. connections: those made so far, the oldest first.
    """

    def __init__(self, server_port: int, *, one_way_s: float = 0.0) -> None:
        self.port = 0
        self.connections: list[Connection] = []
        self._server_port = server_port
        self._one_way_s = one_way_s
        self._cut: tuple[Way, ...] = ()
        self._refusing = False
        self._mended = asyncio.Event()
        self._mended.set()
        self._reaching: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Link:
        self._server = await asyncio.get_running_loop().create_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._reaching:
            task.cancel()
        await asyncio.gather(*self._reaching, return_exceptions=True)
        self.reset()

    def cut(self, ways: tuple[Way, ...] = BOTH_WAYS) -> None:
        """Cut every connection, and those to come."""
        self._cut = ways
        self._mended.clear()
        for connection in self.connections:
            connection.cut(ways)

    def mend(self, *, forget: bool = False) -> None:
        """Let everything pass again; with `forget`, new connections alone."""
        self._cut = ()
        self._refusing = False
        self._mended.set()
        for connection in self.connections:
            if forget:
                connection.forget()
            connection.mend()

    @property
    def waiting_bytes(self) -> int:
        """What was sent into the cut and waits, over all connections."""
        return sum(connection.waiting_bytes for connection in self.connections)

    def refuse(self) -> None:
        """Reset every connection, and those to come, until it is mended."""
        self._refusing = True
        self.reset()

    def reset(self) -> None:
        """Reset every connection; new ones pass."""
        for connection in self.connections:
            connection.reset()

    def _accept(self) -> asyncio.Protocol:
        return _Near(self)

    def made(self, near: _Socket) -> None:
        """A connection has been accepted."""
        connection = Connection(near, self._one_way_s)
        if self._refusing:
            near.reset()
            return
        self.connections.append(connection)
        connection.cut(self._cut)
        task = asyncio.create_task(self._reach(connection))
        self._reaching.add(task)
        task.add_done_callback(self._reaching.discard)

    async def _reach(self, connection: Connection) -> None:
        await self._mended.wait()
        await connection.reach(self._server_port)


class _Near(_Socket):
    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._link.made(self)
