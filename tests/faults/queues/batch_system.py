"""The whole system under a batch while parts of it are killed: gateway, broker, instances, PostgreSQL, and the mock's own log.

Faults come at points of progress that a seed draws. Afterwards the ledger is held against the mock's log: every request is
answered and debited once, every call has its request, and those beyond one a request are no more than the faults explain, nor
than the ledger shows.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil
from anthropic import APIConnectionError, APIStatusError, AsyncAnthropic

from loadtests.stack import MOCK_LOG, Stack
from reference_impl.batches.worker import call_id
from reference_impl.database.connect import store_of_dsn
from reference_impl.database.entries import LedgerEntry
from reference_impl.live.loop import run_live
from reference_impl.telemetry import SystemEvent
from simulation.scenario.schema import Scenario
from simulation.scenario.spec import load_scenario
from tests.loadtests.mock.process import read_log

__all__ = ["CONCURRENCY", "INSTANCES", "Fault", "kill_an_instance", "play", "points", "scenario"]

CONCURRENCY = 16
INSTANCES = 2
# A whole batch of ten thousand, on a machine that does other things too.
LIMIT_S = 600.0

Fault = Callable[[], Awaitable[None]]


class Reconciled(NamedTuple):
    """What ledger and mock say of a batch: calls beyond one a request, and how many of those the ledger shows.

    `started`: the instances that the gateway began.
    """

    wasted: int
    recorded: int
    started: frozenset[str]


def scenario(broker: str, name: str) -> Scenario:
    """A gateway and `INSTANCES` instances over a broker of that kind and a ledger in PostgreSQL."""
    return load_scenario(
        "demo",
        {
            "deployment.queue": {
                "broker": broker,
                "name": name,
                "concurrency": CONCURRENCY,
                "lease_s": 3.0,
                "retry": {"backoff_s": 0.1, "backoff_max_s": 1.0},
            },
            "deployment.database.ledger": "postgres",
            "deployment.database.max_size": 6,
            "deployment.instances": {
                "initial": INSTANCES,
                "concurrency": 2 * CONCURRENCY,
                "boot_s": 0,
            },
            "deployment.autoscaler.enabled": False,
            "endpoint": {"profile": "fast", "speedup": 10},
        },
    )


def points(luck: random.Random, requests: int, faults: Sequence[Fault]) -> list[tuple[int, Fault]]:
    """Each fault with the number of results at which it comes, one in each part of the run."""
    part = requests * 0.8 / len(faults)
    return [(int(part * (n + luck.random())), fault) for n, fault in enumerate(faults)]


def play(
    system: Scenario, folder: Path, dsn: str, requests: int, plan: Sequence[tuple[int, Fault]]
) -> Reconciled:
    """Submit a batch of `requests` by the SDK, inflict `plan`, wait for its end, reconcile. Asserts what must hold."""
    with Stack(system, folder, {"sdk-key": "tenant"}) as stack:
        batch_id = run_live(_submit(stack.url, requests, plan))
        rows = run_live(_ledger(dsn))
    keys = {f"{batch_id}/{number}" for number in range(requests)}
    assert len(rows) == requests
    assert {row.entry_id for row in rows} == keys
    assert {(row.key_id, row.kind, row.outcome) for row in rows} == {("tenant", "batch", "ok")}
    calls = [record["request_id"] for record in read_log(folder / MOCK_LOG)]
    assert set(calls) == {call_id(key) for key in keys}
    wasted = len(calls) - requests
    recorded = sum(row.attempts for row in rows) - requests
    print(f"{requests} requests, {len(calls)} calls, {wasted} wasted, {recorded} in the ledger")
    assert 0 <= wasted <= recorded, "a call that was made again is never hidden"
    lines = (folder / "events-gateway.jsonl").read_bytes().splitlines()
    events = [msgspec.json.decode(line, type=SystemEvent) for line in lines]
    started = {e.subject for e in events if e.kind == "instance" and e.detail["state"] == "booting"}
    return Reconciled(wasted, recorded, frozenset(started))


async def kill_an_instance() -> None:
    """SIGKILL to the oldest instance among the processes below this one."""
    instances = [p for p in psutil.Process().children(recursive=True) if _is_instance(p)]
    assert instances
    min(instances, key=psutil.Process.create_time).send_signal(signal.SIGKILL)


def _is_instance(process: psutil.Process) -> bool:
    try:
        return {"reference_impl.service", "instance"} <= set(process.cmdline())
    except psutil.NoSuchProcess:  # it has ended, perhaps before anybody looked
        return False


async def _submit(url: str, requests: int, plan: Sequence[tuple[int, Fault]]) -> str:
    async with AsyncAnthropic(api_key="sdk-key", base_url=url) as client:
        batch = await client.messages.batches.create(
            requests=[_request(number) for number in range(requests)]
        )
        assert batch.processing_status == "in_progress"
        async with asyncio.timeout(LIMIT_S):
            for reached, fault in plan:
                while batch.request_counts.succeeded < reached:
                    await asyncio.sleep(0.05)
                    batch = await _look(client, batch.id)
                assert batch.request_counts.processing, "it ended before its last fault"
                await fault()
            while batch.processing_status != "ended":
                await asyncio.sleep(0.2)
                batch = await _look(client, batch.id)
        assert batch.request_counts.succeeded == requests, batch.request_counts
        ids = []
        async for entry in await client.messages.batches.results(batch.id):
            assert entry.result.type == "succeeded"
            assert entry.result.message.usage.output_tokens > 0
            assert entry.result.message.content
            ids.append(entry.custom_id)
        assert sorted(ids) == sorted(f"request-{number}" for number in range(requests))
        return batch.id


async def _look(client: AsyncAnthropic, batch_id: str) -> Any:
    """The batch; while its store is away, later."""
    while True:
        try:
            return await client.messages.batches.retrieve(batch_id)
        except APIStatusError as error:
            if error.status_code != 503:
                raise
        except APIConnectionError:
            await asyncio.sleep(0.05)


def _request(number: int) -> Any:
    return {
        "custom_id": f"request-{number}",
        "params": {
            "model": "claude-haiku-4-5",
            "max_tokens": 16,
            "messages": [{"role": "user", "content": f"question {number}"}],
        },
    }


async def _ledger(dsn: str) -> list[LedgerEntry]:
    store = store_of_dsn(dsn)
    await store.open()
    try:
        return [entry async for page in store.entries() for entry in page]
    finally:
        await store.aclose()
