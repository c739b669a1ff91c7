"""A virtual Redis: one server that takes commands in turn, behind a network, with a memory that evicts and can go away.

`CacheServer` is the server, shared by the processes of a world; `VirtualStore` is one process's connection to it and
implements `CacheStore`, so `CacheLayer` runs over it unchanged. Works on any event loop.

The defaults are Valkey 9 on the loopback as redis-py sees it: about 100 µs a command, of which the server's single thread
takes 5.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Literal, TypeVar

from reference_impl.caches.memory_cache import MemoryCacheStatistics
from reference_impl.caches.memory_store import MemoryStore
from reference_impl.caches.port import Invalidation, Stored, StoreUnavailable
from reference_impl.telemetry import StationSample
from simulation.scenario.distributions import AnyDistribution, Constant
from simulation.scenario.random_streams import UNIFORMS_PER_KEY, uniforms

__all__ = ["CacheServer", "Outage", "VirtualStore"]

R = TypeVar("R")

# How the server is away: its process is gone (connections are refused), or it hangs (nothing is answered).
Outage = Literal["refusing", "hanging"]


class CacheServer:
    """The server's side.

    Args:
        seed: of the latencies.
        max_bytes: memory for values; the least recently used leave first (`maxmemory-policy allkeys-lru`).
        one_way: latency of a message between a process and the server, in seconds.
        service_s: the server's thread for one command; commands of all processes wait for each other.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        max_bytes: int = 256 * 1024 * 1024,
        one_way: AnyDistribution | None = None,
        service_s: float = 5e-6,
    ) -> None:
        if service_s < 0:
            raise ValueError(f"service_s is {service_s}: expected seconds, zero or more")
        self.seed = seed
        self.one_way = Constant(value=45e-6) if one_way is None else one_way
        self._service_s = service_s
        self._store = MemoryStore(max_bytes)
        self._free_at_s = 0.0
        self._outage: Outage | None = None
        self._back: asyncio.Event | None = None
        self._commands = 0
        self._booked_s = 0.0
        self._waited_s = 0.0
        # At the last sample: instant, commands, busy and waiting integrals.
        self._marked = (0.0, 0, 0.0, 0.0)
        self._breaks: dict[asyncio.Future[None], None] = {}

    @property
    def outage(self) -> Outage | None:
        return self._outage

    def fail(self, outage: Outage = "refusing", *, keeps_data: bool = False) -> None:
        """Go away now; open connections break when it refuses. A killed server without persistence loses its data."""
        self._outage = outage
        if outage == "refusing":
            for broken in list(self._breaks):
                if not broken.done():
                    broken.set_exception(StoreUnavailable("connection lost"))
            if not keeps_data:
                self._store.clear()

    def recover(self) -> None:
        """Answer again; commands that were left hanging are answered now."""
        self._outage = None
        if self._back is not None:
            self._back.set()
            self._back = None

    async def serve(self, command: Callable[[MemoryStore], Awaitable[R]]) -> R:
        """Execute `command` after those that came before it; raises StoreUnavailable while it refuses."""
        await self._answering()
        now_s = asyncio.get_running_loop().time()
        start_s = max(now_s, self._free_at_s)
        done_s = self._free_at_s = start_s + self._service_s
        self._commands += 1
        self._booked_s += self._service_s
        self._waited_s += start_s - now_s
        if done_s > now_s:
            await asyncio.sleep(done_s - now_s)
            await self._answering()
        return await command(self._store)

    async def listen(
        self, on_invalidation: Callable[[Invalidation], None], on_ready: Callable[[], None]
    ) -> None:
        """Deliver invalidations until the connection breaks."""
        await self._answering()
        broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._breaks[broken] = None
        listening = asyncio.create_task(
            self._store.listen(on_invalidation, on_ready), name="background:cache-server-listen"
        )
        try:
            await broken
        finally:
            del self._breaks[broken]
            listening.cancel()

    def statistics(self) -> MemoryCacheStatistics:
        return self._store.statistics()

    def sample(self, now_s: float, origin_s: float) -> StationSample:
        """The server's thread over the interval since the last sample. Waits are counted where they begin."""
        from_s, commands, busy_s, waited_s = self._marked
        self._marked = (now_s, self._commands, self._busy_until(now_s), self._waited_s)
        interval_s = now_s - from_s
        busy_in_interval_s = max(0.0, self._marked[2] - busy_s)
        return StationSample(
            t_s=now_s - origin_s,
            interval_s=interval_s,
            station="cache server",
            kind="cpu",
            arrivals=self._commands - commands,
            completions=self._commands - commands,
            busy_s=busy_in_interval_s,
            queue_length=(self._waited_s - waited_s) / interval_s if interval_s > 0 else 0.0,
            in_service=busy_in_interval_s / interval_s if interval_s > 0 else 0.0,
            capacity=1.0,
        )

    def _busy_until(self, now_s: float) -> float:
        """Seconds of work done up to now; what is booked beyond is left out."""
        return self._booked_s - max(0.0, self._free_at_s - now_s)

    async def _answering(self) -> None:
        while self._outage is not None:
            if self._outage == "refusing":
                raise StoreUnavailable("connection refused")
            if self._back is None:
                self._back = asyncio.Event()
            await self._back.wait()


class VirtualStore:
    """The connection of process `name` to `server`; implements `CacheStore`. Latencies are drawn by (seed, name, command)."""

    def __init__(self, server: CacheServer, name: str) -> None:
        self._server = server
        self._purpose = f"cache store {name}"
        self._legs = 0

    async def get(self, key: str) -> Stored | None:
        return await self._ask(lambda store: store.get(key))

    async def put(
        self,
        key: str,
        payload: bytes,
        *,
        ttl_s: float,
        stale_s: float = 0.0,
        tags: Collection[str] = (),
        lease: str = "",
        size_bytes: int = 0,
    ) -> bool:
        return await self._ask(
            lambda store: store.put(
                key,
                payload,
                ttl_s=ttl_s,
                stale_s=stale_s,
                tags=tags,
                lease=lease,
                size_bytes=size_bytes,
            )
        )

    async def take_lease(self, key: str, token: str, lease_s: float) -> bool:
        return await self._ask(lambda store: store.take_lease(key, token, lease_s))

    async def extend_lease(self, key: str, token: str, lease_s: float) -> bool:
        return await self._ask(lambda store: store.extend_lease(key, token, lease_s))

    async def end_lease(self, key: str, token: str) -> None:
        await self._ask(lambda store: store.end_lease(key, token))

    async def invalidate(self, what: Invalidation) -> int:
        return await self._ask(lambda store: store.invalidate(what))

    async def listen(
        self, on_invalidation: Callable[[Invalidation], None], on_ready: Callable[[], None]
    ) -> None:
        loop = asyncio.get_running_loop()

        def deliver(what: Invalidation) -> None:
            loop.call_later(self._latency_s(), on_invalidation, what)

        await self._cross()
        await self._server.listen(deliver, on_ready)

    async def add_member(self, group: str, member: str, payload: bytes, *, ttl_s: float) -> None:
        await self._ask(lambda store: store.add_member(group, member, payload, ttl_s=ttl_s))

    async def remove_members(self, group: str, members: Collection[str]) -> None:
        await self._ask(lambda store: store.remove_members(group, members))

    async def members(self, group: str) -> Mapping[str, bytes]:
        return await self._ask(lambda store: store.members(group))

    async def aclose(self) -> None:
        """Nothing is held beyond this object."""

    async def _ask(self, command: Callable[[MemoryStore], Awaitable[R]]) -> R:
        await self._cross()
        answer = await self._server.serve(command)
        await self._cross()
        return answer

    async def _cross(self) -> None:
        await asyncio.sleep(self._latency_s())

    def _latency_s(self) -> float:
        latency = self._server.one_way
        if isinstance(latency, Constant):
            return latency.value
        number, leg = divmod(self._legs, UNIFORMS_PER_KEY)
        self._legs += 1
        return latency.quantile(uniforms(self._server.seed, self._purpose, number)[leg])
