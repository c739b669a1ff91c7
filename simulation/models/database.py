"""A virtual database: a server with demand by kind of statement, and a process's pool of connections to it.

`DatabaseServer` is the server, shared by the processes of a world; `VirtualPool` is one process's connections, `VirtualLedger`
the ledger over them. So the writer and the budgets of `reference_impl` run over it unchanged, and a pool that is too small
shows as the wait that it is. Works on any event loop.

A connection is held for as many round trips as live, first use and reset included. Locks on the rows of a key are held within a
single message live, so waits for them are the server's contention (`DatabaseDemand`) and not modelled one by one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, Literal, NamedTuple, TypeVar

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

__all__ = [
    "CONNECT_ROUND_TRIPS",
    "ROUND_TRIPS",
    "DatabaseServer",
    "Outage",
    "Statement",
    "Trips",
    "VirtualLedger",
    "VirtualPool",
]

T = TypeVar("T")

Outage = Literal["refusing", "hanging"]
Statement = Literal["reserve", "write", "query"]


class Trips(NamedTuple):
    """Messages there and back while a connection is held."""

    prepared: int
    first: int  # on a connection that has not done this before: its statements are prepared
    behind_pgbouncer: (
        int  # nothing stays prepared, and a single statement has a transaction around it
    )


# As counted on the wire (tests/reference_impl/database/test_round_trips.py holds them). A batch is begin, claim, rows and the
# booking that commits; nothing of it needs a reset.
ROUND_TRIPS: Final[dict[Statement, Trips]] = {
    "reserve": Trips(1, 2, 4),
    "write": Trips(4, 6, 6),
    "query": Trips(1, 2, 4),
}
# TCP, TLS asked for, the user, and two of the password's exchange (SCRAM-SHA-256).
CONNECT_ROUND_TRIPS: Final = 5


class DatabaseServer:
    """The server's side: executes statements, goes away, comes back. Data survive it, as they do a restart.

    `one_at_a_time`: a statement waits for those before it, whoever sent them, as transactions of SQLite do.
    """

    def __init__(
        self,
        demand: DatabaseDemand | None = None,
        *,
        seed: int = 0,
        one_at_a_time: bool = False,
    ) -> None:
        self.demand = DatabaseDemand() if demand is None else demand
        self.ledger = MemoryLedger()
        self._seed = seed
        self._numbers: dict[str, int] = {}
        self._under_way = 0
        self._outage: Outage | None = None
        self._epoch = 0
        self._back = asyncio.Event()
        self._lock = asyncio.Semaphore(1) if one_at_a_time else None

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
        demand = self.demand
        await self._answering()
        travel_s = 2 * CONNECT_ROUND_TRIPS * demand.one_way_s.quantile(self._draw("connect")[1])
        await asyncio.sleep(demand.connect_s + travel_s)
        await self._answering()
        return self._epoch

    async def execute(
        self,
        kind: Statement,
        rows: int,
        epoch: int,
        work: Callable[[MemoryLedger], Awaitable[T]],
        *,
        round_trips: int | None = None,
    ) -> T:
        """Execute a statement and all its messages; `work` happens at once at the end, or not at all.

        `round_trips`: None for those of a connection that has done this before.
        """
        if round_trips is None:
            round_trips = ROUND_TRIPS[kind].prepared
        if self._lock is None:
            return await self._execute(kind, rows, epoch, work, round_trips)
        async with self._lock:
            return await self._execute(kind, rows, epoch, work, round_trips)

    async def _execute(
        self,
        kind: Statement,
        rows: int,
        epoch: int,
        work: Callable[[MemoryLedger], Awaitable[T]],
        round_trips: int,
    ) -> T:
        demand = self.demand
        luck = self._draw(kind)
        self._under_way += 1
        try:
            slowdown = demand.slowdown(self._under_way)
            alone_s = getattr(demand, f"{kind}_s").quantile(luck[0])
            if kind == "write":
                alone_s += rows * demand.write_per_row_s
            travel_s = 2 * round_trips * demand.one_way_s.quantile(luck[1])
            await self._answering(epoch)
            await asyncio.sleep(alone_s * slowdown + travel_s)
            await self._answering(epoch)
        finally:
            self._under_way -= 1
        return await work(self.ledger)

    def _draw(self, purpose: str) -> Sequence[float]:
        """Uniform numbers for the next event of this purpose."""
        number = self._numbers.get(purpose, 0)
        self._numbers[purpose] = number + 1
        return uniforms(self._seed, f"database {purpose}", number)

    async def _answering(self, epoch: int | None = None) -> None:
        while self._outage == "hanging":
            await self._back.wait()
        if self._outage is not None:
            raise DatabaseUnavailable(
                "virtual database: connection refused", safe_to_repeat=epoch is None
            )
        if epoch is not None and epoch != self._epoch:
            raise DatabaseUnavailable("virtual database: connection lost", safe_to_repeat=True)


class _Connection:
    """A connection, what its statements have in common with those before them, and the epoch in which it lives."""

    __slots__ = ("epoch", "prepared")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.prepared: set[Statement] = set()


class VirtualPool:
    """At most `max_size` connections of one process, lent in order of asking, the last used first.

    `open` opens `min_size`, the others come when they are first needed.
    """

    def __init__(
        self,
        server: DatabaseServer,
        max_size: int = 20,
        *,
        min_size: int = 0,
        behind_pgbouncer: bool = False,
        connect_timeout_s: float = 5.0,
        acquire_timeout_s: float = 5.0,
        statement_timeout_s: float = 30.0,
        name: str = "database pool",
    ) -> None:
        if max_size < 1:
            raise ValueError(f"max_size must be at least 1 connection, not {max_size}")
        self._server = server
        self._acquire_timeout_s = acquire_timeout_s
        self._statement_timeout_s = statement_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._min_size = min(min_size, max_size)
        self._max_size = max_size
        self._behind_pgbouncer = behind_pgbouncer
        self._places = asyncio.Semaphore(max_size)
        self._idle: list[_Connection] = []  # last used last
        self._gave_up = 0
        self.meter = StationMeter(name, "pool", max_size)

    async def open(self) -> None:
        """Open `min_size` connections. Raises DatabaseUnavailable."""
        while len(self._idle) < self._min_size:
            try:
                async with asyncio.timeout(self._connect_timeout_s):
                    self._idle.append(_Connection(await self._server.connect()))
            except TimeoutError as error:
                raise _no_answer() from error

    async def run(
        self, kind: Statement, rows: int, work: Callable[[MemoryLedger], Awaitable[T]]
    ) -> T:
        """Execute a statement on a connection. Raises PoolExhausted, or DatabaseUnavailable."""
        await self._acquire()
        try:
            async with asyncio.timeout(self._statement_timeout_s):
                connection = await self._connection()
                result = await self._server.execute(
                    kind,
                    rows,
                    connection.epoch,
                    work,
                    round_trips=self._round_trips(kind, connection),
                )
            self._idle.append(connection)
            return result
        except TimeoutError as error:
            raise _no_answer() from error
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

    def _round_trips(self, kind: Statement, connection: _Connection) -> int:
        trips = ROUND_TRIPS[kind]
        if self._behind_pgbouncer:
            return trips.behind_pgbouncer
        if kind in connection.prepared:
            return trips.prepared
        connection.prepared.add(kind)
        return trips.first

    async def _connection(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.epoch == self._server.epoch:
                return connection
        return _Connection(await self._server.connect())

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
        await self.pool.open()

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


def _no_answer() -> DatabaseUnavailable:
    return DatabaseUnavailable("virtual database: no answer within the time allowed")


def _given(value: T) -> Callable[[MemoryLedger], Awaitable[T]]:
    async def give(_ledger: MemoryLedger) -> T:
        return value

    return give
