"""A real gateway with a ledger in PostgreSQL, load for it, and what its ledger holds."""

from __future__ import annotations

import asyncio

import aiohttp

from reference_impl.database.connect import store_of_dsn
from reference_impl.database.entries import LedgerEntry
from reference_impl.messages import TAG_HEADER, RequestTag
from simulation.scenario.schema import Scenario
from simulation.scenario.spec import load_scenario

__all__ = ["FLUSH_S", "RATE_PER_S", "drive", "ledger", "scenario"]

FLUSH_S = 1.0
RATE_PER_S = 50


def scenario(**database: object) -> Scenario:
    """`database`: more of the deployment's database than its kind."""
    return load_scenario(
        "demo",
        {
            **{f"deployment.database.{name}": value for name, value in database.items()},
            "deployment.database.ledger": "postgres",
            "deployment.database.flush_s": FLUSH_S,
            "deployment.database.max_size": 4,
            "deployment.instances.concurrency": 200,
            "deployment.autoscaler.enabled": False,
            "deployment.cache.enabled": False,
            "endpoint": {"profile": "fast", "speedup": 10},
        },
    )


async def drive(url: str, seconds: float, first: int = 0) -> dict[int, float]:
    """Send `RATE_PER_S`; the instants (loop clock) at which requests were answered with 200."""
    loop = asyncio.get_running_loop()
    answered: dict[int, float] = {}

    async def send(session: aiohttp.ClientSession, number: int) -> None:
        tag = RequestTag(request_id=number, input_tokens=50, output_tokens=10)
        body = {
            "model": "claude-haiku-4-5",
            "max_tokens": 64,
            "messages": [{"role": "user", "content": str(number)}],
        }
        try:
            async with session.post(
                f"{url}/v1/messages", json=body, headers={TAG_HEADER: tag.encode()}
            ) as response:
                await response.read()
                if response.status == 200:
                    answered[number] = loop.time()
        except aiohttp.ClientError:
            return  # the gateway is gone: what was under way has no answer

    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        started_s = loop.time()
        for n in range(int(seconds * RATE_PER_S)):
            await asyncio.sleep(max(0.0, started_s + n / RATE_PER_S - loop.time()))
            group.create_task(send(session, first + n))
    return answered


async def ledger(dsn: str) -> list[LedgerEntry]:
    store = store_of_dsn(dsn)
    await store.open()
    try:
        return [entry async for page in store.entries() for entry in page]
    finally:
        await store.aclose()
