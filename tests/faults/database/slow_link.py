"""A database that is far away: a relay on the loopback that passes every byte on after `one_way_s`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["slow_link"]


@asynccontextmanager
async def slow_link(
    port: int, one_way_s: float, sent: list[bytearray] | None = None
) -> AsyncIterator[int]:
    """A port that leads to `port`, with that latency in each direction. `sent` gets what each client sent, by connection."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray
    ) -> None:
        def deliver(data: bytes) -> None:
            if not writer.is_closing():
                writer.write(data) if data else writer.close()

        while True:
            data = await reader.read(1 << 16)
            record += data
            loop.call_later(one_way_s, deliver, data)
            if not data:
                return

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
        record = bytearray()
        if sent is not None:
            sent.append(record)
        for way in ((reader, far_writer, record), (far_reader, writer, bytearray())):
            task = asyncio.create_task(pump(*way))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
        while tasks:  # clients have closed; let the last bytes through
            await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(2 * one_way_s)
    finally:
        server.close()
