"""A batch of two thousand by the official SDK, through gateway, RabbitMQ, instances and PostgreSQL, against the mock, while one
instance is killed: complete, correct, and debited once."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import psutil
import pytest
from anthropic import AsyncAnthropic

from loadtests.stack import MOCK_LOG, Stack
from reference_impl.batches.worker import call_id
from reference_impl.database.connect import DSN_VARIABLE, store_of_dsn
from reference_impl.database.entries import LedgerEntry
from reference_impl.live.loop import run_live
from reference_impl.queues.connect import URL_VARIABLE
from simulation.scenario.schema import Scenario
from simulation.scenario.spec import load_scenario
from tests.loadtests.mock.process import read_log
from tests.servers.postgres import fresh_database
from tests.servers.rabbitmq import shared_rabbitmq_url
from tests.servers.valkey import unique_prefix

REQUESTS = 2_000
CONCURRENCY = 16


def scenario() -> Scenario:
    return load_scenario(
        "demo",
        {
            "deployment.queue": {
                "broker": "rabbitmq",
                "name": unique_prefix(),
                "concurrency": CONCURRENCY,
                "lease_s": 3.0,
            },
            "deployment.database.ledger": "postgres",
            "deployment.database.max_size": 6,
            "deployment.instances": {"initial": 2, "concurrency": 2 * CONCURRENCY, "boot_s": 0},
            "deployment.autoscaler.enabled": False,
            "endpoint": {"profile": "fast", "speedup": 10},
        },
    )


@pytest.mark.xdist_group("rabbitmq")
def test_a_batch_of_two_thousand_survives_the_death_of_an_instance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = fresh_database()
    monkeypatch.setenv(DSN_VARIABLE, dsn)
    monkeypatch.setenv(URL_VARIABLE, shared_rabbitmq_url())
    with Stack(scenario(), tmp_path, {"sdk-key": "tenant"}) as stack:
        batch_id = run_live(submit(stack.url))
        rows = run_live(ledger(dsn))
    keys = {f"{batch_id}/{number}" for number in range(REQUESTS)}
    assert {row.entry_id for row in rows} == keys
    assert len(rows) == REQUESTS
    assert {(row.key_id, row.kind, row.outcome) for row in rows} == {("tenant", "batch", "ok")}
    assert {row.instance for row in rows} > {"instance-1", "instance-2"}, "another took its place"
    calls = [record["request_id"] for record in read_log(tmp_path / MOCK_LOG)]
    assert set(calls) == {call_id(key) for key in keys}
    wasted = len(calls) - REQUESTS
    recorded = sum(row.attempts for row in rows) - REQUESTS
    print(f"{REQUESTS} requests, {len(calls)} calls, {wasted} wasted, {recorded} in the ledger")
    assert 0 <= wasted <= CONCURRENCY, "what one killed instance had in hand, and no more"
    assert wasted <= recorded, "a call that was made again is never hidden"


async def submit(url: str) -> str:
    async with AsyncAnthropic(api_key="sdk-key", base_url=url) as client:
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
            kill_an_instance()
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
        return batch.id


def kill_an_instance() -> None:
    """SIGKILL to the first instance among the processes that this one started."""
    instances = [
        process
        for process in psutil.Process().children(recursive=True)
        if {"instance", "instance-1"} <= set(process.cmdline())
    ]
    assert len(instances) == 1, instances
    instances[0].send_signal(signal.SIGKILL)


async def ledger(dsn: str) -> list[LedgerEntry]:
    store = store_of_dsn(dsn)
    await store.open()
    try:
        return [entry async for page in store.entries() for entry in page]
    finally:
        await store.aclose()
