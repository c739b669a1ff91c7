"""Servers that a live run starts for itself: with no data and no process that outlive it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anthropic
import psutil
import pytest

from loadtests.preflight import SwarmRefused
from loadtests.servers import TemporaryServer, temporary_valkey, wanted_servers
from loadtests.stack import Stack, StackError
from loadtests.swarm import run_swarm
from reference_impl.database.connect import DSN_VARIABLE, store_of_dsn
from reference_impl.live.services.server_process import ServiceUnavailable
from reference_impl.queues.connect import URL_VARIABLE as QUEUE_VARIABLE
from simulation.scenario.schema import Scenario
from simulation.scenario.workload import compile_workload
from tests.loadtests.run_one import SYSTEM
from tests.loadtests.test_child_process import eventually, is_gone
from tests.loadtests.test_stack import QUESTION, ask, children
from tests.loadtests.workloads import small
from tests.servers.postgres import require_postgres
from tests.servers.rabbitmq import require_rabbitmq
from tests.servers.valkey import require_valkey

ARRIVALS = "{kind: constant, rate_per_s: 1}"
SHARED = small(ARRIVALS, horizon_s=1.5, more="deployment: {cache: {shared: redis}}")
LEDGER = small(
    ARRIVALS, horizon_s=1.5, more=SYSTEM.rstrip() + "\n  database: {ledger: postgres, flush_s: 0.2}"
)


def with_queue(broker: str) -> Scenario:
    deployment = f"\n  queue: {{broker: {broker}}}\n  database: {{ledger: sqlite, flush_s: 0.2}}"
    return small(ARRIVALS, horizon_s=1.5, more=SYSTEM.rstrip() + deployment)


def refuse() -> None:
    raise ServiceUnavailable("no such server here: install it")


@pytest.fixture(name="scenario", params=["valkey", "postgres", "redis", "rabbitmq"])
def wants_a_server_that_is_not_here(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[Scenario, str]:
    services = "reference_impl.live.services"
    match request.param:
        case "valkey":
            find, scenario, variable = "valkey.find_valkey_server", SHARED, "TWINLOAD_REDIS"
        case "postgres":
            find, scenario, variable = "postgres.find_postgres", LEDGER, "TWINLOAD_DATABASE"
        case "redis":
            find, scenario = "valkey.find_valkey_server", with_queue("redis")
            variable = "TWINLOAD_QUEUE"
        case _:
            find, scenario = "rabbitmq.find_rabbitmq_server", with_queue("rabbitmq")
            variable = "TWINLOAD_QUEUE"
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(f"{services}.{find}", lambda *_: refuse())
    return scenario, variable


def test_a_stack_that_wants_a_server_says_why_and_how_to_have_one(
    tmp_path: Path, scenario: tuple[Scenario, str]
) -> None:
    wanting, variable = scenario
    before = set(children())
    with (
        pytest.raises(StackError, match=rf"deployment\..*no such server here.*name .* {variable}"),
        Stack(wanting, tmp_path),
    ):
        pytest.fail("entered")
    assert set(children()) - before == set()


def test_a_swarm_that_wants_a_server_is_refused_before_anything_is_written(
    tmp_path: Path, scenario: tuple[Scenario, str]
) -> None:
    wanting, variable = scenario
    said = rf"^the scenario wants .*deployment\..*no such server here.*name .* {variable}$"
    with pytest.raises(SwarmRefused, match=said):
        run_swarm(wanting, compile_workload(wanting), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_queue_on_kafka_wants_a_broker_that_somebody_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(QUEUE_VARIABLE, raising=False)
    scenario = with_queue("kafka")
    with pytest.raises(
        SwarmRefused, match="choose redis or rabbitmq; or name a server in TWINLOAD"
    ):
        run_swarm(scenario, compile_workload(scenario), tmp_path / "run")
    monkeypatch.setenv(QUEUE_VARIABLE, "kafka://127.0.0.1:9092")
    assert wanted_servers(scenario.deployment) == []


@pytest.mark.xdist_group("rabbitmq")
def test_a_stack_with_a_queue_on_rabbitmq_starts_one_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_rabbitmq()
    monkeypatch.delenv(QUEUE_VARIABLE, raising=False)
    before = set(children())
    with Stack(with_queue("rabbitmq"), tmp_path, {"key-of-a": "a"}) as stack:
        client = anthropic.Anthropic(api_key="key-of-a", base_url=stack.url, max_retries=0)
        question = {"custom_id": "one", "params": QUESTION}
        batch = client.messages.batches.create(requests=[question])  # type: ignore[list-item]
        assert eventually(
            lambda: client.messages.batches.retrieve(batch.id).processing_status == "ended"
        )
        (answer,) = client.messages.batches.results(batch.id)
        assert (answer.custom_id, answer.result.type) == ("one", "succeeded")
    assert set(children()) - before == set()


def test_a_temporary_valkey_is_this_users_alone_and_leaves_nothing_behind(tmp_path: Path) -> None:
    require_valkey()
    server = temporary_valkey(tmp_path)
    folder = Path(server.url.removeprefix("unix://")).parent
    try:
        server.start()
        assert folder.stat().st_mode & 0o077 == 0
        pid = server.pid
    finally:
        server.stop(5.0)
    assert not folder.exists()
    assert is_gone(pid)


def test_a_temporary_server_that_dies_is_named_with_its_signal(tmp_path: Path) -> None:
    require_valkey()
    server = temporary_valkey(tmp_path)
    try:
        server.start()
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: server.exit_status() is not None)
        assert server.obituary(-signal.SIGKILL).startswith("valkey died (signal SIGKILL)")
    finally:
        server.stop(0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize(
    ("kind", "require"),
    [
        ("valkey", require_valkey),
        ("postgres", require_postgres),
        pytest.param("rabbitmq", require_rabbitmq, marks=pytest.mark.xdist_group("rabbitmq")),
    ],
)
def test_a_temporary_server_dies_with_a_parent_that_was_killed(
    tmp_path: Path, kind: str, require: Callable[[], None]
) -> None:
    require()
    code = (
        "import time; from pathlib import Path; from loadtests import servers; "
        f"server = servers.temporary_{kind}(Path({str(tmp_path)!r})); server.start(); "
        "print(server.pid, server._folder.name, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        pid, folder = one.stdout.readline().split()
        family = [child.pid for child in psutil.Process(one.pid).children(recursive=True)]
        assert int(pid) in family
        one.kill()
    assert eventually(lambda: all(map(is_gone, family)))
    shutil.rmtree(folder)  # for which nobody was left


def test_a_stack_with_a_ledger_in_postgresql_starts_one_books_into_it_and_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_postgres()
    monkeypatch.delenv(DSN_VARIABLE, raising=False)
    before = set(children())
    with Stack(LEDGER, tmp_path, {"key-of-a": "a"}) as stack:
        ask(stack.url, "key-of-a")
        (dsn,) = [
            child.url
            for child in stack._children
            if isinstance(child, TemporaryServer) and child.name == "postgres"
        ]
        assert asyncio.run(requests_booked(dsn)) == 1
    assert set(children()) - before == set()


async def requests_booked(dsn: str) -> int:
    """As soon as there are any."""
    store = store_of_dsn(dsn)
    await store.open()
    try:
        async with asyncio.timeout(10):
            while not (rows := await store.spend("key", since_s=0.0)):
                await asyncio.sleep(0.05)
        return sum(row.requests for row in rows)
    finally:
        await store.aclose()
