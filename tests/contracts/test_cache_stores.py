"""One suite for every `CacheStore`: in memory and virtual on both loops, Valkey on a real one.

Waiting is by the loop's clock: in virtual time it takes none, and on a real loop the waits are short and only as long as the
server's own expiry needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

import pytest

from reference_impl.caches.memory_store import MemoryStore
from reference_impl.caches.port import CacheStore, Invalidation, Stored
from reference_impl.caches.redis_store import RedisStore
from simulation import kernel
from simulation.models.cache_server import CacheServer, VirtualStore
from tests.servers.valkey import shared_valkey_url, unique_prefix

Body = Callable[[CacheStore, CacheStore], Awaitable[None]]


class World(NamedTuple):
    """How to run a test, and how to make two connections to one store."""

    run: Callable[[Coroutine[Any, Any, None]], None]
    connect: Callable[[], tuple[CacheStore, CacheStore]]

    def play(self, body: Body) -> None:
        async def main() -> None:
            one, other = self.connect()
            try:
                await asyncio.wait_for(body(one, other), 30)
            finally:
                await one.aclose()
                await other.aclose()

        self.run(main())


def _memory() -> tuple[CacheStore, CacheStore]:
    store = MemoryStore()
    return store, store


def _virtual() -> tuple[CacheStore, CacheStore]:
    server = CacheServer()
    return VirtualStore(server, "one"), VirtualStore(server, "other")


@pytest.fixture(params=["memory", "memory-virtual", "virtual", "virtual-live", "valkey"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "valkey":
        url, prefix = shared_valkey_url(), unique_prefix()
        return World(
            asyncio.run, lambda: (RedisStore(url, prefix=prefix), RedisStore(url, prefix=prefix))
        )
    return {
        "memory": World(asyncio.run, _memory),
        "memory-virtual": World(kernel.run, _memory),
        "virtual": World(kernel.run, _virtual),
        "virtual-live": World(asyncio.run, _virtual),
    }[request.param]


def test_a_value_is_read_by_every_connection_with_its_age_and_tags(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        assert await one.put("k", b"\x00payload\xff", ttl_s=100, tags=["a", "b"])
        stored = await other.get("k")
        assert stored is not None
        assert stored.payload == b"\x00payload\xff"
        assert 99 < stored.fresh_s <= 100.1
        assert stored.ttl_s == 100
        assert sorted(stored.tags) == ["a", "b"]

    world.play(body)


def test_an_unknown_key_is_none(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        assert await one.get("nothing") is None

    world.play(body)


def test_a_later_value_replaces_an_earlier_one(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        await one.put("k", b"1", ttl_s=100)
        await other.put("k", b"2", ttl_s=50)
        stored = await one.get("k")
        assert stored is not None
        assert (stored.payload, stored.ttl_s) == (b"2", 50)

    world.play(body)


def test_a_value_is_fresh_then_stale_then_gone(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        await one.put("k", b"v", ttl_s=0.15, stale_s=0.25)
        fresh = await one.get("k")
        assert fresh is not None
        assert 0 < fresh.fresh_s <= 0.16
        await asyncio.sleep(0.2)
        stale = await one.get("k")
        assert stale is not None
        assert -0.2 < stale.fresh_s <= 0
        await asyncio.sleep(0.3)
        assert await one.get("k") is None

    world.play(body)


def test_one_of_many_takes_a_lease_and_alone_may_extend_it(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        taken = await asyncio.gather(
            *((one, other)[n % 2].take_lease("k", f"token-{n}", 10) for n in range(20))
        )
        assert sum(taken) == 1
        winner = f"token-{taken.index(True)}"
        assert not await one.take_lease("k", winner, 10)
        assert await one.extend_lease("k", winner, 0.05)
        assert not await other.extend_lease("k", "another", 10)
        await asyncio.sleep(0.1)
        assert not await one.extend_lease("k", winner, 10)
        assert await other.take_lease("k", "another", 10)

    world.play(body)


def test_a_lease_ends_by_its_holder_or_by_time(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        assert await one.take_lease("k", "first", 10)
        await other.end_lease("k", "not the holder")
        assert not await other.take_lease("k", "second", 10)
        await one.end_lease("k", "first")
        assert await other.take_lease("k", "second", 0.05)
        await asyncio.sleep(0.1)
        assert await one.take_lease("k", "third", 10)

    world.play(body)


def test_a_value_under_a_lease_is_stored_once_and_ends_the_lease(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        await one.take_lease("k", "mine", 10)
        assert not await one.put("k", b"foreign", ttl_s=100, lease="not mine")
        assert await one.get("k") is None
        assert await one.put("k", b"v", ttl_s=100, lease="mine")
        assert not await one.put("k", b"again", ttl_s=100, lease="mine")
        assert await other.take_lease("k", "next", 10)
        stored = await other.get("k")
        assert stored is not None
        assert stored.payload == b"v"

    world.play(body)


def test_a_value_computed_before_an_invalidation_is_not_stored_after_it(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        for what in (Invalidation("pattern", "k*"), Invalidation("pattern", "k1")):
            await one.take_lease("k1", "mine", 10)
            await other.invalidate(what)
            assert not await one.extend_lease("k1", "mine", 10)
            assert not await one.put("k1", b"old", ttl_s=100, lease="mine")
            assert await one.get("k1") is None

    world.play(body)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("user:1:*", ["user:1:a", "user:1:b"]),
        ("user:?:a", ["user:1:a", "user:2:a"]),
        ("user:[2-9]:*", ["user:2:a"]),
        ("user:[^2]:*", ["user:1:a", "user:1:b"]),
        ("*[[]x]", ["odd[x]"]),
        ("odd\\[x\\]", ["odd[x]"]),
        ("odd*", ["odd*", "odd[x]"]),
        ("odd\\*", ["odd*"]),
        ("user:1:a", ["user:1:a"]),
        ("none", []),
        ("*", ["odd*", "odd[x]", "user:1:a", "user:1:b", "user:2:a"]),
    ],
)
def test_a_pattern_deletes_what_it_matches_and_nothing_else(
    world: World, pattern: str, expected: list[str]
) -> None:
    keys = ["odd*", "odd[x]", "user:1:a", "user:1:b", "user:2:a"]

    async def body(one: CacheStore, other: CacheStore) -> None:
        for key in keys:
            await one.put(key, b"v", ttl_s=100)
        deleted = await one.invalidate(Invalidation("pattern", pattern))
        gone = [key for key in keys if await other.get(key) is None]
        assert (deleted, gone) == (len(expected), expected)

    world.play(body)


def test_a_tag_deletes_the_entries_that_carry_it(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        await one.put("a", b"v", ttl_s=100, tags=["red"])
        await one.put("b", b"v", ttl_s=100, tags=["red", "blue"])
        await one.put("c", b"v", ttl_s=100, tags=["blue"])
        assert await other.invalidate(Invalidation("tag", "red")) == 2
        assert [await one.get(key) is None for key in "abc"] == [True, True, False]
        assert await other.invalidate(Invalidation("tag", "nobody's")) == 0

    world.play(body)


def test_an_invalidation_reaches_every_listener_within_100_ms(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        loop = asyncio.get_running_loop()
        heard: asyncio.Queue[tuple[str, Invalidation]] = asyncio.Queue()
        ready = asyncio.Semaphore(0)

        def listen(name: str, store: CacheStore) -> asyncio.Task[None]:
            return asyncio.create_task(
                store.listen(lambda what: heard.put_nowait((name, what)), ready.release)
            )

        listeners = [listen("one", one), listen("other", other)]
        for _ in listeners:
            await ready.acquire()
        what = Invalidation("pattern", "k*", "origin")
        asked_s = loop.time()
        await one.invalidate(what)
        assert sorted([await heard.get(), await heard.get()]) == [("one", what), ("other", what)]
        assert loop.time() - asked_s < 0.1
        for listener in listeners:
            listener.cancel()
        await asyncio.gather(*listeners, return_exceptions=True)

    world.play(body)


def test_a_group_keeps_its_members_until_they_are_removed_or_it_ends(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        assert await one.members("g") == {}
        await one.add_member("g", "a", b"1", ttl_s=100)
        await one.add_member("g", "b", b"2", ttl_s=0.05)
        await other.add_member("g", "a", b"3", ttl_s=100)
        await other.add_member("short", "a", b"4", ttl_s=0.05)
        assert await other.members("g") == {"a": b"3", "b": b"2"}
        await one.remove_members("g", ["b", "unknown"])
        await asyncio.sleep(0.1)
        assert await other.members("g") == {"a": b"3"}
        assert await other.members("short") == {}

    world.play(body)


def test_many_reads_at_once_each_get_their_own_value(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        for n in range(0, 300, 2):
            await one.put(f"k{n}", b"%d" % n, ttl_s=100)
        found = await asyncio.gather(*(other.get(f"k{n}") for n in range(300)))
        assert [_payload(stored) for stored in found] == [
            b"%d" % n if n % 2 == 0 else None for n in range(300)
        ]

    world.play(body)


def test_a_reader_who_gives_up_takes_nothing_from_the_others(world: World) -> None:
    async def body(one: CacheStore, other: CacheStore) -> None:
        await one.put("k", b"v", ttl_s=100)
        readers = [asyncio.create_task(other.get("k")) for _ in range(10)]
        await asyncio.sleep(0)
        for reader in readers[::2]:
            reader.cancel()
        results = await asyncio.gather(*readers, return_exceptions=True)
        assert [_payload(r) for r in results[1::2] if not isinstance(r, BaseException)] == [
            b"v"
        ] * 5
        assert _payload(await other.get("k")) == b"v"

    world.play(body)


def _payload(stored: Stored | None) -> bytes | None:
    return None if stored is None else stored.payload
