"""A batch of two thousand by the official SDK, through RabbitMQ, against the mock, with a worker killed on the way."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from anthropic import AsyncAnthropic

from reference_impl.batches.routes import BatchRoutes
from reference_impl.batches.service import BatchService
from reference_impl.batches.sqlite_store import SqliteBatchStore
from reference_impl.live.loop import run_live
from reference_impl.live.serving import serving
from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.llm.aiohttp_transport import AiohttpTransport
from reference_impl.llm.http import HttpMessages
from reference_impl.metrics import ServiceMetrics
from reference_impl.queues.rabbitmq import RabbitMQQueue
from reference_impl.service import MessagesEndpoint, gateway_app, request_ids
from tests.faults.queues.worker_process import WorkerSettings
from tests.faults.queues.workers import WorkerProcess
from tests.loadtests.mock.process import Mock, running_mock
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import unique_prefix

REQUESTS = 2_000
WORKERS = 2
CONCURRENCY = 16


@pytest.mark.xdist_group("rabbitmq")
def test_a_batch_of_two_thousand_survives_the_death_of_a_worker(tmp_path: Path) -> None:
    with running_mock(tmp_path, "--profile", "fast", "--seed", "3") as mock:
        calls = run_live(submit(shared_rabbitmq_url(), mock, tmp_path))
    repeated = calls - REQUESTS
    assert 0 <= repeated <= CONCURRENCY, "what one killed worker had in hand, and no more"


async def submit(broker_url: str, mock: Mock, folder: Path) -> int:
    name = unique_prefix()
    settings = WorkerSettings(
        queue=broker_url,
        name=name,
        mock=mock.url,
        batches=str(folder / "batches.sqlite"),
        concurrency=CONCURRENCY,
        levels=1,
    )
    queue = RabbitMQQueue(broker_url, name=name, lease_s=3.0, levels=1)
    store = SqliteBatchStore(settings.batches)
    metrics = ServiceMetrics({})
    upstream = HttpMessages(AiohttpTransport(mock.url), api_key="test")
    endpoint = MessagesEndpoint(upstream, metrics, request_ids())
    app = gateway_app(
        endpoint,
        metrics,
        lambda: True,
        on_heartbeat=lambda _: False,
        control_token="unused",
        batches=BatchRoutes(BatchService(store, queue, wall_clock_s), endpoint.authenticate),
    )
    workers = [await WorkerProcess.start(settings) for _ in range(WORKERS)]
    try:
        async with serving(app, 0) as url, AsyncAnthropic(api_key="test", base_url=url) as client:
            batch = await client.messages.batches.create(
                requests=[
                    {
                        "custom_id": f"request-{number}",
                        "params": {
                            "model": "claude-haiku-4-5",
                            "max_tokens": 16,
                            "messages": [{"role": "user", "content": f"question {number}"}],
                        },
                    }
                    for number in range(REQUESTS)
                ]
            )
            assert batch.processing_status == "in_progress"
            async with asyncio.timeout(90):
                while batch.request_counts.succeeded < REQUESTS // 3:
                    await asyncio.sleep(0.05)
                    batch = await client.messages.batches.retrieve(batch.id)
                    assert batch.request_counts.errored == 0
                await workers[0].kill()
                while batch.processing_status != "ended":
                    await asyncio.sleep(0.2)
                    batch = await client.messages.batches.retrieve(batch.id)
            assert batch.request_counts.succeeded == REQUESTS
            ids = []
            async for entry in await client.messages.batches.results(batch.id):
                assert entry.result.type == "succeeded"
                assert entry.result.message.usage.output_tokens > 0
                assert entry.result.message.content
                ids.append(entry.custom_id)
            assert sorted(ids) == sorted(f"request-{number}" for number in range(REQUESTS))
        counts = await workers[1].drain()
        assert counts["dead"] == 0
    finally:
        for worker in workers:
            await worker.kill()
    await queue.close()
    await store.aclose()
    await upstream.aclose()
    await asyncio.to_thread(mock.wait_until_idle)
    return len(mock.records())
