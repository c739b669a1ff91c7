"""Servers that a live run starts for itself: with no data and no process that outlive it."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from loadtests.servers import TemporaryServer, temporary_valkey
from loadtests.stack import Stack, StackError
from reference_impl.database.connect import DSN_VARIABLE, store_of_dsn
from reference_impl.live.services.server_process import ServiceUnavailable
from tests.loadtests.run_one import SYSTEM
from tests.loadtests.test_child_process import eventually, is_gone
from tests.loadtests.test_stack import ask, children
from tests.loadtests.workloads import small
from tests.servers.postgres import require_postgres
from tests.servers.valkey import require_valkey

ARRIVALS = "{kind: constant, rate_per_s: 1}"
SHARED = small(ARRIVALS, horizon_s=1.5, more="deployment: {cache: {shared: redis}}")
LEDGER = small(
    ARRIVALS, horizon_s=1.5, more=SYSTEM.rstrip() + "\n  database: {ledger: postgres, flush_s: 0.2}"
)


def refuse() -> None:
    raise ServiceUnavailable("no such server here: install it")


@pytest.mark.parametrize(
    ("find", "variable"),
    [
        ("reference_impl.live.services.valkey.find_valkey_server", "TWINLOAD_REDIS"),
        ("reference_impl.live.services.postgres.find_postgres", "TWINLOAD_DATABASE"),
    ],
)
def test_a_stack_that_wants_a_server_says_why_and_how_to_have_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, find: str, variable: str
) -> None:
    monkeypatch.setattr(find, lambda *_: refuse())
    before = set(children())
    with (
        pytest.raises(StackError, match=rf"deployment\..*no such server here.*name .* {variable}"),
        Stack(SHARED if variable == "TWINLOAD_REDIS" else LEDGER, tmp_path),
    ):
        pytest.fail("entered")
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
@pytest.mark.parametrize("kind", ["valkey", "postgres"])
def test_a_temporary_server_dies_with_a_parent_that_was_killed(tmp_path: Path, kind: str) -> None:
    require_valkey() if kind == "valkey" else require_postgres()
    code = (
        "import time; from pathlib import Path; from loadtests import servers; "
        f"server = servers.temporary_{kind}(Path({str(tmp_path)!r})); server.start(); "
        "print(server.pid, server._folder.name, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        pid, folder = one.stdout.readline().split()
        children_of_it = psutil.Process(int(pid)).children(recursive=True)
        family = [int(pid), *(child.pid for child in children_of_it)]
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
