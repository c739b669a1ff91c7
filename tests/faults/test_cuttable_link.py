"""The link that the fault tests cut does what it says: on asyncio's own loop and on uvloop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from reference_impl.live.loop import run_live
from tests.faults.cuttable_link import Link

LIMIT_S = 20.0

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, run_live], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    chosen: Run = request.param
    return chosen


class Server:
    """Keeps what it hears, and answers each line in capitals."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.changed = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard.append(line)
                self.changed.set()
                writer.write(line.upper())
        except ConnectionResetError:
            self.heard.append(b"reset")
        else:
            self.heard.append(b"end")
        self.changed.set()
        writer.close()

    async def has_heard(self, *expected: bytes) -> None:
        while self.heard != list(expected):
            self.changed.clear()
            await self.changed.wait()


def play(run: Run, body: Callable[[Link, Server], Awaitable[None]]) -> None:
    async def main() -> None:
        server = Server()
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        async with asyncio.timeout(LIMIT_S):
            async with Link(listening.sockets[0].getsockname()[1]) as link:
                await body(link, server)
            listening.close()

    run(main())


async def connect(link: Link) -> Streams:
    return await asyncio.open_connection("127.0.0.1", link.port)


async def connect_and_read(link: Link) -> None:
    reader, _ = await connect(link)
    await reader.readexactly(1)


async def is_reset(link: Link) -> None:
    with pytest.raises(ConnectionResetError):
        await connect_and_read(link)


async def nothing_comes(reader: asyncio.StreamReader) -> None:
    """Nothing but silence, for as long as an answer would take many times over."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.read(1)


def test_what_is_sent_passes_and_so_does_the_end(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        reader, writer = await connect(link)
        writer.write(b"hello\n")
        assert await reader.readline() == b"HELLO\n"
        writer.write_eof()
        assert await reader.read() == b""
        await server.has_heard(b"hello\n", b"end")
        writer.close()

    play(run, body)


def test_more_than_a_window_passes_whole_and_in_order(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        reader, writer = await connect(link)
        lines = [b"%d\n" % number for number in range(500_000)]
        link.cut()
        writer.write(b"".join(lines))
        link.mend()
        for line in lines:
            assert await reader.readline() == line
        assert server.heard == lines
        writer.close()

    play(run, body)


def test_a_reset_is_told_to_both_ends(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        reader, writer = await connect(link)
        writer.write(b"hello\n")
        await reader.readline()
        link.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await server.has_heard(b"hello\n", b"reset")
        writer.close()
        _, again = await connect(link)
        again.write(b"again\n")
        await server.has_heard(b"hello\n", b"reset", b"again\n")
        again.close()

    play(run, body)


def test_new_connections_are_reset_until_it_is_mended(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        link.refuse()
        await is_reset(link)
        link.mend()
        reader, writer = await connect(link)
        writer.write(b"hello\n")
        assert await reader.readline() == b"HELLO\n"
        writer.close()

    play(run, body)


def test_a_cut_is_silent_and_what_was_sent_arrives_when_it_is_mended(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        reader, writer = await connect(link)
        link.cut()
        writer.write(b"late\n")
        await nothing_comes(reader)
        assert server.heard == []
        link.mend()
        assert await reader.readline() == b"LATE\n"
        writer.close()

    play(run, body)


def test_the_end_of_a_process_is_not_heard_through_a_cut(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        reader, writer = await connect(link)
        writer.write(b"hello\n")
        await reader.readline()
        link.cut()
        writer.close()
        await writer.wait_closed()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await server.has_heard(b"hello\n", b"end")
        link.mend()
        await server.has_heard(b"hello\n", b"end")

    play(run, body)


def test_a_new_connection_hangs_while_it_is_cut(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        link.cut()
        reader, writer = await connect(link)
        writer.write(b"hello\n")
        await nothing_comes(reader)
        link.mend()
        assert await reader.readline() == b"HELLO\n"
        writer.close()

    play(run, body)


def test_a_link_that_forgot_leaves_old_connections_dead_and_lets_new_ones_pass(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        reader, writer = await connect(link)
        writer.write(b"before\n")
        await reader.readline()
        link.cut()
        link.mend(forget=True)
        writer.write(b"lost\n")
        fresh, again = await connect(link)
        again.write(b"again\n")
        assert await fresh.readline() == b"AGAIN\n"
        await nothing_comes(reader)
        assert server.heard == [b"before\n", b"again\n"]
        writer.close()
        again.close()

    play(run, body)


def test_a_connection_can_be_half_open(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        reader, writer = await connect(link)
        link.cut(("down",))
        writer.write(b"heard\n")
        await server.has_heard(b"heard\n")
        await nothing_comes(reader)
        assert link.waiting_bytes == len(b"HEARD\n")
        link.mend()
        assert link.waiting_bytes == 0
        assert await reader.readline() == b"HEARD\n"
        link.cut(("up",))
        writer.write(b"unheard\n")
        await nothing_comes(reader)
        assert server.heard == [b"heard\n"]
        writer.close()

    play(run, body)


def test_one_connection_is_cut_and_its_neighbour_is_not(run: Run) -> None:
    async def body(link: Link, server: Server) -> None:
        first, first_writer = await connect(link)
        first_writer.write(b"one\n")
        await first.readline()
        second, second_writer = await connect(link)
        second_writer.write(b"two\n")
        await second.readline()
        link.connections[0].cut()
        first_writer.write(b"one again\n")
        second_writer.write(b"two again\n")
        assert await second.readline() == b"TWO AGAIN\n"
        await nothing_comes(first)
        link.connections[0].reset()
        with pytest.raises(ConnectionResetError):
            await first.read()
        second_writer.write(b"two at last\n")
        assert await second.readline() == b"TWO AT LAST\n"
        first_writer.close()
        second_writer.close()

    play(run, body)


def test_a_server_that_refuses_is_a_reset(run: Run) -> None:
    async def main() -> None:
        async with asyncio.timeout(LIMIT_S), Link(1) as link:
            await is_reset(link)

    run(main())
