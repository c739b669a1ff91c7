"""How fast the mock server is, beside a bare ASGI application on the same server in the same run.

`python -m tests.benchmarks.mock_server [--json] [--seconds S]`

Each server runs in a process of its own; one client drives it over a fixed number of connections. Requests are whole
answers without latency; streams are 100 events, by the mock at 400 a second, so that each event is a write of its own. Rates
are per CPU second of the server's process, which a busy machine changes little; the rate of requests by the wall clock
stands beside. `ratio_to_bare` must be at least 0.3.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import psutil
import uvloop

from reference_impl.messages import RequestTag
from tests.loadtests.mock.process import server_process

_CONNECTIONS = 32
_EVENTS = 100


def _request(*, stream: bool, row: int) -> bytes:
    body = msgspec.json.encode(
        {
            "model": "claude-haiku-5-5",
            "max_tokens": 1000,
            "stream": stream,
            "messages": [{"role": "user", "content": "word " * 200}],
        }
    )
    tag = RequestTag(row, 0, row, 250, _EVENTS if stream else 50).encode()
    return (
        b"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\nx-api-key: key\r\n"
        b"anthropic-version: 2023-06-01\r\ncontent-type: application/json\r\n"
        b"accept-encoding: identity\r\nx-twinload-request: %s\r\ncontent-length: %d\r\n\r\n%s"
        % (tag.encode(), len(body), body)
    )


class _Client(asyncio.Protocol):
    """Sends the next request as soon as the last answer is complete."""

    def __init__(self, requests: list[bytes], *, stream: bool, until_s: float) -> None:
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._stream = stream
        self._until_s = until_s
        self._count = 0
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._transport.write(self._requests[self._count % len(self._requests)])

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._stream:
            complete = self._buffer.endswith(b"0\r\n\r\n")
        else:
            head, _, body = self._buffer.partition(b"\r\n\r\n")
            complete = f"content-length: {len(body)}".encode() in head
        if not complete:
            return
        if not self._buffer.startswith(b"HTTP/1.1 200 "):
            self.done.set_exception(RuntimeError(self._buffer[:300].decode()))
            return
        self._buffer = b""
        self._count += 1
        if time.monotonic() < self._until_s:
            self._send()
        else:
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(self._count)


async def _drive(port: int, *, stream: bool, seconds: float) -> int:
    loop = asyncio.get_running_loop()
    until_s = time.monotonic() + seconds
    requests = [_request(stream=stream, row=i) for i in range(200)]
    clients = []
    for _ in range(_CONNECTIONS):
        _, client = await loop.create_connection(
            lambda: _Client(requests, stream=stream, until_s=until_s), "127.0.0.1", port
        )
        clients.append(client)
    async with asyncio.timeout(seconds + 20):
        return sum(await asyncio.gather(*(client.done for client in clients)))


def _measure(url: str, pid: int, *, stream: bool, seconds: float) -> dict[str, float]:
    port = int(url.rsplit(":", 1)[1])
    process = psutil.Process(pid)
    uvloop.run(_drive(port, stream=stream, seconds=min(0.5, seconds)))  # warm up
    before, began = process.cpu_times(), time.monotonic()
    count = uvloop.run(_drive(port, stream=stream, seconds=seconds))
    elapsed, after = time.monotonic() - began, process.cpu_times()
    cpu_s = after.user + after.system - before.user - before.system
    return {"per_cpu_s": count / cpu_s, "per_s": count / elapsed}


@contextlib.contextmanager
def _bare() -> Iterator[tuple[str, int]]:
    with server_process("tests.benchmarks.bare_server") as (url, process):
        yield url, process.pid


_PACED = """
name: paced
service: {kind: provider, ttft_s: 0.02, tokens_per_s: 400, prefill_s_per_token: 0, gap_sigma: 0}
output_tokens: 100
"""


@contextlib.contextmanager
def _mock(profile: str) -> Iterator[tuple[str, int]]:
    with server_process("loadtests.mock_llm", "--profile", profile) as (url, process):
        yield url, process.pid


def measure(seconds: float) -> dict[str, Any]:
    """All figures; runs for about five times `seconds`."""
    with _bare() as (url, pid):
        bare = _measure(url, pid, stream=False, seconds=seconds)
        bare_streams = _measure(url, pid, stream=True, seconds=seconds)
    with _mock("instant") as (url, pid):
        mock = _measure(url, pid, stream=False, seconds=seconds)
    with tempfile.TemporaryDirectory() as folder:
        paced = Path(folder) / "paced.yaml"
        paced.write_text(_PACED)
        with _mock(str(paced)) as (url, pid):
            mock_streams = _measure(url, pid, stream=True, seconds=seconds)
    return {
        "requests_per_cpu_s": round(mock["per_cpu_s"]),
        "requests_per_s": round(mock["per_s"]),
        "bare_requests_per_cpu_s": round(bare["per_cpu_s"]),
        "ratio_to_bare": round(mock["per_cpu_s"] / bare["per_cpu_s"], 3),
        "streams_per_cpu_s": round(mock_streams["per_cpu_s"]),
        "bare_streams_per_cpu_s": round(bare_streams["per_cpu_s"]),
        "streams_ratio_to_bare": round(mock_streams["per_cpu_s"] / bare_streams["per_cpu_s"], 3),
        "events_per_stream": _EVENTS,
        "connections": _CONNECTIONS,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each of four measurements")
    arguments = parser.parse_args(argv)
    figures = measure(arguments.seconds)
    if arguments.json:
        sys.stdout.write(msgspec.json.encode(figures).decode() + "\n")
    else:
        for name, value in figures.items():
            sys.stdout.write(f"{name:26} {value:>10}\n")
    return 0 if figures["ratio_to_bare"] >= 0.3 else 1


if __name__ == "__main__":
    sys.exit(main())
