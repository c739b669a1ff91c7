"""A virtual database: a server with demand by kind of statement, and a process's pool of connections to it.

`DatabaseServer` is the server, shared by the processes of a world; `VirtualPool` is one process's connections, `VirtualLedger`
the ledger over them. So the writer and the budgets of `reference_impl` run over it unchanged, and a pool that is too small
shows as the wait that it is. Works on any event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, Literal, TypeVar

from reference_impl.batches.port import BatchStore
from reference_impl.database.entries import (
    EntryBatch,
    KeyBudget,
    LedgerEntry,
)
from reference_impl.database.errors import DatabaseUnavailable, PoolExhausted
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.database.pool import PoolStatistics
from reference_impl.database.port import Grant, Group, Spend
from reference_impl.instances.meter import StationMeter
from reference_impl.telemetry import StationSample
from simulation.models.batches import VirtualBatches
from simulation.scenario.database import DatabaseDemand
from simulation.scenario.random_streams import uniforms

__all__ = ["DatabaseServer", "Outage", "Statement", "VirtualLedger", "VirtualPool"]

T = TypeVar("T")

Outage = Literal["refusing", "hanging"]
Statement = Literal["reserve", "write", "query"]

# Messages there and back while a connection is held; the last is the reset with which a pool takes one back. A batch is
# begin, setting, claim, COPY (two), books, commit.
_ROUND_TRIPS: Final[dict[Statement, int]] = {"reserve": 2, "write": 8, "query": 2}


class DatabaseServer:
    """The server's side: executes statements, goes away, comes back. Data survive it, as they do a restart."""

    def __init__(self, demand: DatabaseDemand | None = None, *, seed: int = 0) -> None:
        self.demand = DatabaseDemand() if demand is None else demand
        self.ledger = MemoryLedger()
        self._seed = seed
        self._numbers: dict[Statement, int] = {"reserve": 0, "write": 0, "query": 0}
        self._under_way = 0
        self._outage: Outage | None = None
        self._epoch = 0
        self._back = asyncio.Event()

    @property
    def epoch(self) -> int:
        """Counts restarts: a connection of an earlier epoch is dead."""
        return self._epoch

    def fail(self, outage: Outage = "refusing") -> None:
        """Go away now. Refusing: connections break, statements under way are rolled back. Hanging: nothing is answered."""
        self._outage = outage
        self._back.clear()
        if outage == "refusing":
            self._epoch += 1

    def recover(self) -> None:
        """Answer again; what was left hanging goes on."""
        self._outage = None
        self._back.set()

    async def fail_over(self, seconds: float) -> None:
        """The primary dies and a standby with the same data takes over after `seconds`."""
        self.fail("refusing")
        await asyncio.sleep(seconds)
        self.recover()

    async def connect(self) -> int:
        """Open a connection; the epoch in which it lives."""
        await self._answering()
        await asyncio.sleep(self.demand.connect_s)
        await self._answering()
        return self._epoch

    async def execute(
        self, kind: Statement, rows: int, epoch: int, work: Callable[[MemoryLedger], Awaitable[T]]
    ) -> T:
        """Execute a statement and all its messages; `work` happens at once at the end, or not at all."""
        demand = self.demand
        number = self._numbers[kind]
        self._numbers[kind] += 1
        luck = uniforms(self._seed, f"database {kind}", number)
        self._under_way += 1
        try:
            slowdown = demand.slowdown(self._under_way)
            alone_s = getattr(demand, f"{kind}_s").quantile(luck[0])
            if kind == "write":
                alone_s += rows * demand.write_per_row_s
            travel_s = 2 * _ROUND_TRIPS[kind] * demand.one_way_s.quantile(luck[1])
            await self._answering(epoch)
            await asyncio.sleep(alone_s * slowdown + travel_s)
            await self._answering(epoch)
        finally:
            self._under_way -= 1
        return await work(self.ledger)

    async def _answering(self, epoch: int | None = None) -> None:
        while self._outage == "hanging":
            await self._back.wait()
        if self._outage is not None:
            raise DatabaseUnavailable(
                "virtual database: connection refused", safe_to_repeat=epoch is None
            )
        if epoch is not None and epoch != self._epoch:
            raise DatabaseUnavailable("virtual database: connection lost", safe_to_repeat=True)


class VirtualPool:
    """At most `max_size` connections of one process, lent in order of asking; opened when they are first needed."""

    def __init__(
        self,
        server: DatabaseServer,
        max_size: int = 20,
        *,
        acquire_timeout_s: float = 5.0,
        statement_timeout_s: float = 30.0,
        name: str = "database pool",
    ) -> None:
        if max_size < 1:
            raise ValueError(f"max_size must be at least 1 connection, not {max_size}")
        self._server = server
        self._acquire_timeout_s = acquire_timeout_s
        self._statement_timeout_s = statement_timeout_s
        self._max_size = max_size
        self._places = asyncio.Semaphore(max_size)
        self._idle: list[int] = []  # the epochs of open connections, last used last
        self._gave_up = 0
        self.meter = StationMeter(name, "pool", max_size)

    async def run(
        self, kind: Statement, rows: int, work: Callable[[MemoryLedger], Awaitable[T]]
    ) -> T:
        """Execute a statement on a connection. Raises PoolExhausted, or DatabaseUnavailable."""
        await self._acquire()
        try:
            async with asyncio.timeout(self._statement_timeout_s):
                epoch = await self._connection()
                result = await self._server.execute(kind, rows, epoch, work)
            self._idle.append(epoch)
            return result
        except TimeoutError as error:
            raise DatabaseUnavailable(
                "virtual database: no answer within the time allowed"
            ) from error
        finally:
            self._places.release()
            self.meter.advance()
            self.meter.busy -= 1
            self.meter.completions += 1

    def statistics(self) -> PoolStatistics:
        meter = self.meter
        return PoolStatistics(
            size=len(self._idle) + meter.busy,
            idle=len(self._idle),
            waiting=meter.waiting,
            wait_s=meter.waiting_s,
            acquired=meter.completions + meter.busy,
            gave_up=self._gave_up,
        )

    async def _connection(self) -> int:
        while self._idle:
            epoch = self._idle.pop()
            if epoch == self._server.epoch:
                return epoch
        return await self._server.connect()

    async def _acquire(self) -> None:
        meter = self.meter
        meter.advance()
        meter.arrivals += 1
        meter.waiting += 1
        taken = False
        try:
            async with asyncio.timeout(self._acquire_timeout_s):
                await self._places.acquire()
            taken = True
        except TimeoutError as error:
            raise PoolExhausted(
                f"no connection of the pool's {self._max_size} became free within "
                f"{self._acquire_timeout_s:g} s; raise max_size, or make the statements shorter",
                safe_to_repeat=True,
            ) from error
        finally:
            meter.advance()
            meter.waiting -= 1
            if taken:
                meter.busy += 1
            else:
                self._gave_up += 1


class VirtualLedger:
    """`LedgerStore` over a `VirtualPool`: what the server keeps, at what its statements cost."""

    def __init__(self, server: DatabaseServer, pool: VirtualPool) -> None:
        self._server = server
        self.pool = pool

    async def open(self) -> None:
        """Connections are opened when they are needed."""

    async def write(self, batch: EntryBatch) -> int:
        return await self.pool.run("write", len(batch.entries), lambda db: db.write(batch))

    async def reserve(
        self, key_id: str, hold: str, need_nanousd: int, want_nanousd: int, hold_s: float
    ) -> Grant:
        return await self.pool.run(
            "reserve", 1, lambda db: db.reserve(key_id, hold, need_nanousd, want_nanousd, hold_s)
        )

    async def set_budget(self, key_id: str, limit_nanousd: int | None) -> None:
        await self.pool.run("query", 1, lambda db: db.set_budget(key_id, limit_nanousd))

    async def budgets(self) -> list[KeyBudget]:
        return await self.pool.run("query", 1, lambda db: db.budgets())

    def batches(self) -> BatchStore:
        return VirtualBatches(self.pool)

    async def spend(self, group: Group, *, since_s: float = 0.0) -> list[Spend]:
        return await self.pool.run("query", 1, lambda db: db.spend(group, since_s=since_s))

    async def entries(self, *, since_s: float = 0.0) -> AsyncIterator[list[LedgerEntry]]:
        async for page in self._server.ledger.entries(since_s=since_s):
            yield await self.pool.run("query", 1, _given(page))

    def samples(self, *, origin_s: float = 0.0) -> list[StationSample]:
        return [self.pool.meter.sample(origin_s=origin_s)]

    async def aclose(self) -> None:
        """The server outlives its clients."""


def _given(value: T) -> Callable[[MemoryLedger], Awaitable[T]]:
    async def give(_ledger: MemoryLedger) -> T:
        return value

    return give
