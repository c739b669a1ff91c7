"""What only a real server shows: others' keys beside ours, a full memory, a wrong password, large values."""

from __future__ import annotations

import asyncio
import logging

import pytest
from redis.asyncio import Redis

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.port import Invalidation, StoreRefused, StoreUnavailable
from reference_impl.caches.redis_store import RedisStore
from reference_impl.caches.shared_level import SharedLevel
from reference_impl.live.loop import run_live
from tests.servers.valkey import ValkeyProcess, shared_valkey_url, unique_prefix


def test_applications_with_their_own_prefix_do_not_meet() -> None:
    async def main() -> None:
        url = shared_valkey_url()
        mine, theirs = (RedisStore(url, prefix=unique_prefix()) for _ in range(2))
        await mine.put("k", b"mine", ttl_s=100)
        assert await theirs.get("k") is None
        await theirs.put("k", b"theirs", ttl_s=100)
        assert await theirs.invalidate(Invalidation("pattern", "*")) == 1
        stored = await mine.get("k")
        assert stored is not None
        assert stored.payload == b"mine"
        await mine.aclose()
        await theirs.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("prefix", ["", "a:b"])
def test_a_prefix_that_could_run_into_another_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="expected one or more characters without ':'"):
        RedisStore("redis://127.0.0.1:1", prefix=prefix)


def test_a_key_of_ours_that_someone_else_wrote_is_a_miss() -> None:
    async def main() -> None:
        url, prefix = shared_valkey_url(), unique_prefix()
        client, store = Redis.from_url(url), RedisStore(url, prefix=prefix)
        await client.set(f"{prefix}:1:v:text", "hello")
        await client.lpush(f"{prefix}:1:v:list", "hello")
        await client.set(f"{prefix}:2:v:later", "a later layout")
        for key in ("text", "list", "later"):
            assert await store.get(key) is None
        await client.aclose()
        await store.aclose()

    asyncio.run(main())


def test_large_values_travel_compressed() -> None:
    async def main() -> None:
        url, prefix = shared_valkey_url(), unique_prefix()
        client = Redis.from_url(url)
        layers: list[CacheLayer[dict[str, str]]] = [
            CacheLayer(shared=SharedLevel(RedisStore(url, prefix=prefix), name=name, timeout_s=2))
            for name in ("a", "b")
        ]
        value = {"text": "the same words again and again " * 10_000}
        await layers[0].fetch("k", lambda: value)
        stored_bytes = await client.strlen(f"{prefix}:1:v:k")
        assert 0 < stored_bytes < 0.05 * len(value["text"])
        assert await layers[1].fetch("k", dict) == (value, "l2")
        for layer in layers:
            await layer.aclose()
        await client.aclose()

    asyncio.run(main())


def test_a_server_whose_memory_is_full_is_still_read_and_fails_no_look_up(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(server: ValkeyProcess) -> None:
        store = RedisStore(server.url)
        layer: CacheLayer[str] = CacheLayer(
            shared=SharedLevel(store, name="a", timeout_s=2), l1_ttl_seconds=0
        )
        await layer.fetch("kept", lambda: "value")
        client = Redis.from_url(server.url)
        await client.config_set("maxmemory", "1mb")
        with pytest.raises(StoreRefused, match="maxmemory"):
            await store.put("k", b"v", ttl_s=100)
        for n in range(50):
            assert await layer.fetch(f"k{n}", lambda: "computed") == ("computed", "miss")
        assert await layer.fetch("kept", lambda: "computed") == ("value", "l2")
        shared = layer.statistics().shared
        assert shared is not None
        assert shared.breaker == "closed"
        await client.aclose()
        await layer.aclose()

    with ValkeyProcess() as server, caplog.at_level(logging.WARNING, logger="reference_impl"):
        asyncio.run(main(server))
    assert len([r for r in caplog.records if "maxmemory" in r.getMessage()]) == 1


def test_a_wrong_password_is_an_outage_that_does_not_tell_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "hunter2-the-second"

    async def main(port: int) -> None:
        layer: CacheLayer[int] = CacheLayer(
            shared=SharedLevel(
                RedisStore(f"redis://user:{secret}@127.0.0.1:{port}"), name="a", timeout_s=2
            )
        )
        for n in range(10):
            assert await layer.fetch(f"k{n}", lambda: 1) == (1, "miss")
        shared = layer.statistics().shared
        assert shared is not None
        assert shared.breaker == "open"
        await layer.aclose()

    with ValkeyProcess() as server, caplog.at_level(logging.DEBUG):
        asyncio.run(main(server.port))
    assert "cache store away" in caplog.text
    assert secret not in caplog.text


def test_a_port_where_nothing_listens_is_unavailable() -> None:
    async def main() -> None:
        store = RedisStore("redis://127.0.0.1:1")
        with pytest.raises(StoreUnavailable, match="ConnectionError"):
            await store.get("k")
        with pytest.raises(StoreUnavailable, match="ConnectionError"):
            await store.put("k", b"v", ttl_s=1)
        await store.aclose()

    asyncio.run(main())


def test_after_a_restart_of_the_server_no_question_meets_an_old_connection() -> None:
    """They broke together, and each would fail one probe of a breaker that doubles its opening for it."""

    async def main() -> None:
        with ValkeyProcess() as server:
            store = RedisStore(server.url)

            async def questions() -> list[bool | BaseException]:
                return await asyncio.gather(
                    *(store.take_lease(f"k{n}", "token", 5.0) for n in range(8)),
                    return_exceptions=True,
                )

            assert await questions() == [True] * 8
            server.kill()
            with pytest.raises(StoreUnavailable):
                await store.take_lease("k", "token", 5.0)
            server.start()
            assert await questions() == [True] * 8
            await store.aclose()

    asyncio.run(main())


def test_a_read_after_a_restart_meets_no_old_connection_whoever_noticed_the_end() -> None:
    """Reads have a connection of their own, which is as old as those by which a write found out."""

    async def main() -> None:
        store = RedisStore(server.url)
        await store.get("k")
        server.kill()
        with pytest.raises(StoreUnavailable):
            await store.take_lease("k", "token", 1.0)
        server.start()
        assert await store.get("k") is None
        await store.aclose()

    with ValkeyProcess() as server:
        run_live(main())
