"""A full disk, of the spill file and of the server: what fits is whole, what does not is kept, and nothing is lost."""

from __future__ import annotations

import asyncio
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from reference_impl.database.entries import EntryBatch
from reference_impl.database.errors import DiskFull
from reference_impl.database.pool import ConnectionPool
from reference_impl.database.postgres_store import PostgresLedger
from reference_impl.database.writer import LedgerWriter
from reference_impl.deployment import DatabaseSpec
from reference_impl.live.services.postgres import server_user
from simulation import kernel
from simulation.models.database import DatabaseServer, VirtualLedger, VirtualPool
from tests.reference_impl.database.rows import CENT, batch, entry
from tests.servers.postgres import PostgresProcess, require_postgres


@pytest.fixture
def room_for_20_kb() -> Iterator[None]:
    """As a full disk does, the kernel takes part of a write and then no more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("room_for_20_kb")
def test_a_spill_file_without_room_stays_whole_and_the_rest_waits_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        server = DatabaseServer()
        server.fail("refusing")
        spec = DatabaseSpec(flush_s=1.0)
        writer = LedgerWriter(
            VirtualLedger(server, VirtualPool(server, 1)), spec, name="w", folder=tmp_path
        )
        writer.start()
        for number in range(1000):
            writer.add(entry(number))
            await asyncio.sleep(0.01)
        lines = (tmp_path / "w.spill").read_bytes().splitlines()
        assert [msgspec.json.decode(line, type=EntryBatch).sequence for line in lines] == [1]
        assert len(lines[0]) < 20_000
        assert writer.statistics().in_memory >= 900
        server.recover()
        await writer.drained()
        assert list(server.ledger._entries) == [entry(n).entry_id for n in range(1000)]
        await writer.aclose()
        assert list(tmp_path.iterdir()) == []

    kernel.run(main())
    assert sum("rows stay in memory" in record.message for record in caplog.records) == 1


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 1 MB, where the server's user can reach it."""
    path = Path(tempfile.mkdtemp(prefix="small-disk-"))
    options = "size=1m,mode=755"
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        path.rmdir()
        pytest.skip("no right to mount a small file system")
    place = path / "tablespace"
    place.mkdir()
    if user := server_user():
        shutil.chown(place, user)
    yield place
    subprocess.run(["umount", "-l", str(path)], check=True)
    path.rmdir()


def test_a_server_whose_disk_is_full_takes_a_batch_whole_or_not_at_all(small_disk: Path) -> None:
    require_postgres()

    async def main(dsn: str) -> None:
        ledger = PostgresLedger(ConnectionPool(dsn, 1, 2))
        await ledger.open()
        await ledger.set_budget("k", 10**6 * CENT)
        await ledger.pool.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
        await ledger.pool.execute("ALTER TABLE ledger_entries SET TABLESPACE small")
        assert await ledger.write(batch(1, [entry(n) for n in range(100)])) == 100
        large = batch(2, [entry(n) for n in range(100, 20_000)])
        with pytest.raises(DiskFull) as caught:
            await ledger.write(large)
        assert "No space left" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert (await ledger.budgets())[0].spent_nanousd == 100 * CENT
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk.parent)], check=True)
        assert await ledger.write(large) == 19_900
        assert (await ledger.budgets())[0].spent_nanousd == 20_000 * CENT
        await ledger.aclose()

    with PostgresProcess() as server:
        asyncio.run(main(server.create_database("ledger")))
