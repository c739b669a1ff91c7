"""Message batches as an unchanged SDK meets them: a queue in memory, a file, and an endpoint that fails on demand."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from anthropic import APIStatusError, AsyncAnthropic, BadRequestError, NotFoundError

from reference_impl.batches.port import Batch, BatchRequest
from reference_impl.batches.routes import BatchRoutes
from reference_impl.batches.service import BatchService
from reference_impl.batches.worker import BatchWorker
from reference_impl.database.memory_batches import MemoryBatches
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.database.sqlite_store import SqliteLedger
from reference_impl.deployment import RetrySpec
from reference_impl.errors import InvalidRequest, NotFound, Overloaded
from reference_impl.live.serving import serving
from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.metrics import ServiceMetrics
from reference_impl.prices import load_prices
from reference_impl.queues.memory import MemoryQueue
from reference_impl.service import MessagesEndpoint, gateway_app
from reference_impl.task_processor import TaskProcessor


class Endpoint:
    """Answers with the prompt; refuses "bad", is overloaded at the first call for "busy", and holds "slow" until told."""

    def __init__(self, ledger: SqliteLedger) -> None:
        self.ledger = ledger
        self.calls: list[str] = []
        self.go = asyncio.Event()
        self.layout = -1  # spaces by which JSON is indented

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        prompt = msgspec.json.decode(call.body)["messages"][0]["content"]
        self.calls.append(prompt)
        if prompt == "bad":
            raise InvalidRequest("bad prompt")
        if prompt == "busy" and self.calls.count("busy") == 1:
            raise Overloaded("try later")
        if prompt == "slow":
            await self.go.wait()
        message = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": call.model,
            "content": [{"type": "text", "text": prompt}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 1, "output_tokens": 1},
        }
        encoded = msgspec.json.format(msgspec.json.encode(message), indent=self.layout)
        return Completion(Usage(1, 1), body=encoded)

    async def aclose(self) -> None:
        self.go.set()


@asynccontextmanager
async def stack(
    folder: Path, *, concurrency: int = 4
) -> AsyncIterator[tuple[AsyncAnthropic, AsyncAnthropic, Endpoint]]:
    """Clients of two tenants, and the endpoint behind."""
    ledger = SqliteLedger(folder / "ledger.sqlite")
    await ledger.open()
    upstream, queue, metrics = Endpoint(ledger), MemoryQueue(), ServiceMetrics({})
    store = ledger.batches()
    endpoint = MessagesEndpoint(upstream, metrics, itertools.count(), {"one": "a", "two": "b"})
    service = BatchService(store, queue, wall_clock_s)
    worker = BatchWorker(upstream, store, load_prices(), wall_clock=wall_clock_s)
    processor = TaskProcessor(
        queue,
        concurrency=concurrency,
        retry=RetrySpec(backoff_s=0.01, backoff_max_s=0.02),
        effects=worker,
    )
    worker.register(processor)
    running = asyncio.create_task(processor.process_queue())
    app = gateway_app(
        endpoint,
        metrics,
        lambda: True,
        on_heartbeat=lambda _: False,
        control_token="unused",
        batches=BatchRoutes(service, endpoint.authenticate, endpoint.new_request_id),
    )
    try:
        async with (
            serving(app, 0) as url,
            AsyncAnthropic(api_key="one", base_url=url, max_retries=0) as one,
            AsyncAnthropic(api_key="two", base_url=url, max_retries=0) as two,
        ):
            yield one, two, upstream
    finally:
        await processor.drain(0)
        await running
        await queue.close()
        await ledger.aclose()


def request(custom_id: str, prompt: str, max_tokens: int = 8) -> Any:
    return {
        "custom_id": custom_id,
        "params": {
            "model": "claude-haiku-4-5",
            "max_tokens": max_tokens,
            "messages": [{"role": "user", "content": prompt}],
        },
    }


async def ended(client: AsyncAnthropic, batch_id: str) -> Any:
    async with asyncio.timeout(10):
        while True:
            batch = await client.messages.batches.retrieve(batch_id)
            if batch.processing_status == "ended":
                return batch
            await asyncio.sleep(0.02)


def test_a_batch_ends_with_a_result_for_every_request_by_its_id(tmp_path: Path) -> None:
    async def body() -> None:
        async with stack(tmp_path) as (client, _, upstream):
            batch = await client.messages.batches.create(
                requests=[request("good", "hello"), request("odd", "bad"), request("late", "busy")]
            )
            assert batch.results_url is None
            batch = await ended(client, batch.id)
            counts = batch.request_counts
            assert (counts.succeeded, counts.errored, counts.processing) == (2, 1, 0)
            results: dict[str, Any] = {
                entry.custom_id: entry.result
                async for entry in await client.messages.batches.results(batch.id)
            }
            assert results["good"].message.content[0].text == "hello"
            assert results["late"].message.content[0].text == "busy"
            assert results["odd"].error.error.type == "invalid_request_error"
            assert upstream.calls.count("busy") == 2

    asyncio.run(body())


def test_a_canceled_batch_ends_what_runs_and_nothing_else(tmp_path: Path) -> None:
    async def body() -> None:
        async with stack(tmp_path, concurrency=1) as (client, _, upstream):
            batch = await client.messages.batches.create(
                requests=[request(f"r-{n}", "slow") for n in range(5)]
            )
            async with asyncio.timeout(10):
                while not upstream.calls:
                    await asyncio.sleep(0.01)
            canceling = await client.messages.batches.cancel(batch.id)
            assert canceling.processing_status == "canceling"
            upstream.go.set()
            batch = await ended(client, batch.id)
            assert (batch.request_counts.succeeded, batch.request_counts.canceled) == (1, 4)
            deleted = await client.messages.batches.delete(batch.id)
            assert deleted.id == batch.id
            with pytest.raises(NotFoundError):
                await client.messages.batches.retrieve(batch.id)

    asyncio.run(body())


def test_a_tenant_sees_its_own_batches_page_by_page(tmp_path: Path) -> None:
    async def body() -> None:
        async with stack(tmp_path) as (one, two, _):
            made = [
                (await one.messages.batches.create(requests=[request("r", "hi")])).id
                for _ in range(5)
            ]
            seen = [batch.id async for batch in one.messages.batches.list(limit=2)]
            assert seen == made[::-1]
            page = await one.messages.batches.list(before_id=made[0], limit=3)
            assert [batch.id for batch in page.data] == made[1:4][::-1]
            assert page.has_more
            with pytest.raises(BadRequestError, match=f"before_id: no batch '{made[0]}'"):
                await two.messages.batches.list(before_id=made[0])
            assert [batch.id async for batch in two.messages.batches.list()] == []
            with pytest.raises(NotFoundError):
                await two.messages.batches.retrieve(made[0])

    asyncio.run(body())


@pytest.mark.parametrize(
    ("requests", "named"),
    [
        ([], "expected 1 to 100000"),
        ([request("a", "x"), request("a", "y")], r"requests.1.custom_id: 'a' is used twice"),
        ([request("a b", "x")], r"requests.0.custom_id"),
        ([{"custom_id": "a"}], r"params.*\$.requests\[0\]"),
    ],
)
def test_a_batch_that_is_wrong_is_refused_with_its_place(
    tmp_path: Path, requests: Any, named: str
) -> None:
    async def body() -> None:
        async with stack(tmp_path) as (client, _, upstream):
            with pytest.raises(BadRequestError, match=named):
                await client.messages.batches.create(requests=requests)
            assert upstream.calls == []

    asyncio.run(body())


def test_requests_that_are_wrong_have_an_errored_result_and_the_others_are_answered(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        async with stack(tmp_path) as (client, _, upstream):
            wrong: dict[str, Any] = {
                "none": {"model": "m"},
                "few": request("", "x", max_tokens=0)["params"],
                "many": request("", "x", max_tokens=10**15)["params"],
                "stream": {**request("", "x")["params"], "stream": True},
                "no-object": 5,
            }
            requests: Any = [{"custom_id": name, "params": wrong[name]} for name in wrong]
            batch = await client.messages.batches.create(
                requests=[*requests, request("good", "hello")]
            )
            counts = (await ended(client, batch.id)).request_counts
            assert (counts.succeeded, counts.errored) == (1, 5)
            told: dict[str, Any] = {
                entry.custom_id: entry.result
                async for entry in await client.messages.batches.results(batch.id)
            }
            errors = {name: told[name].error.error for name in wrong}
            assert {error.type for error in errors.values()} == {"invalid_request_error"}
            assert "missing required field `max_tokens`" in errors["none"].message
            assert "Expected `int` >= 1 - at `$.max_tokens`" in errors["few"].message
            assert errors["stream"].message == "params.stream: cannot be true in a batch"
            assert upstream.calls == ["hello"]
            rows = [row async for page in upstream.ledger.entries() for row in page]
            seen = sorted((row.outcome, row.attempts, row.cost_nanousd) for row in rows)
            assert seen == [("client_error", 0, 0)] * 5 + [("ok", 0, rows[-1].cost_nanousd)]

    asyncio.run(body())


def test_results_are_told_a_line_each_however_the_endpoint_lays_out_its_answers(
    tmp_path: Path,
) -> None:
    async def body() -> None:
        async with stack(tmp_path) as (client, _, upstream):
            upstream.layout = 2
            batch = await client.messages.batches.create(requests=[request("a", "one\ntwo")])
            await ended(client, batch.id)
            (result,) = [
                entry.result async for entry in await client.messages.batches.results(batch.id)
            ]
            assert result.type == "succeeded"
            (text,) = result.message.content
            assert text.type == "text"
            assert text.text == "one\ntwo"

    asyncio.run(body())


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/v1/messages/batches/nope", 404, "not_found_error"),
        ("GET", "/v1/messages/batches?limit=0", 400, "invalid_request_error"),
        ("POST", "/v1/messages/batches", 400, "invalid_request_error"),
        ("PUT", "/v1/messages/batches", 405, "invalid_request_error"),
        ("GET", "/v1/messages", 405, "invalid_request_error"),
        ("GET", "/v1/messages/batches/a/b/c", 404, "not_found_error"),
        ("GET", "/v2", 404, "not_found_error"),
    ],
)
def test_every_error_has_the_shape_of_the_api_and_the_id_of_its_request(
    tmp_path: Path, method: str, path: str, status: int, kind: str
) -> None:
    async def body() -> None:
        async with stack(tmp_path) as (client, _, _), aiohttp.ClientSession() as session:
            url = str(client.base_url).rstrip("/") + path
            async with session.request(method, url, headers={"x-api-key": "one"}) as answer:
                told = await answer.json()
                assert (answer.status, told["type"], told["error"]["type"]) == (
                    status,
                    "error",
                    kind,
                )
                assert told["request_id"] == answer.headers["request-id"]
                assert told["request_id"].startswith("req_")

    asyncio.run(body())


def test_every_answer_about_batches_has_a_request_id_of_its_own(tmp_path: Path) -> None:
    async def body() -> None:
        async with stack(tmp_path) as (client, _, _):
            batch = await client.messages.batches.create(requests=[request("a", "hi")])
            seen = await ended(client, batch.id)
            ids = {batch._request_id, seen._request_id}
            assert len(ids) == 2
            assert None not in ids

    asyncio.run(body())


def test_an_upload_that_breaks_off_leaves_no_batch_and_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with stack(tmp_path) as (client, _, _):
            _, writer = await asyncio.open_connection("127.0.0.1", client.base_url.port)
            writer.write(
                b"POST /v1/messages/batches HTTP/1.1\r\nhost: x\r\nx-api-key: one\r\n"
                b'content-length: 1000\r\n\r\n{"requests'
            )
            await writer.drain()
            # Answered on a connection of its own: by then the server has read what came before.
            assert [b async for b in await client.messages.batches.list()] == []
            writer.close()
            await writer.wait_closed()
            assert [b async for b in await client.messages.batches.list()] == []
        assert [record for record in caplog.records if record.exc_info] == []

    asyncio.run(body())


def test_a_batch_that_a_crash_left_stored_is_enqueued_at_the_next_start() -> None:
    async def body() -> None:
        store, queue = MemoryLedger().batches(), MemoryQueue()
        params = msgspec.Raw(msgspec.json.encode(request("a", "hi")["params"]))
        batch = Batch("msgbatch_1", "", 0.0, 1e12, processing=1)
        await store.create(batch, [BatchRequest("a", params)])
        service = BatchService(store, queue, wall_clock_s)
        for _ in range(2):
            await service.start()
            await service.mended()
        assert (await queue.statistics()).depth == 1
        task = await queue.dequeue()
        assert task is not None
        assert task.task_id == "msgbatch_1/0"

    asyncio.run(body())


def test_a_batch_that_was_not_done_in_a_day_has_ended_then_whoever_looks_first_and_when() -> None:
    async def body() -> None:
        now = [1000.0]
        store = MemoryLedger().batches()
        service = BatchService(store, MemoryQueue(), lambda: now[0])
        params = msgspec.Raw(msgspec.json.encode(request("a", "hi")["params"]))
        first = await service.create("", [BatchRequest("a", params), BatchRequest("b", params)])
        second = await service.create("", [BatchRequest("a", params)])
        await store.record(first.batch_id, 1, "succeeded", b"{}", 2000.0)
        now[0] += 24 * 3600 - 0.1
        assert (await service.retrieve("", first.batch_id)).status == "in_progress"
        now[0] += 10 * 24 * 3600
        listed = (await service.of_tenant("", 2)).batches
        assert [(batch.status, batch.expired) for batch in listed] == [("ended", 1)] * 2
        for batch in (first, second):
            seen = await service.retrieve("", batch.batch_id)
            assert (seen.status, seen.expired) == ("ended", 1)
            assert seen.ended_s == seen.expires_s == 1000.0 + 24 * 3600
        lines = [part async for part in await service.results("", second.batch_id)]
        assert lines == [b'{"custom_id":"a","result":{"type":"expired"}}\n']

    asyncio.run(body())


def test_a_download_looks_at_its_batch_once_and_breaks_where_that_is_deleted() -> None:
    async def body() -> None:
        looks: list[str] = []

        class Counting(MemoryBatches):
            async def get(self, batch_id: str) -> Batch | None:
                looks.append(batch_id)
                return await super().get(batch_id)

        store = Counting(lambda _: None)
        service = BatchService(store, MemoryQueue(), wall_clock_s)
        params = msgspec.Raw(msgspec.json.encode(request("a", "hi")["params"]))
        batch = await service.create("", [BatchRequest(f"r{n}", params) for n in range(1700)])
        await store.expire(batch.batch_id, b'{"type":"expired"}', 1.0)
        parts = [part async for part in await service.results("", batch.batch_id)]
        assert [part.count(b"\n") for part in parts] == [500, 500, 500, 200]
        assert looks == [batch.batch_id]
        lines = await service.results("", batch.batch_id)
        assert (await anext(lines)).count(b"\n") == 500
        await store.delete(batch.batch_id)
        with pytest.raises(NotFound, match="while its results were read"):
            await anext(lines)

    asyncio.run(body())


def test_a_store_that_is_away_is_told_as_such(tmp_path: Path) -> None:
    async def body() -> None:
        async with stack(tmp_path) as (client, _, upstream):
            batch = await client.messages.batches.create(requests=[request("r", "hi")])
            await ended(client, batch.id)
            await upstream.ledger.aclose()
            with pytest.raises(APIStatusError, match="does not answer") as caught:
                await client.messages.batches.retrieve(batch.id)
            assert caught.value.status_code == 503
            assert caught.value.response.headers["retry-after"] == "1"

    asyncio.run(body())
