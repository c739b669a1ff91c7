"""Delivery on time: what a client sees of a hundred streams, against what the model drew."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from reference_impl.live.loop import run_live
from reference_impl.messages import Call, Chunk, RequestTag
from reference_impl.telemetry import RequestTrace
from simulation.kernel import run
from simulation.models.llm_endpoint import LLMEndpoint
from simulation.scenario.endpoint import load_profile
from tests.loadtests.mock.process import running_mock

Floats = npt.NDArray[np.float64]

_STREAMS = 100
_TOKENS = 120
_MODEL = "claude-sonnet-5-5"
_SEED = 4


def _row(i: int) -> RequestTag:
    return RequestTag(i, 0, i, 200, _TOKENS)


def _drawn() -> list[list[float]]:
    """Seconds from arrival to each chunk, by the model alone."""

    async def main() -> list[list[float]]:
        endpoint = LLMEndpoint(load_profile("haiku-class"), _SEED, detail="chunks")
        found = []
        for i in range(_STREAMS):
            begin_s = asyncio.get_running_loop().time()
            instants: list[float] = []

            async def emit(
                _: Chunk, into: list[float] = instants, begin_s: float = begin_s
            ) -> None:
                into.append(asyncio.get_running_loop().time() - begin_s)

            call = Call(
                request_id=i,
                model=_MODEL,
                max_tokens=1000,
                stream=True,
                trace=RequestTrace(),
                tag=_row(i),
            )
            await endpoint.complete(call, emit)
            found.append(instants)
        return found

    return run(main())


class _Reader(asyncio.Protocol):
    """Notes when the events of a stream arrive."""

    def __init__(self, request: bytes) -> None:
        self.done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        self._request = request
        self._instants: list[float] = []
        self._sent_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._sent_s = asyncio.get_running_loop().time()
        transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        elapsed_s = asyncio.get_running_loop().time() - self._sent_s
        self._instants += [elapsed_s] * data.count(b"event: content_block_delta")
        if b"event: message_stop" in data and not self.done.done():
            self.done.set_result(self._instants)


async def _received(port: int) -> list[list[float]]:
    body = msgspec.json.encode(
        {
            "model": _MODEL,
            "max_tokens": 1000,
            "stream": True,
            "messages": [{"role": "user", "content": "x"}],
        }
    )
    loop = asyncio.get_running_loop()

    async def one(i: int) -> list[float]:
        await asyncio.sleep(i * 0.01)  # a burst of a hundred would measure the burst
        request = (
            b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: k\r\n"
            b"anthropic-version: 2023-06-01\r\nx-twinload-request: %s\r\n"
            b"content-length: %d\r\n\r\n%s" % (_row(i).encode().encode(), len(body), body)
        )
        transport, reader = await loop.create_connection(
            lambda: _Reader(request), "127.0.0.1", port
        )
        try:
            async with asyncio.timeout(30):
                return await reader.done
        finally:
            transport.close()

    return await asyncio.gather(*(one(i) for i in range(_STREAMS)))


def _errors_ms(received: Floats, drawn: Floats) -> dict[str, float]:
    first_ms = np.abs(received[:, 0] - drawn[:, 0]) * 1e3
    gaps_ms = np.abs(np.diff(received, axis=1) - np.diff(drawn, axis=1)) * 1e3
    return {
        "first token, median": float(np.median(first_ms)),
        "first token, p99": float(np.quantile(first_ms, 0.99)),
        "gap, median": float(np.median(gaps_ms)),
        "gap, p99": float(np.quantile(gaps_ms, 0.99)),
    }


@pytest.mark.serial
def test_a_hundred_streams_arrive_as_they_were_drawn(tmp_path: Path) -> None:
    drawn = np.array(_drawn())
    tried = []
    # Whatever else the machine does only adds to the errors: the best of three runs is the mock's own.
    for _ in range(3):
        with running_mock(tmp_path, "--profile", "haiku-class", "--seed", str(_SEED)) as mock:
            received = np.array(run_live(_received(mock.port)))
        assert received.shape == drawn.shape == (_STREAMS, _TOKENS)
        errors_ms = _errors_ms(received, drawn)
        tried.append(errors_ms)
        if all(ms < (3.0 if "median" in name else 10.0) for name, ms in errors_ms.items()):
            break
    else:
        pytest.fail(f"three runs, each late (ms): {tried}")
    sys.stdout.write(f"{ {name: round(ms, 2) for name, ms in tried[-1].items()} } ms\n")
