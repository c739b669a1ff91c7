"""A gateway with a queue starts before its PostgreSQL: what a crash had left of batches runs when it comes, and new ones are taken."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from anthropic import AsyncAnthropic, InternalServerError

from loadtests.stack import Stack
from reference_impl.batches.port import Batch, BatchRequest
from reference_impl.database.connect import DSN_VARIABLE, store_of_dsn
from reference_impl.live.loop import run_live
from reference_impl.queues.connect import URL_VARIABLE
from tests.faults.queues.batch_system import scenario
from tests.servers.postgres import PostgresProcess, require_postgres
from tests.servers.valkey import shared_valkey_url, unique_prefix

LIMIT_S = 60.0
PARAMS: Any = {
    "model": "claude-haiku-4-5",
    "max_tokens": 16,
    "messages": [{"role": "user", "content": "a question"}],
}


async def leave(dsn: str) -> None:
    """What a gateway leaves that dies between storing a batch and enqueueing it."""
    store = store_of_dsn(dsn)
    await store.open()
    try:
        now = time.time()
        batch = Batch("msgbatch_left", "tenant", now, now + 3600, processing=2)
        params = msgspec.Raw(msgspec.json.encode(PARAMS))
        await store.batches().create(batch, [BatchRequest(f"c{n}", params) for n in range(2)])
    finally:
        await store.aclose()


async def ended(client: AsyncAnthropic, batch_id: str) -> int:
    """The requests that succeeded, when the batch has ended."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            try:
                batch = await client.messages.batches.retrieve(batch_id)
            except InternalServerError:
                await asyncio.sleep(0.1)
                continue
            if batch.processing_status == "ended":
                return batch.request_counts.succeeded
            await asyncio.sleep(0.1)


async def use(url: str, server: PostgresProcess) -> None:
    async with AsyncAnthropic(api_key="sdk-key", base_url=url, max_retries=0) as client:
        requests: Any = [{"custom_id": "new", "params": PARAMS}]
        with pytest.raises(InternalServerError, match="does not answer"):
            await client.messages.batches.create(requests=requests)
        message = await client.messages.create(**PARAMS)
        assert message.usage.output_tokens > 0, "calls are answered meanwhile"
        await asyncio.to_thread(server.start)
        assert await ended(client, "msgbatch_left") == 2
        batch = await client.messages.batches.create(requests=requests)
        assert await ended(client, batch.id) == 1
        seen = [found.id async for found in await client.messages.batches.list()]
        assert seen == [batch.id, "msgbatch_left"], "the one that was refused is nowhere"


def test_a_gateway_with_a_queue_that_is_earlier_than_its_database_takes_batches_when_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_postgres()
    monkeypatch.setenv(URL_VARIABLE, shared_valkey_url())
    server = PostgresProcess("fsync=on")
    try:
        server.start()
        dsn = server.dsn()
        monkeypatch.setenv(DSN_VARIABLE, dsn)
        run_live(leave(dsn))
        server.kill()
        with Stack(scenario("redis", unique_prefix()), tmp_path, {"sdk-key": "tenant"}) as stack:
            run_live(use(stack.url, server))
    finally:
        server.close()
