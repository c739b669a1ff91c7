"""ConnectionPool: asyncpg's pool with a limit on every wait, statistics, and retries of what is safe to retry.

The pool is a station of the deployment: requests that wait for a connection wait here, so arrivals, waits and busy time are
metered and sampled as those of any other station.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, TypeVar

import asyncpg
import msgspec

from reference_impl.database.errors import DatabaseError, DatabaseUnavailable, ServerTooOld, masked
from reference_impl.database.postgres_errors import FOREIGN, exhausted, translated
from reference_impl.instances.meter import StationMeter
from reference_impl.telemetry import StationSample

__all__ = ["MIN_SERVER_VERSION", "ConnectionPool", "PoolStatistics"]

T = TypeVar("T")

MIN_SERVER_VERSION: Final = 14  # the oldest that the PostgreSQL project still maintained in 2026
RETRY_WAITS_S: Final = (0.05, 0.2)
_Source = tuple[asyncpg.Pool, StationMeter]  # where a connection comes from, and goes back to


class PoolStatistics(msgspec.Struct, frozen=True):
    """`size` connections are open, `idle` of them unused, `waiting` callers wait for one; `wait_s` in all since the start.

    `acquired` counts callers that got one, `gave_up` those that were cancelled or had waited long enough.
    """

    size: int
    idle: int
    waiting: int
    wait_s: float
    acquired: int
    gave_up: int


class ConnectionPool:
    """Connections to one PostgreSQL database.

    Args:
        dsn: `postgresql://user:password@host:port/database`.
        min_size, max_size: connections kept open, and the bound.
        acquire_timeout_s: how long a caller waits for a connection unless it says otherwise.
        statement_timeout_s: after which a statement is cancelled on the server.
        connect_timeout_s: for opening one connection.
        behind_pgbouncer: each of our statements runs in a transaction and none is kept prepared
            (`statement_cache_size=0`): in transaction pooling the next statement may reach another server.
        min_server_version: major version below which `initialize` refuses.
    """

    def __init__(
        self,
        dsn: str,
        min_size: int = 10,
        max_size: int = 20,
        *,
        acquire_timeout_s: float = 5.0,
        statement_timeout_s: float = 30.0,
        connect_timeout_s: float = 5.0,
        behind_pgbouncer: bool = False,
        min_server_version: int = MIN_SERVER_VERSION,
    ) -> None:
        if not 0 <= min_size <= max_size or max_size < 1:
            raise ValueError(
                f"min_size {min_size}, max_size {max_size}: expected 0 <= min_size <= max_size, max_size >= 1"
            )
        self._dsn = dsn
        self._min_size = min_size
        self._max_size = max_size
        self._acquire_timeout_s = acquire_timeout_s
        self._statement_timeout_s = statement_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._behind_pgbouncer = behind_pgbouncer
        self._min_server_version = min_server_version
        self._pool: asyncpg.Pool | None = None
        self._meter: StationMeter | None = None
        self._gave_up = 0
        self._stateful: set[int] = set()  # server processes whose session a lease may have changed

    def __repr__(self) -> str:
        return f"ConnectionPool({masked(self._dsn)!r}, {self._min_size}, {self._max_size})"

    async def initialize(self) -> None:
        """Open `min_size` connections. Raises BadDsn, DatabaseRefused, ServerTooOld or DatabaseUnavailable."""
        if self._pool is not None:
            return
        doing = f"database {masked(self._dsn)}"
        try:
            pool = await asyncpg.create_pool(
                self._dsn,
                min_size=self._min_size,
                max_size=self._max_size,
                command_timeout=self._statement_timeout_s,
                timeout=self._connect_timeout_s,
                statement_cache_size=0 if self._behind_pgbouncer else 100,
                reset=self._reset,
            )
        except (*FOREIGN, ValueError) as error:
            raise translated(error, doing, connecting=True) from error
        try:
            async with pool.acquire() as connection:
                major = connection.get_server_version().major
        except FOREIGN as error:
            pool.terminate()
            raise translated(error, doing, connecting=True) from error
        if major < self._min_server_version:
            await pool.close()
            raise ServerTooOld(
                f"{doing}: PostgreSQL {major} is too old; upgrade to {self._min_server_version} or later"
            )
        self._pool = pool
        self._meter = StationMeter("database pool", "pool", self._max_size)

    def acquire(self, timeout_s: float | None = None, *, stateless: bool = False) -> _Lease:
        """A connection for the block: `async with pool.acquire() as connection`.

        `stateless`: the block leaves nothing in the session (no SET but SET LOCAL, no LISTEN, no session lock, no cursor), so
        the connection need not be reset afterwards. That is a round trip, in which nobody else can have the connection.
        Raises PoolExhausted after `timeout_s` (None: the pool's own), DatabaseUnavailable when none can be opened.
        """
        return _Lease(self, self._acquire_timeout_s if timeout_s is None else timeout_s, stateless)

    @asynccontextmanager
    async def transaction(
        self, *, timeout_s: float | None = None, isolation: str | None = None
    ) -> AsyncIterator[asyncpg.Connection]:
        """A connection inside a transaction: committed at the end of the block, rolled back when it raises.

        The block is stateless, as `acquire` has it.
        """
        async with self.acquire(timeout_s, stateless=True) as connection:
            try:
                async with connection.transaction(isolation=isolation):
                    yield connection
            except FOREIGN as error:
                raise translated(error, "transaction") from error

    async def execute(self, query: str, *args: Any, idempotent: bool = False) -> str:
        """Run a stateless statement (see `acquire`); its status line, as `INSERT 0 1`.

        Tried again when it was certainly not done (no connection, rolled back by the server), and with `idempotent` also
        when the connection was lost under way. Raises a DatabaseError.
        """
        status: str = await self._repeating(lambda c: c.execute(query, *args), idempotent)
        return status

    async def fetch(self, query: str, *args: Any, idempotent: bool = False) -> list[asyncpg.Record]:
        """The rows of a query; tried again as in `execute` (`idempotent=True` is right for every plain SELECT)."""
        rows: list[asyncpg.Record] = await self._repeating(
            lambda c: c.fetch(query, *args), idempotent
        )
        return rows

    async def close(self) -> None:
        """Wait for connections in use, at most the acquire time-out, and close all."""
        pool, self._pool = self._pool, None
        if pool is not None:
            try:
                async with asyncio.timeout(self._acquire_timeout_s):
                    await pool.close()
            except FOREIGN:  # what does not close in time is cut off: closing must come to an end
                pool.terminate()

    def statistics(self) -> PoolStatistics:
        pool, meter = self._open()
        return PoolStatistics(
            size=pool.get_size(),
            idle=pool.get_idle_size(),
            waiting=meter.waiting,
            wait_s=meter.waiting_s,
            acquired=meter.completions + meter.busy,
            gave_up=self._gave_up,
        )

    def samples(self, *, origin_s: float = 0.0) -> list[StationSample]:
        """The pool as a station since the last sample; nothing while it is not open."""
        if self._pool is None or self._meter is None:
            return []
        return [self._meter.sample(origin_s=origin_s)]

    def _open(self) -> _Source:
        if self._pool is None or self._meter is None:
            raise DatabaseUnavailable("the pool is not open: await initialize() first")
        return self._pool, self._meter

    async def _repeating(
        self, work: Callable[[asyncpg.Connection], Awaitable[T]], idempotent: bool
    ) -> T:
        waits = iter(RETRY_WAITS_S)
        while True:
            try:
                return await self._once(work)
            except DatabaseUnavailable as error:
                wait_s = next(waits, None) if error.safe_to_repeat or idempotent else None
                if wait_s is None:
                    raise
                await asyncio.sleep(wait_s)

    async def _once(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        async with self.acquire(stateless=True) as connection:
            try:
                if self._behind_pgbouncer:
                    async with connection.transaction():
                        return await work(connection)
                return await work(connection)
            except FOREIGN as error:
                raise translated(error, "statement") from error

    async def _take(self, timeout_s: float) -> tuple[_Source, asyncpg.Connection]:
        source = pool, meter = self._open()
        meter.advance()
        meter.arrivals += 1
        meter.waiting += 1
        taken = False
        try:
            connection = await pool.acquire(timeout=timeout_s)
            taken = True
            return source, connection
        except TimeoutError as error:
            raise exhausted(timeout_s, self._max_size) from error
        except FOREIGN as error:
            raise _not_connected(error) from error
        finally:
            meter.advance()
            meter.waiting -= 1
            if taken:
                meter.busy += 1
            else:
                self._gave_up += 1

    async def _give_back(
        self, source: _Source, connection: asyncpg.Connection, stateless: bool
    ) -> None:
        pool, meter = source
        try:
            if not stateless:
                self._stateful.add(connection.get_server_pid())
            await pool.release(connection, timeout=self._connect_timeout_s)
        except (
            FOREIGN
        ):  # the connection is cut off and its place free; what was done with it is done
            pass
        finally:
            meter.advance()
            meter.busy -= 1
            meter.completions += 1

    async def _reset(self, connection: asyncpg.Connection) -> None:
        """Called by asyncpg for a connection that is given back, after it has rolled back what was left open."""
        pid = connection.get_server_pid()
        # pgbouncer resets connections itself; a reset of ours would reach another's between two of its transactions.
        if pid in self._stateful and not self._behind_pgbouncer:
            await connection.execute(connection.get_reset_query())
        self._stateful.discard(pid)


class _Lease:
    """The block that holds a connection. A class, because a generator's context manager costs a tenth of the acquire."""

    __slots__ = ("_held", "_pool", "_stateless", "_timeout_s")

    def __init__(self, pool: ConnectionPool, timeout_s: float, stateless: bool) -> None:
        self._pool = pool
        self._timeout_s = timeout_s
        self._stateless = stateless
        # With its source: a pool that is closed meanwhile waits for this connection to come back.
        self._held: tuple[_Source, asyncpg.Connection] | None = None

    async def __aenter__(self) -> asyncpg.Connection:
        self._held = await self._pool._take(self._timeout_s)  # noqa: SLF001 - the pool's own half
        return self._held[1]

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        held, self._held = self._held, None
        assert held is not None
        await self._pool._give_back(*held, self._stateless)  # noqa: SLF001


def _not_connected(error: BaseException) -> DatabaseError:
    """Opening a connection failed: nothing was sent, so whatever was wanted is safe to repeat."""
    failure = translated(error, "opening a connection", connecting=True)
    failure.safe_to_repeat = True
    return failure
