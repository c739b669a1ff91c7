"""The pool on a real server: what is taken comes back, what is safe is retried, bad input is one line."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import pytest

from reference_impl.batches.port import BatchPage
from reference_impl.database.entries import KeyBudget
from reference_impl.database.errors import (
    BadDsn,
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    PoolExhausted,
    SchemaTooNew,
    ServerTooOld,
    StatementFailed,
    StatementTimeout,
    masked,
    one_line,
)
from reference_impl.database.migrations import migrate_postgres, steps
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.postgres_errors import translated
from reference_impl.database.postgres_store import PostgresLedger
from tests.servers.postgres import PASSWORD, PostgresProcess, fresh_database, require_postgres

KNOWN = len(steps("postgres"))

Work = Callable[[ConnectionPool], Coroutine[Any, Any, None]]


def with_pool(work: Work, **options: Any) -> None:
    async def main() -> None:
        pool = ConnectionPool(fresh_database(), **({"min_size": 1, "max_size": 2} | options))
        await pool.initialize()
        try:
            async with asyncio.timeout(30):
                await work(pool)
        finally:
            await pool.close()

    asyncio.run(main())


def test_statements_transactions_and_statistics() -> None:
    async def work(pool: ConnectionPool) -> None:
        await pool.execute("CREATE TABLE t (n int)")
        assert await pool.execute("INSERT INTO t VALUES ($1)", 1) == "INSERT 0 1"

        async def undone() -> None:
            async with pool.transaction() as connection:
                await connection.execute("INSERT INTO t VALUES (2)")
                await connection.execute("SELECT 1 / 0")

        with pytest.raises(StatementFailed, match="division by zero"):
            await undone()
        assert [tuple(row) for row in await pool.fetch("SELECT n FROM t")] == [(1,)]
        async with pool.acquire(), pool.acquire():
            held = pool.statistics()
            assert (held.size, held.idle, held.waiting) == (2, 0, 0)
        assert pool.statistics().idle == 2
        (sample,) = pool.samples()
        assert (sample.kind, sample.capacity, sample.arrivals) == ("pool", 2, sample.completions)

    with_pool(work)


def test_waiters_that_give_up_or_are_cancelled_leak_nothing() -> None:
    async def work(pool: ConnectionPool) -> None:
        async def hold(seconds: float) -> None:
            async with pool.acquire(0.05) as connection:
                await connection.fetchval("SELECT pg_sleep($1)", seconds)

        for turn in range(20):
            tasks = [asyncio.create_task(hold(0.03)) for _ in range(8)]
            await asyncio.sleep(0.002 * turn)
            for task in tasks[::2]:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            kinds = {type(error) for error in ended}
            assert kinds <= {type(None), asyncio.CancelledError, PoolExhausted}, ended
        async with pool.acquire(1), pool.acquire(1):
            pass
        after = pool.statistics()
        assert after.waiting == 0
        assert after.idle == after.size
        assert after.gave_up > 0

    with_pool(work)


def test_a_session_that_a_lease_may_have_changed_is_reset_and_a_broken_transaction_rolled_back() -> (
    None
):
    async def work(pool: ConnectionPool) -> None:
        async with pool.acquire() as connection:
            await connection.execute("SET application_name = 'changed'")
        assert (await pool.fetch("SHOW application_name"))[0][0] == ""
        async with pool.acquire(stateless=True) as connection:
            await connection.execute("SET application_name = 'kept'")
        assert (await pool.fetch("SHOW application_name"))[0][0] == "kept", "nobody resets it"
        async with pool.acquire() as connection:
            pass
        assert (await pool.fetch("SHOW application_name"))[0][0] == ""

        async def cancelled() -> None:
            async with pool.transaction() as connection:
                await connection.execute("CREATE TABLE undone (n int)")
                await connection.execute("SELECT pg_sleep(20)")

        task = asyncio.create_task(cancelled())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await pool.fetch("SELECT to_regclass('undone')"))[0][0] is None

    with_pool(work, max_size=1)


def test_an_exhausted_pool_says_what_to_do() -> None:
    async def work(pool: ConnectionPool) -> None:
        async with pool.acquire(), pool.acquire():
            with pytest.raises(PoolExhausted, match="raise max_size"):
                async with pool.acquire(0.05):
                    pass

    with_pool(work)


def test_a_statement_that_takes_too_long_is_cancelled_on_the_server_and_the_connection_lives() -> (
    None
):
    async def work(pool: ConnectionPool) -> None:
        with pytest.raises(StatementTimeout):
            await pool.execute("SELECT pg_sleep(20)")
        assert (await pool.fetch("SELECT 1 AS one"))[0]["one"] == 1
        running = await pool.fetch(
            "SELECT FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(20)%' AND state = 'active'"
        )
        assert running == []

    with_pool(work, statement_timeout_s=0.2)


def test_only_what_is_safe_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(pool: ConnectionPool) -> None:
        tried = 0

        async def lost(_connection: asyncpg.Connection) -> None:
            nonlocal tried
            tried += 1
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle")

        with pytest.raises(DatabaseUnavailable):
            await pool._repeating(lost, idempotent=False)
        assert tried == 1, "it may have been done"
        with pytest.raises(DatabaseUnavailable):
            await pool._repeating(lost, idempotent=True)
        assert tried == 4

        async def deadlock(_connection: asyncpg.Connection) -> None:
            nonlocal tried
            tried += 1
            if tried < 6:
                raise asyncpg.DeadlockDetectedError("deadlock detected")

        await pool._repeating(deadlock, idempotent=False)
        assert tried == 6, "the server had rolled it back"

    with_pool(work)


def test_a_restarted_server_is_found_again() -> None:
    require_postgres()

    async def main(server: PostgresProcess) -> None:
        pool = ConnectionPool(server.dsn(), 2, 4)
        await pool.initialize()
        await asyncio.to_thread(server.stop)
        with pytest.raises(DatabaseUnavailable):
            await pool.fetch("SELECT 1")
        await asyncio.to_thread(server.start)
        rows = await asyncio.gather(*(pool.fetch("SELECT 1", idempotent=True) for _ in range(8)))
        assert len(rows) == 8
        await pool.close()

    with PostgresProcess() as server:
        asyncio.run(main(server))


def test_behind_pgbouncer_nothing_stays_prepared_and_every_statement_is_a_transaction() -> None:
    async def work(pool: ConnectionPool) -> None:
        for number in range(3):
            assert (await pool.fetch("SELECT $1::int AS n", number))[0]["n"] == number
        async with pool.acquire() as connection:
            rows = await connection.fetch("SELECT name FROM pg_prepared_statements")
            assert [row["name"] for row in rows if row["name"]] == []
        inside = await pool.fetch("SELECT now() = statement_timestamp() AS first")
        assert inside[0]["first"] is False, "BEGIN came before it"

    with_pool(work, behind_pgbouncer=True)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (lambda dsn: dsn.replace(PASSWORD, "wr0ng"), DatabaseRefused, "password authentication"),
        (lambda dsn: dsn + "_absent", DatabaseRefused, "does not exist"),
        (lambda dsn: "postgresql://127.0.0.1:notaport/x", DatabaseError, "port"),
        (lambda dsn: "nonsense://x", BadDsn, "scheme"),
        (lambda dsn: "postgresql://u:p@127.0.0.1:1/x", DatabaseUnavailable, "database"),
    ],
)
def test_a_dsn_that_leads_nowhere_is_one_line_without_its_password(
    change: Callable[[str], str], kind: type[DatabaseError], says: str
) -> None:
    dsn = change(fresh_database())

    async def main() -> None:
        with pytest.raises(kind, match=says) as caught:
            await ConnectionPool(dsn, 1, 1).initialize()
        text = str(caught.value)
        assert "\n" not in text
        assert PASSWORD not in text
        assert "wr0ng" not in text

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), DatabaseRefused),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), DatabaseUnavailable),
        (ssl.SSLCertVerificationError("certificate verify failed"), DatabaseRefused),
        (ConnectionError("PostgreSQL server rejected SSL upgrade"), DatabaseRefused),
        (ConnectionResetError("Connection reset by peer"), DatabaseUnavailable),
        (asyncpg.CannotConnectNowError("the database system is starting up"), DatabaseUnavailable),
        (asyncpg.TooManyConnectionsError("too many clients already"), DatabaseUnavailable),
        (asyncpg.InsufficientPrivilegeError("permission denied"), DatabaseRefused),
    ],
)
def test_what_waiting_may_mend_is_told_apart_from_what_it_does_not(
    error: Exception, kind: type[DatabaseError]
) -> None:
    assert type(translated(error, "opening")) is kind


def test_a_close_waits_for_a_lease_and_no_longer() -> None:
    async def main() -> None:
        pool = ConnectionPool(fresh_database(), 1, 2, acquire_timeout_s=20.0)
        assert pool.samples() == [], "not open yet"
        await pool.initialize()
        lent, let_go = asyncio.Event(), asyncio.Event()

        async def hold() -> object:
            async with pool.acquire() as connection:
                lent.set()
                await let_go.wait()
                return await connection.fetchval("SELECT 1")

        holding = asyncio.create_task(hold())
        await lent.wait()
        closing = asyncio.create_task(pool.close())
        await asyncio.sleep(0)
        assert pool.samples() == [], "not open any more"
        assert not closing.done()
        let_go.set()
        assert await holding == 1, "its connection was not cut off"
        await asyncio.wait_for(closing, 5.0)

    asyncio.run(main())


@pytest.mark.parametrize(
    "password", ["secret", "to@psecret", "a/secret", "a?b#secret", "a:secret", "a secret", "@"]
)
@pytest.mark.parametrize("user", ["u", "", "u@server"])
def test_no_part_of_a_password_is_shown_whatever_is_in_it(user: str, password: str) -> None:
    dsn = f"postgresql://{user}:{password}@h:1/d"
    assert masked(dsn) == f"postgresql://{user}:***@h:1/d"
    assert f"postgresql://{user}:***@h:1/d" in repr(ConnectionPool(dsn))
    if " " not in password:
        assert (
            one_line(f"no\nroute to {dsn} now") == f"no route to postgresql://{user}:***@h:1/d now"
        )


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("host=h password=secret user=u", "host=h password=*** user=u"),
        (r"host=h password='a\' secret' user=u", "host=h password=*** user=u"),
        ("postgresql://h/d?user=u&password=secret&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
    ],
)
def test_passwords_are_masked_in_every_form_of_a_dsn(dsn: str, shown: str) -> None:
    assert masked(dsn) == shown


def test_a_server_too_old_is_refused() -> None:
    async def main() -> None:
        pool = ConnectionPool(fresh_database(), 1, 1, min_server_version=99)
        with pytest.raises(ServerTooOld, match="upgrade to 99 or later"):
            await pool.initialize()

    asyncio.run(main())


def test_processes_that_start_together_migrate_once() -> None:
    dsn = fresh_database()

    async def main() -> None:
        connections = [await asyncpg.connect(dsn) for _ in range(6)]
        applied = await asyncio.gather(*(migrate_postgres(c) for c in connections))
        assert sorted(map(len, applied)) == [0] * 5 + [len(steps("postgres"))]
        for connection in connections:
            await connection.close()

    asyncio.run(main())


def test_a_failing_migration_leaves_nothing_half_done() -> None:
    async def work(pool: ConnectionPool) -> None:
        broken = [*steps("postgres"), (KNOWN + 1, "CREATE TABLE half (n int); SELECT 1 / 0")]
        async with pool.acquire() as connection:
            with pytest.raises(asyncpg.DivisionByZeroError):
                await migrate_postgres(connection, broken)
            assert await connection.fetchval("SELECT to_regclass('half')") is None
            assert await connection.fetchval("SELECT to_regclass('ledger_schema')") is None
            assert await migrate_postgres(connection) == list(range(1, KNOWN + 1))

    with_pool(work)


@pytest.mark.parametrize("version", range(1, KNOWN))
def test_a_database_of_an_older_version_keeps_its_rows(version: int) -> None:
    dsn = fresh_database()

    async def main() -> None:
        store = PostgresLedger(ConnectionPool(dsn, 1, 1))
        await store.pool.initialize()
        async with store.pool.acquire() as connection:
            applied = await migrate_postgres(connection, steps("postgres")[:version])
            assert applied == list(range(1, version + 1))
        await store.set_budget("k", 7)
        await store.open()
        assert await store.budgets() == [KeyBudget("k", 7)]
        assert await store.batches().of_tenant("k", 1) == BatchPage([])
        await store.aclose()

    asyncio.run(main())


def test_a_schema_of_a_newer_version_is_refused_and_not_touched() -> None:
    dsn = fresh_database()

    async def main() -> None:
        store = PostgresLedger(ConnectionPool(dsn, 1, 1))
        await store.open()
        await store.pool.execute("INSERT INTO ledger_schema (version) VALUES (99)")
        await store.pool.execute("DROP TABLE ledger_batches")
        await store.aclose()
        older = PostgresLedger(ConnectionPool(dsn, 1, 1))
        with pytest.raises(SchemaTooNew, match=f"version 99, this program knows {KNOWN}"):
            await older.open()
        rows = await older.pool.fetch("SELECT to_regclass('ledger_batches') AS found")
        assert rows[0]["found"] is None
        await older.aclose()

    asyncio.run(main())
