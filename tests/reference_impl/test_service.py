"""The services over HTTP, in virtual time: what a client on the wire meets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from reference_impl.errors import RateLimited, StreamBroken
from reference_impl.instances.port import InstanceMetrics
from reference_impl.messages import Chunk, Completion, Emit
from reference_impl.metrics import ServiceMetrics
from reference_impl.service import (
    CONTROL_TOKEN_HEADER,
    HEARTBEAT_PATH,
    MAX_BODY_BYTES,
    MessagesEndpoint,
    gateway_app,
)
from simulation.kernel import run
from simulation.models.http_network import AsgiTransport
from simulation.models.network import Link
from simulation.scenario.distributions import Constant
from tests.reference_impl.calls import ScriptedPort, Step

BODY = msgspec.json.encode(
    {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
)
STREAMED = BODY[:-1] + b',"stream":true}'


class Answered:
    """Receives one answer."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.arrived_s: list[float] = []

    def head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers

    async def data(self, data: bytes) -> None:
        self.body += data
        self.arrived_s.append(asyncio.get_running_loop().time())

    @property
    def error(self) -> Any:
        return msgspec.json.decode(self.body)["error"]


class Service:
    """A gateway's application over a scripted port, behind a link of 10 ms."""

    def __init__(self, *steps: Step, tenants: Mapping[str, str] | None = None) -> None:
        self.port = ScriptedPort(*steps)
        self.metrics = ServiceMetrics()
        self.heartbeats: list[InstanceMetrics] = []
        endpoint = MessagesEndpoint(self.port, self.metrics, itertools.count(1), tenants)

        def on_heartbeat(metrics: InstanceMetrics) -> bool:
            self.heartbeats.append(metrics)
            return True

        app = gateway_app(
            endpoint,
            self.metrics,
            lambda: True,
            on_heartbeat=on_heartbeat,
            control_token="the token",
        )
        self.transport = AsgiTransport(app, Link("test", Constant(value=0.01), 0))

    async def post(
        self, body: bytes = BODY, path: str = "/v1/messages", **headers: str
    ) -> Answered:
        answered = Answered()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        await self.transport.post(path, given, body, answered)
        return answered


async def answers(call: Any, emit: Emit | None) -> Completion:
    return Completion(usage=None, body=b'{"type":"message"}')  # type: ignore[arg-type]


async def streams_slowly(call: Any, emit: Emit | None) -> Completion:
    assert emit is not None
    for n in range(3):
        await asyncio.sleep(1)
        await emit(Chunk(b"event: e%d\n\n" % n))
    return Completion(usage=None)  # type: ignore[arg-type]


def test_a_whole_answer_is_passed_on_with_the_request_id_and_the_cache_result() -> None:
    async def main() -> Answered:
        return await Service(answers).post()

    answered = run(main())
    assert (answered.status, answered.body) == (200, b'{"type":"message"}')
    assert answered.headers["request-id"].startswith("req_")
    assert answered.headers["x-twinload-cache"] == "off"


def test_events_of_a_stream_arrive_as_they_are_made_and_not_at_the_end() -> None:
    async def main() -> Answered:
        return await Service(streams_slowly).post(STREAMED)

    answered = run(main())
    assert answered.body == b"event: e0\n\nevent: e1\n\nevent: e2\n\n"
    assert answered.arrived_s == pytest.approx([1.02, 2.02, 3.02])
    assert answered.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"not json", "no Messages request"),
        (b"[]", "no Messages request"),
        (b'{"model": "m", "messages": []}', "max_tokens"),
        (b'{"model": 5, "max_tokens": 1, "messages": []}', "$.model"),
        (b'{"model": "m", "max_tokens": 0, "messages": []}', "max_tokens"),
        (b'{"model": "m", "max_tokens": 10000001, "messages": []}', "max_tokens"),
        (b'{"model": "m", "max_tokens": 1%b, "messages": []}' % (b"0" * 400), "max_tokens"),
        (b'{"model": "m", "max_tokens": 1, "messages": "hi"}', "$.messages"),
        (b"\xff\xfe", "no Messages request"),
        (b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "no Messages request"),
    ],
)
def test_a_bad_body_is_refused_in_the_shape_of_the_api(body: bytes, said: str) -> None:
    async def main() -> Answered:
        service = Service(answers)
        answered = await service.post(body)
        assert service.port.attempts == []
        return answered

    answered = run(main())
    assert answered.status == 400
    assert answered.error["type"] == "invalid_request_error"
    assert said in answered.error["message"]


def test_a_body_beyond_the_limit_is_refused() -> None:
    async def main() -> Answered:
        return await Service(answers).post(b"x" * (MAX_BODY_BYTES + 1))

    answered = run(main())
    assert (answered.status, answered.error["type"]) == (413, "request_too_large")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x_api_key": "right"}, 200),
        ({"authorization": "Bearer right"}, 200),
        ({"x_api_key": "wrong"}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({}, 401),
        ({"x_api_key": "wrong", "authorization": "Bearer right"}, 401),
    ],
)
def test_only_a_known_key_is_let_in(headers: dict[str, str], status: int) -> None:
    async def main() -> Answered:
        return await Service(answers, tenants={"right": "tenant a"}).post(
            BODY, "/v1/messages", **headers
        )

    answered = run(main())
    assert answered.status == status
    if status == 401:
        assert answered.error["type"] == "authentication_error"
        assert "right" not in answered.body.decode()


def test_a_refusal_of_the_endpoint_keeps_its_status_and_its_retry_after() -> None:
    async def refuses(call: Any, emit: Emit | None) -> Completion:
        raise RateLimited("slow down", retry_after_s=2.5)

    async def main() -> Answered:
        return await Service(refuses).post()

    answered = run(main())
    assert (answered.status, answered.headers["retry-after"]) == (429, "2.5")
    assert answered.error == {"type": "rate_limit_error", "message": "slow down"}


def test_a_stream_that_breaks_ends_with_an_error_event() -> None:
    async def breaks(call: Any, emit: Emit | None) -> Completion:
        assert emit is not None
        await emit(Chunk(b"event: e0\n\n"))
        raise StreamBroken("the endpoint went away")

    async def main() -> Answered:
        return await Service(breaks).post(STREAMED)

    answered = run(main())
    assert answered.status == 200
    assert answered.body.startswith(b"event: e0\n\nevent: error\ndata: ")
    assert b"the endpoint went away" in answered.body


def test_a_defect_is_answered_with_500_and_says_nothing_of_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails(call: Any, emit: Emit | None) -> Completion:
        raise ZeroDivisionError("secret detail")

    async def main() -> Answered:
        return await Service(fails).post()

    answered = run(main())
    assert answered.status == 500
    assert "secret" not in answered.body.decode()
    assert "ZeroDivisionError" in caplog.text


def test_a_client_that_leaves_ends_the_work_at_once() -> None:
    async def main() -> None:
        service = Service(streams_slowly)
        loop = asyncio.get_running_loop()
        leaving = asyncio.create_task(service.post(STREAMED))
        await asyncio.sleep(1.5)
        assert service.port.in_flight == 1
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        while service.port.in_flight:
            await asyncio.sleep(0.001)
        assert loop.time() < 1.6
        assert b'twinload_requests_total{outcome="cancelled"} 1.0' in service.metrics.exposition()

    run(main())


@pytest.mark.parametrize(("token", "status", "taken"), [("the token", 204, 1), ("another", 403, 0)])
def test_a_heartbeat_needs_the_control_token(token: str, status: int, taken: int) -> None:
    async def main() -> None:
        service = Service(answers)
        report = msgspec.json.encode(InstanceMetrics("instance-1", in_flight=3))
        headers = {CONTROL_TOKEN_HEADER.replace("-", "_"): token}
        answered = await service.post(report, HEARTBEAT_PATH, **headers)
        assert (answered.status, len(service.heartbeats)) == (status, taken)

    run(main())


def test_a_heartbeat_that_is_none_is_refused() -> None:
    async def main() -> None:
        service = Service(answers)
        headers = {CONTROL_TOKEN_HEADER.replace("-", "_"): "the token"}
        assert (await service.post(b"{}", HEARTBEAT_PATH, **headers)).status == 400
        assert service.heartbeats == []

    run(main())
