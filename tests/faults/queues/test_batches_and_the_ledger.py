"""Invariant 5 in the ledger: batches while instances, broker and PostgreSQL are killed at random points, by seed."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from reference_impl.database.connect import DSN_VARIABLE
from reference_impl.queues.connect import URL_VARIABLE
from tests.faults.queues.batch_system import (
    CONCURRENCY,
    INSTANCES,
    Fault,
    kill_an_instance,
    play,
    points,
    scenario,
)
from tests.servers.postgres import PostgresProcess
from tests.servers.rabbitmq import private_rabbitmq
from tests.servers.valkey import ValkeyProcess, unique_prefix

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
ALL_IN_HAND = INSTANCES * CONCURRENCY


@contextlib.contextmanager
def broker(kind: str) -> Iterator[tuple[str, Fault]]:
    """A broker of the test's own: its URL, and how to kill it and start it again."""
    if kind == "rabbitmq":
        with private_rabbitmq() as node:

            async def crash_node() -> None:
                node.kill()
                await node.start()

            yield node.url, crash_node
        return
    server = ValkeyProcess()

    async def crash_server() -> None:
        server.kill()
        await asyncio.to_thread(server.start, *DURABLE)

    try:
        server.start(*DURABLE)
        yield server.url, crash_server
    finally:
        server.close()


@contextlib.contextmanager
def durable_postgres() -> Iterator[PostgresProcess]:
    """One that keeps what it confirms over a crash."""
    with PostgresProcess("fsync=on", "full_page_writes=on") as server:
        yield server


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[PostgresProcess, str]]:
    with durable_postgres() as server:
        dsn = server.create_database("ledger")
        monkeypatch.setenv(DSN_VARIABLE, dsn)
        yield server, dsn


def crash_of(server: PostgresProcess) -> Fault:
    async def crash() -> None:
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)

    return crash


def test_a_batch_survives_the_death_of_everything_that_it_stands_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ledger: tuple[PostgresProcess, str]
) -> None:
    server, dsn = ledger
    with broker("redis") as (url, crash_broker):
        monkeypatch.setenv(URL_VARIABLE, url)
        faults = [kill_an_instance, crash_broker, crash_of(server)]
        plan = points(random.Random(1), 600, faults)
        seen = play(scenario("redis", unique_prefix()), tmp_path, dsn, 600, plan)
    assert seen.wasted <= CONCURRENCY + ALL_IN_HAND


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fault", ["instances", "broker", "ledger"])
@pytest.mark.parametrize("kind", ["rabbitmq", "redis"])
def test_a_batch_of_ten_thousand_is_debited_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ledger: tuple[PostgresProcess, str],
    kind: str,
    fault: str,
    seed: int,
) -> None:
    server, dsn = ledger
    with broker(kind) as (url, crash_broker):
        monkeypatch.setenv(URL_VARIABLE, url)
        plans: dict[str, tuple[list[Fault], int]] = {
            "instances": ([kill_an_instance] * 6, 6 * CONCURRENCY),
            "broker": ([crash_broker] * 2, 2 * ALL_IN_HAND),
            # A result in hand is kept until the ledger takes it: nothing is called again.
            "ledger": ([crash_of(server)] * 2, 0),
        }
        faults, bound = plans[fault]
        plan = points(random.Random(seed), 10_000, faults)
        seen = play(scenario(kind, unique_prefix()), tmp_path, dsn, 10_000, plan)
    print(f"{kind}, {fault}, seed {seed}: {seen.wasted} wasted of at most {bound}")
    assert seen.wasted <= bound
