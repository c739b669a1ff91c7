"""From a description to a ledger, and what people see when it cannot be had."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from reference_impl.batches.port import BatchPage
from reference_impl.database.connect import DSN_VARIABLE, ledger_of, store_of_dsn
from reference_impl.database.entries import KeyBudget
from reference_impl.database.errors import BadDsn, DatabaseRefused, DiskFull, SchemaTooNew
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.database.migrations import Step, steps
from reference_impl.database.postgres_store import PostgresLedger
from reference_impl.database.sqlite_store import SqliteLedger, migrate_sqlite
from reference_impl.deployment import DatabaseSpec
from tests.reference_impl.database.rows import batch, entry
from tests.servers.postgres import PASSWORD, fresh_database

ROOT = Path(__file__).resolve().parents[3]
KNOWN = len(steps("sqlite"))


def test_a_description_names_its_ledger(tmp_path: Path) -> None:
    assert ledger_of(DatabaseSpec(), "", None) is None
    assert isinstance(ledger_of(DatabaseSpec(ledger="memory"), "", None), MemoryLedger)
    assert isinstance(ledger_of(DatabaseSpec(ledger="sqlite"), "", tmp_path), SqliteLedger)


@pytest.mark.parametrize(
    ("kind", "dsn", "says"),
    [
        ("postgres", "", DSN_VARIABLE),
        ("postgres", "mysql://u:secret@h/d", DSN_VARIABLE),
        ("sqlite", "", DSN_VARIABLE),
        ("sqlite", "postgresql://u:secret@h/d", "not a file"),
    ],
)
def test_a_ledger_that_cannot_be_found_says_how_to_name_it(kind: str, dsn: str, says: str) -> None:
    with pytest.raises(DatabaseRefused, match=says) as caught:
        ledger_of(DatabaseSpec.model_validate({"ledger": kind}), dsn, None)
    assert "secret" not in str(caught.value)


def test_an_unknown_scheme_is_refused_without_its_password() -> None:
    with pytest.raises(BadDsn, match="expected postgresql://") as caught:
        store_of_dsn("mysql://u:secret@h/d")
    assert "secret" not in str(caught.value)


def newer_schema() -> str:
    dsn = fresh_database()

    async def main() -> None:
        store = store_of_dsn(dsn)
        assert isinstance(store, PostgresLedger)
        await store.open()
        await store.pool.execute("INSERT INTO ledger_schema (version) VALUES (99)")
        await store.aclose()

    asyncio.run(main())
    return dsn


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        (lambda: "", f"ledger postgres: set {DSN_VARIABLE}"),
        (
            lambda: "postgresql://u:secret@127.0.0.1:x/d",
            "database postgresql://u:***@127.0.0.1:x/d: ",
        ),
        (lambda: fresh_database().replace(PASSWORD, "secret"), "password authentication failed"),
        (lambda: f"{fresh_database()}_absent", "does not exist"),
        (newer_schema, "version 99, this program knows"),
    ],
    ids=["no DSN", "wrong DSN", "wrong password", "no such database", "newer schema"],
)
def test_a_gateway_that_cannot_have_its_ledger_ends_with_one_line(
    tmp_path: Path, dsn: Callable[[], str], says: str
) -> None:
    config = tmp_path / "config.json"
    config.write_text(
        '{"deployment": {"database": {"ledger": "postgres"}}, "upstream_url": "http://127.0.0.1:1"}'
    )
    ended = subprocess.run(
        [sys.executable, "-m", "reference_impl.service", "gateway", "--config", str(config)],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", DSN_VARIABLE: dsn()},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert "secret" not in line
    assert PASSWORD not in line


def open_sqlite(path: Path) -> None:
    async def main() -> None:
        store = SqliteLedger(path, busy_timeout_s=0.2)
        try:
            await store.open()
        finally:
            await store.aclose()

    asyncio.run(main())


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but longer than its header would be " * 20)
    with pytest.raises(DatabaseRefused, match=r"notes\.txt: file is not a database"):
        open_sqlite(path)


def test_a_sqlite_schema_of_a_newer_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SchemaTooNew, match=f"version 99, this program knows {KNOWN}"):
        open_sqlite(path)
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    db.close()


def test_a_failing_sqlite_migration_leaves_nothing_half_done(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    broken: list[Step] = [
        *steps("sqlite"),
        (KNOWN + 1, "CREATE TABLE half (n);\nSELECT nonsense();"),
    ]
    with pytest.raises(sqlite3.OperationalError):
        migrate_sqlite(db, broken)
    assert db.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    assert migrate_sqlite(db, steps("sqlite")) == list(range(1, KNOWN + 1))
    db.close()


@pytest.mark.parametrize("version", range(1, KNOWN))
def test_a_sqlite_file_of_an_older_version_keeps_its_rows(tmp_path: Path, version: int) -> None:
    path = tmp_path / "ledger.sqlite"
    db = sqlite3.connect(path, isolation_level=None)
    assert migrate_sqlite(db, steps("sqlite")[:version]) == list(range(1, version + 1))
    db.execute("INSERT INTO ledger_budgets (key_id, limit_nanousd) VALUES ('k', 7)")
    db.close()

    async def main() -> None:
        store = SqliteLedger(path)
        await store.open()
        assert await store.budgets() == [KeyBudget("k", 7)]
        assert await store.batches().of_tenant("k", 1) == BatchPage([])
        await store.aclose()

    asyncio.run(main())


def test_a_full_disk_fails_the_batch_whole_and_it_can_be_written_later(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteLedger(tmp_path / "ledger.sqlite")
        await store.open()
        await store._run(lambda db: db.execute("PRAGMA max_page_count = 20"))
        large = batch(1, [entry(n) for n in range(5000)])
        with pytest.raises(DiskFull, match="full"):
            await store.write(large)
        assert [page async for page in store.entries()] == []
        await store._run(lambda db: db.execute("PRAGMA max_page_count = 100000"))
        assert await store.write(large) == 5000
        await store.aclose()

    asyncio.run(main())
