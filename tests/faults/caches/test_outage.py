"""The store of the cache is killed, or hangs, under 200 look-ups a second, and comes back: live and in virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from reference_impl.caches.redis_store import RedisStore
from reference_impl.live.loop import run_live
from simulation.kernel import run
from simulation.models.cache_server import CacheServer, VirtualStore
from tests.faults.caches.outage import Outcome, check, play
from tests.servers.valkey import ValkeyProcess, unique_prefix


def in_virtual_time(kind: str) -> Outcome:
    server = CacheServer()

    async def go_away() -> None:
        server.fail("refusing" if kind == "killed" else "hanging")

    async def come_back() -> None:
        server.recover()

    async def main() -> Outcome:
        return await play(VirtualStore(server, "gateway"), go_away, come_back)

    return run(main())


def live(kind: str) -> Outcome:
    with ValkeyProcess() as server:

        def off_the_loop(action: Callable[[], None]) -> Callable[[], Awaitable[None]]:
            return lambda: asyncio.to_thread(action)

        go_away, come_back = (
            (server.kill, server.start) if kind == "killed" else (server.pause, server.resume)
        )

        async def main() -> Outcome:
            store = RedisStore(server.url, prefix=unique_prefix())
            return await play(store, off_the_loop(go_away), off_the_loop(come_back))

        return run_live(main())


@pytest.mark.parametrize("kind", ["killed", "hanging"])
def test_no_look_up_fails_in_virtual_time_and_the_cache_heals(kind: str) -> None:
    check(in_virtual_time(kind))


@pytest.mark.serial
@pytest.mark.parametrize("kind", ["killed", "hanging"])
def test_no_look_up_fails_on_a_real_server_and_the_breaker_does_the_same_in_virtual_time(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="reference_impl"):
        outcome = live(kind)
    said = [record.getMessage() for record in caplog.records]
    check(outcome)
    assert [line.split(" (")[0] for line in said] == ["cache store away", "cache store is back"]
    virtual = in_virtual_time(kind)
    assert outcome.transitions == virtual.transitions
    for (live_s, *_), (virtual_s, *_) in zip(outcome.changes, virtual.changes, strict=True):
        assert abs(live_s - virtual_s) < 0.15
