"""A `CacheStore` on Redis or Valkey, through redis-py with hiredis.

Every key starts with a prefix and the version of this layout, so a server may be shared with others and with older releases.
Values lie under `<prefix>:1:v:<key>` as [instant at which they stop being fresh, ttl, tags, payload] in MessagePack. That
instant is on the server's own clock, learnt with TIME, so processes need not agree about theirs, and a hit needs one GET
instead of GET and PTTL. One server with its replicas: keys of one operation do not share a slot of Redis Cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from typing import Any, Final

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from reference_impl.caches.batches import Batches
from reference_impl.caches.glob import escape_glob, is_literal
from reference_impl.caches.port import Invalidation, Stored, StoreRefused, StoreUnavailable
from reference_impl.live.redis_pool import redis_pool

__all__ = ["RedisStore"]

_LAYOUT: Final = 1
_CLOCK_VALID_S: Final = 60.0
_SCAN_COUNT: Final = 1000
# Far above any time-out of a look-up: it only frees the reads of a connection that went silent.
_READ_LIMIT_S: Final = 1.0
_MAX_READS: Final = 100
_LISTEN_CHECK_S: Final = 5.0

# KEYS lease, value, tag... ARGV token, value, milliseconds, key. Stores only while the lease stands.
_PUT: Final = """
if ARGV[1] ~= '' then
  if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
  redis.call('DEL', KEYS[1])
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
for i = 3, #KEYS do
  redis.call('SADD', KEYS[i], ARGV[4])
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
end
return 1
"""
_EXTEND_LEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
"""
_END_LEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""
# KEYS group. ARGV member, payload, milliseconds.
_ADD_MEMBER: Final = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[1], ARGV[3]) end
return 1
"""


class _Envelope(msgspec.Struct, array_like=True, frozen=True):
    fresh_until_s: float
    ttl_s: float
    tags: tuple[str, ...]
    payload: bytes


class RedisStore:
    """A cache on the server at `url` (`redis://[user:password@]host:port/db`, `rediss://` with TLS, `unix://`).

    Args:
        prefix: of every key; applications that share a server and not their entries differ in it.
        max_connections: to the server; an operation waits for a free one.
    """

    def __init__(self, url: str, *, prefix: str = "twinload", max_connections: int = 8) -> None:
        if not prefix or ":" in prefix:
            raise ValueError(f"prefix is {prefix!r}: expected one or more characters without ':'")
        self._space = f"{prefix}:{_LAYOUT}"
        # No retries and no time-outs here: `SharedLevel` bounds each operation and decides what a failure means.
        pool = redis_pool(
            url, max_connections=max_connections, socket_timeout=None, socket_connect_timeout=None
        )
        # redis-py annotates each reply with every type that any version and mode may give.
        client: Any = Redis(connection_pool=pool)
        self._client = client
        self._put = client.register_script(_PUT)
        self._extend_lease = client.register_script(_EXTEND_LEASE)
        self._end_lease = client.register_script(_END_LEASE)
        self._add_member = client.register_script(_ADD_MEMBER)
        # One connection for all reads, which take turns by batches: half of what redis-py's client takes for a GET is
        # choosing a connection, preparing retries and keeping metrics, and none of that is needed here.
        self._reader: Any = pool.make_connection()
        self._is_reading = False
        self._reads: Batches[str, bytes | None] = Batches(
            self._read, max_batch=_MAX_READS, limit_s=_READ_LIMIT_S
        )
        self._decoder = msgspec.msgpack.Decoder(_Envelope)
        self._encoder = msgspec.msgpack.Encoder()
        # The server's clock minus the loop's, and until when that is believed.
        self._clock_offset_s = 0.0
        self._clock_valid_until_s = -1.0

    async def get(self, key: str) -> Stored | None:
        try:
            if asyncio.get_running_loop().time() >= self._clock_valid_until_s:
                await self._learn_clock()
            stored = await self._reads.ask(f"{self._space}:v:{key}")
        except (RedisError, OSError, TimeoutError) as error:
            raise await self._unavailable(error) from error
        if stored is None:
            return None
        try:
            envelope = self._decoder.decode(stored)
        except msgspec.DecodeError:
            return None  # written by someone else under our prefix: not ours to serve
        now_s = asyncio.get_running_loop().time() + self._clock_offset_s
        return Stored(
            envelope.payload, envelope.fresh_until_s - now_s, envelope.ttl_s, envelope.tags
        )

    async def put(
        self,
        key: str,
        payload: bytes,
        *,
        ttl_s: float,
        stale_s: float = 0.0,
        tags: Collection[str] = (),
        lease: str = "",
        size_bytes: int = 0,  # noqa: ARG002 - the server weighs what it is sent
    ) -> bool:
        async with self._translated():
            fresh_until_s = await self._server_now_s() + ttl_s
            envelope = self._encoder.encode(_Envelope(fresh_until_s, ttl_s, tuple(tags), payload))
            keys = [f"{self._space}:l:{key}", f"{self._space}:v:{key}"]
            keys += [f"{self._space}:t:{tag}" for tag in tags]
            stored = await self._put(keys, [lease, envelope, _milliseconds(ttl_s + stale_s), key])
        return bool(stored)

    async def take_lease(self, key: str, token: str, lease_s: float) -> bool:
        async with self._translated():
            taken = await self._client.set(
                f"{self._space}:l:{key}", token, nx=True, px=_milliseconds(lease_s)
            )
        return bool(taken)

    async def extend_lease(self, key: str, token: str, lease_s: float) -> bool:
        async with self._translated():
            extended = await self._extend_lease(
                [f"{self._space}:l:{key}"], [token, _milliseconds(lease_s)]
            )
        return bool(extended)

    async def end_lease(self, key: str, token: str) -> None:
        async with self._translated():
            await self._end_lease([f"{self._space}:l:{key}"], [token])

    async def invalidate(self, what: Invalidation) -> int:
        async with self._translated():
            if what.kind == "tag":
                deleted = await self._delete_tagged(what.target)
            else:
                deleted = await self._delete_matching(what.target)
            await self._client.publish(self._channel, self._encoder.encode(what))
        return deleted

    async def listen(
        self, on_invalidation: Callable[[Invalidation], None], on_ready: Callable[[], None]
    ) -> None:
        decoder = msgspec.msgpack.Decoder(Invalidation)
        async with self._translated(), self._client.pubsub() as subscription:
            await subscription.subscribe(self._channel)
            silent = False
            while True:
                message = await subscription.get_message(timeout=_LISTEN_CHECK_S)
                if message is None:
                    if silent:
                        raise StoreUnavailable("the subscription answers no ping")
                    silent = True
                    await subscription.ping()
                    continue
                silent = False
                if message["type"] == "subscribe":
                    on_ready()
                elif message["type"] == "message":
                    try:
                        what = decoder.decode(message["data"])
                    except msgspec.DecodeError:
                        continue  # not a message of this layout
                    on_invalidation(what)

    async def add_member(self, group: str, member: str, payload: bytes, *, ttl_s: float) -> None:
        async with self._translated():
            await self._add_member(
                [f"{self._space}:g:{group}"], [member, payload, _milliseconds(ttl_s)]
            )

    async def remove_members(self, group: str, members: Collection[str]) -> None:
        if members:
            async with self._translated():
                await self._client.hdel(f"{self._space}:g:{group}", *members)

    async def members(self, group: str) -> Mapping[str, bytes]:
        async with self._translated():
            found = await self._client.hgetall(f"{self._space}:g:{group}")
        return {member.decode(): payload for member, payload in found.items()}

    async def aclose(self) -> None:
        await self._reads.aclose()
        await self._reader.disconnect()
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    # -- inside -------------------------------------------------------------------------------------------------------

    @property
    def _channel(self) -> str:
        return f"{self._space}:invalidations"

    async def _delete_matching(self, pattern: str) -> int:
        """Leases first: a value computed before now must not be stored after its predecessor was deleted."""
        if is_literal(pattern):
            pipeline = self._client.pipeline(transaction=True)
            pipeline.unlink(f"{self._space}:l:{pattern}")
            pipeline.unlink(f"{self._space}:v:{pattern}")
            return int((await pipeline.execute())[1])
        space = escape_glob(self._space)
        await self._unlink_scanned(f"{space}:l:{pattern}")
        return await self._unlink_scanned(f"{space}:v:{pattern}")

    async def _unlink_scanned(self, pattern: str) -> int:
        deleted = 0
        cursor = 0
        while True:
            cursor, keys = await self._client.scan(cursor, match=pattern, count=_SCAN_COUNT)
            if keys:
                deleted += await self._client.unlink(*keys)
            if cursor == 0:
                return deleted

    async def _delete_tagged(self, tag: str) -> int:
        """The members of the tag's set; some may have expired before it."""
        tag_key = f"{self._space}:t:{tag}"
        keys = [key.decode() for key in await self._client.smembers(tag_key)]
        pipeline = self._client.pipeline(transaction=True)
        pipeline.unlink(tag_key, *(f"{self._space}:l:{key}" for key in keys))
        if keys:
            pipeline.unlink(*(f"{self._space}:v:{key}" for key in keys))
        results = await pipeline.execute()
        return int(results[1]) if keys else 0

    async def _server_now_s(self) -> float:
        """Now on the server's clock."""
        if asyncio.get_running_loop().time() >= self._clock_valid_until_s:
            await self._learn_clock()
        return asyncio.get_running_loop().time() + self._clock_offset_s

    async def _learn_clock(self) -> None:
        """Ask the server for its time: once a minute, and after every failure."""
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        seconds, microseconds = await self._client.time()
        answered_s = loop.time()
        # The server read its clock between question and answer: half the round trip is the best guess.
        self._clock_offset_s = seconds + microseconds / 1e6 - (asked_s + answered_s) / 2
        self._clock_valid_until_s = answered_s + _CLOCK_VALID_S

    async def _read(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        # For one key too: MGET finds nothing where a key of that name holds another type, and GET fails.
        self._is_reading = True
        try:
            await self._reader.send_command("MGET", *keys)
            values: Sequence[bytes | None] = await self._reader.read_response()
            return values
        finally:
            self._is_reading = False

    @contextlib.asynccontextmanager
    async def _translated(self) -> AsyncIterator[None]:
        """The driver's errors as StoreUnavailable."""
        try:
            yield
        except (RedisError, OSError, TimeoutError) as error:
            raise await self._unavailable(error) from error

    async def _unavailable(self, error: Exception) -> StoreUnavailable:
        """What was believed about the server's clock ends with the connection: another may have taken its place."""
        if isinstance(error, ResponseError):
            return StoreRefused(f"the server refused: {error}")
        self._clock_valid_until_s = -1.0
        # The idle connections broke with this one. redis-py notices that only by failing a question on each of them, and
        # after an outage these would be the breaker's probes.
        with contextlib.suppress(RedisError, OSError):
            await self._client.connection_pool.disconnect(inuse_connections=False)
            if not self._is_reading:  # a read under way finds out by itself
                await self._reader.disconnect(nowait=True)
        return StoreUnavailable(f"{type(error).__name__}: {error}")


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))
