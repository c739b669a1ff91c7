"""`twinload ledger` over real databases: what it shows, and that looking makes and changes nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from reference_impl.database.connect import store_of_dsn
from reference_impl.database.migrations import migrate_postgres, steps
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.sqlite_reader import SqliteReader
from reference_impl.database.sqlite_store import SqliteLedger, migrate_sqlite
from tests.command_line import run_twinload
from tests.reference_impl.database.rows import batch, entry
from tests.servers.pgbouncer import shared_pgbouncer
from tests.servers.postgres import fresh_database, shared_postgres

KNOWN = len(steps("sqlite"))


def fill(dsn: str) -> None:
    async def main() -> None:
        store = store_of_dsn(dsn)
        await store.open()
        await store.write(batch(1, [entry(n, f"key-{n % 2}") for n in range(10)]))
        await store.aclose()

    asyncio.run(main())


def refusal(*arguments: str) -> str:
    """The one line that a refused `twinload ledger` prints."""
    printed = run_twinload("ledger", *arguments)
    assert (printed.status, printed.out) == (2, "")
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir()}


@pytest.fixture(params=["sqlite", "postgres", "pgbouncer"])
def filled(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        fill(str(tmp_path / "ledger ?#%.sqlite"))
        return str(tmp_path / "ledger ?#%.sqlite")
    dsn = fresh_database()
    fill(dsn)
    if request.param == "pgbouncer":
        return shared_pgbouncer().dsn(dsn.rpartition("/")[2])
    return dsn


def test_the_ledger_command_shows_spend_and_exports(filled: str, tmp_path: Path) -> None:
    shown = run_twinload("ledger", "--database", filled, "--json")
    assert (shown.status, shown.err) == (0, "")
    document = json.loads(shown.out)
    assert [(row["group"], row["cost_usd"]) for row in document["rows"]] == [
        ("key-0", 0.05),
        ("key-1", 0.05),
    ]
    exported = run_twinload(
        "ledger", "--database", filled, "--by", "day", "--export", f"{tmp_path}/l.parquet"
    )
    assert "10 rows written" in exported.out


def test_the_ledgers_table_breaks_no_heading_and_no_figure(tmp_path: Path) -> None:
    fill(str(tmp_path / "l.sqlite"))
    shown = run_twinload("ledger", "--database", str(tmp_path / "l.sqlite")).out
    assert "input tokens" in shown
    (total,) = [line for line in shown.splitlines() if "total" in line]
    (heading,) = [line for line in shown.splitlines() if "requests" in line]
    assert all(name in heading for name in ("cached tokens", "wasted $", "hits", "retries"))
    assert "0.1000" in total


def test_a_scheme_that_is_no_ledger_s_is_refused_without_its_password() -> None:
    line = refusal("--database", "mysql://u:secret@h/d")
    assert "secret" not in line
    assert "expected postgresql://" in line


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--by", "nonsense"), "'nonsense' is not one of 'key', 'model', 'day', 'outcome'"),
        (("--since", "nonsense"), "does not match the format '%Y-%m-%d'"),
        (("--database", ""), "expected postgresql://"),
        (("--database", "host=h password=secret"), "no ledger: host=h password=*** is no file"),
        (("--database", "postgresql://u:secret@h:port/d"), "expected postgresql://"),
        (("--database", "postgresql://u:secret@127.0.0.1:1/d"), "Connect call failed"),
    ],
)
def test_options_that_cannot_be_are_refused(options: tuple[str, ...], says: str) -> None:
    printed = run_twinload("ledger", "--database", "ledger.sqlite", *options)
    assert (printed.status, printed.out) == (2, "")
    assert says in printed.err.splitlines()[-1]
    assert "secret" not in printed.err


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "typo.sqlite"
    assert f"no ledger: {path} is no file" in refusal("--database", str(path))
    assert list(tmp_path.iterdir()) == []


def _text(path: Path) -> None:
    path.write_text("not a database, but longer than its header would be " * 20)


def _another_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (a)")
    db.close()


def _older(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    migrate_sqlite(db, steps("sqlite")[:1])
    db.close()


def _newer(path: Path) -> None:
    fill(str(path))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "is no file"),
        (Path.touch, "holds no ledger"),
        (_text, "file is not a database"),
        (_another_database, "holds no ledger"),
        (_older, f"has version 1, this program reads {KNOWN}: start a gateway"),
        (_newer, "has version 99"),
    ],
)
def test_a_file_that_is_no_ledger_of_this_version_is_refused_and_not_touched(
    make: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    path = tmp_path / "ledger.sqlite"
    make(path)
    if path.is_dir():
        assert says in refusal("--database", str(path))
        return
    before = contents(tmp_path)
    assert says in refusal("--database", str(path))
    assert contents(tmp_path) == before


def test_looking_at_a_closed_ledger_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    fill(str(path))
    before = contents(tmp_path)
    assert list(before) == ["ledger.sqlite"]
    assert run_twinload("ledger", "--database", str(path)).status == 0
    assert contents(tmp_path) == before


def test_a_ledger_that_a_gateway_writes_meanwhile_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    fill(str(path))

    async def requests(reader: SqliteReader) -> int:
        return sum(row.requests for row in await reader.spend("key"))

    async def main() -> None:
        async with (
            aclosing(SqliteReader(path)) as reader,
            aclosing(SqliteLedger(path)) as writer,
            aclosing(SqliteReader(path)) as late,
        ):
            await reader.open()
            seen = [await requests(reader)]
            await writer.open()
            await writer.write(batch(2, [entry(n) for n in range(10, 15)]))
            seen.append(await requests(reader))
            await writer.write(batch(3, [entry(n) for n in range(15, 20)]))
            seen.append(await requests(reader))
            await reader.aclose()
            await late.open()
            seen.append(await requests(late))
            await late.aclose()
            await writer.write(batch(4, [entry(20)]))
        assert seen == [10, 15, 20, 20]

    asyncio.run(main())


def test_a_ledger_that_was_written_and_closed_meanwhile_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    fill(str(path))

    async def main() -> None:
        async with aclosing(SqliteReader(path)) as reader:
            await reader.open()
            async with aclosing(SqliteLedger(path)) as writer:
                await writer.open()
                await writer.write(batch(2, [entry(n) for n in range(10, 2000)]))
            assert sum(row.requests for row in await reader.spend("key")) == 2000

    asyncio.run(main())


def test_a_postgresql_database_without_a_ledger_stays_without() -> None:
    dsn = fresh_database()
    assert "no ledger in this database" in refusal("--database", dsn)
    assert (
        shared_postgres().sql(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'", dsn.rpartition("/")[2]
        )
        == "0"
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (None, f"has version 1, this program reads {KNOWN}: start a gateway"),
        ("INSERT INTO ledger_schema (version) VALUES (99)", "has version 99"),
    ],
)
def test_a_postgresql_ledger_of_another_version_is_refused_and_not_migrated(
    change: str | None, says: str
) -> None:
    dsn = fresh_database()

    async def make() -> None:
        pool = ConnectionPool(dsn, 1, 1)
        await pool.initialize()
        async with pool.acquire() as connection:
            await migrate_postgres(connection, steps("postgres")[:1])
            if change is not None:
                await connection.execute(change)
        await pool.close()

    asyncio.run(make())
    versions = "SELECT string_agg(version::text, ' ') FROM ledger_schema"
    before = shared_postgres().sql(versions, dsn.rpartition("/")[2])
    assert says in refusal("--database", dsn)
    assert shared_postgres().sql(versions, dsn.rpartition("/")[2]) == before


@pytest.fixture
def ledger_file(tmp_path: Path) -> str:
    fill(str(tmp_path / "ledger.sqlite"))
    return str(tmp_path / "ledger.sqlite")


def test_an_export_that_cannot_be_written_is_one_line(ledger_file: str, tmp_path: Path) -> None:
    for target in (tmp_path / "missing" / "x.parquet", Path(ledger_file) / "x.parquet"):
        line = refusal("--database", ledger_file, "--export", str(target))
        assert f"--export {target}: " in line
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.sqlite"]


def test_an_export_does_not_overwrite(ledger_file: str, tmp_path: Path) -> None:
    target = tmp_path / "x.parquet"
    target.write_text("mine")
    assert "exists already; name another file" in refusal(
        "--database", ledger_file, "--export", str(target)
    )
    assert target.read_text() == "mine"
