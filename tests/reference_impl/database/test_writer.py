"""The ledger's writer: an outage costs no row and doubles none, a kill costs one interval. In virtual time."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from reference_impl.database.backlog import Backlog, SpillFile
from reference_impl.database.entries import EntryBatch, LedgerEntry
from reference_impl.database.errors import StatementFailed
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.database.writer import LedgerWriter
from reference_impl.deployment import DatabaseSpec
from reference_impl.telemetry import SystemEvent
from simulation import kernel
from simulation.models.database import DatabaseServer, VirtualLedger, VirtualPool
from tests.reference_impl.database.rows import CENT, batch, entry

SPEC = DatabaseSpec(flush_s=1.0, acquire_timeout_s=5, statement_timeout_s=5)


def ids(server: DatabaseServer) -> list[str]:
    return list(server.ledger._entries)


class Bench:
    """A writer over a virtual database, fed 200 rows/s. Made on the running loop."""

    def __init__(self, folder: Path | None, spec: DatabaseSpec = SPEC, name: str = "w") -> None:
        self.server = DatabaseServer()
        self.events: list[SystemEvent] = []
        self.writer = self.make(folder, spec, name)
        self.fed = 0

    def make(self, folder: Path | None, spec: DatabaseSpec, name: str) -> LedgerWriter:
        store = VirtualLedger(self.server, VirtualPool(self.server, 2, statement_timeout_s=5))
        writer = LedgerWriter(store, spec, name=name, folder=folder, on_event=self.events.append)
        writer.start()
        return writer

    async def feed(self, seconds: float) -> None:
        for _ in range(int(seconds * 200)):
            self.writer.add(entry(self.fed))
            self.fed += 1
            await asyncio.sleep(1 / 200)

    def complete(self) -> bool:
        return ids(self.server) == [entry(n).entry_id for n in range(self.fed)]


@pytest.mark.parametrize("outage", ["refusing", "hanging"])
def test_an_outage_of_thirty_seconds_loses_and_doubles_no_row(tmp_path: Path, outage: str) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.feed(2)
        bench.server.fail(outage)  # type: ignore[arg-type]
        await bench.feed(30)
        assert len(ids(bench.server)) < 500
        held = bench.writer.statistics()
        assert held.in_memory <= 200, "what waits longer than an interval is on disk"
        bench.server.recover()
        await bench.feed(10)
        await bench.writer.drained()
        assert bench.complete()
        statistics = bench.writer.statistics()
        assert (statistics.added, statistics.written, statistics.away) == (8400, 8400, False)
        assert [event.detail["state"] for event in bench.events] == ["away", "back"]
        await bench.writer.aclose()
        assert list(tmp_path.iterdir()) == []

    kernel.run(main())


@pytest.mark.parametrize("outage", [None, "refusing", "hanging"])
def test_a_killed_writer_costs_at_most_the_rows_of_one_interval(
    tmp_path: Path, outage: str | None
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        await bench.feed(2.13)
        if outage is not None:
            bench.server.fail(outage)  # type: ignore[arg-type]
        await bench.feed(7.29)
        for task in bench.writer._tasks:
            task.cancel()  # the kill: nothing is flushed, the file's lock goes with the process
        await asyncio.gather(*bench.writer._tasks, return_exceptions=True)
        assert bench.writer._backlog._own is not None
        bench.writer._backlog._own._file.close()
        bench.server.recover()
        successor = bench.make(tmp_path, SPEC, "successor")
        await successor.drained()
        found = ids(bench.server)
        missing = bench.fed - len(found)
        assert 0 < missing <= 200 * SPEC.flush_s
        assert found == [entry(n).entry_id for n in range(len(found))]
        await successor.aclose()
        assert list(tmp_path.iterdir()) == []

    kernel.run(main())


def test_a_row_that_the_database_refuses_does_not_hold_up_the_others(tmp_path: Path) -> None:
    class Picky(MemoryLedger):
        async def write(self, batch: EntryBatch) -> int:
            if any(e.key_id == "bad" for e in batch.entries):
                raise StatementFailed("value out of range")
            return await super().write(batch)

    async def main() -> None:
        store = Picky()
        writer = LedgerWriter(store, SPEC, name="w", folder=tmp_path)
        writer.start()
        for n in range(10):
            writer.add(entry(n, "bad" if n == 3 else "k"))
        await writer.drained()
        assert sorted(store._entries) == [entry(n).entry_id for n in range(10) if n != 3]
        statistics = writer.statistics()
        assert (statistics.written, statistics.refused, statistics.known) == (9, 1, 0)
        await writer.aclose()
        assert b"e000003" in (tmp_path / "w.refused").read_bytes()

    kernel.run(main())


def test_a_full_disk_keeps_rows_in_memory_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_file: SpillFile, _batch: EntryBatch) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async def main() -> None:
        bench = Bench(tmp_path, DatabaseSpec(max_rows=300))
        bench.server.fail("refusing")
        monkeypatch.setattr(SpillFile, "append", full)
        await bench.feed(4)
        assert bench.writer.statistics().in_memory == 800
        states = [bench.writer.overflowing]
        await bench.feed(4)
        states.append(bench.writer.overflowing)
        assert states == [False, True]
        bench.server.recover()
        await bench.writer.drained()
        assert bench.complete()
        await bench.writer.aclose()

    kernel.run(main())
    assert sum("No space left" in r.message for r in caplog.records) == 1


def test_memory_is_bounded_by_rows_when_the_database_hangs(tmp_path: Path) -> None:
    async def main() -> None:
        bench = Bench(tmp_path, DatabaseSpec(flush_s=1000, batch_rows=100, max_rows=500))
        bench.server.fail("hanging")
        most = 0
        for n in range(5000):
            bench.writer.add(entry(n))
            most = max(most, bench.writer.statistics().in_memory)
        assert most <= 600
        bench.server.recover()
        bench.fed = 5000
        await bench.writer.drained()
        assert bench.complete()
        await bench.writer.aclose()

    kernel.run(main())


def test_closing_while_the_database_is_away_keeps_the_rows_for_the_next_start(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        bench = Bench(tmp_path)
        bench.server.fail("refusing")
        await bench.feed(1)
        await bench.writer.aclose(limit_s=2)
        assert [path.name for path in tmp_path.iterdir()] == ["w.spill"]
        bench.server.recover()
        successor = bench.make(tmp_path, SPEC, "successor")
        await successor.drained()
        assert bench.complete()
        await successor.aclose()

    kernel.run(main())


def test_a_spill_file_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    living = Backlog(tmp_path, "living")
    living.append(batch(1, [entry(1)]))
    living.persist()
    other = Backlog(tmp_path, "other")
    assert not other
    other.close()
    living.close()
    adopting = Backlog(tmp_path, "third")
    assert adopting.head() == batch(1, [entry(1)])
    adopting.pop()
    assert not adopting
    adopting.close()


def test_a_line_that_a_kill_cut_short_is_skipped_and_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = SpillFile(tmp_path / "x.spill")
    file.append(batch(1, [entry(1)]))
    file.append(batch(2, [entry(2)]))
    file._file.truncate(file._end - 20)
    file._file.close()
    again = SpillFile(tmp_path / "x.spill")
    assert again.head() == batch(1, [entry(1)])
    again.pop()
    assert again.head() is None
    assert "is no batch" in caplog.text
    again.close()
    assert list(tmp_path.iterdir()) == []


def test_releases_travel_with_the_rows_that_spent_them(tmp_path: Path) -> None:
    async def main() -> None:
        server = DatabaseServer()
        await server.ledger.set_budget("k", 10 * CENT)
        await server.ledger.reserve("k", "h", 5 * CENT, 0, 60)
        writer = LedgerWriter(
            VirtualLedger(server, VirtualPool(server, 1)), SPEC, name="w", folder=tmp_path
        )
        writer.start()
        writer.add(entry(1))
        writer.release("h", "k", 5 * CENT)
        assert (await server.ledger.budgets())[0].held_nanousd == 5 * CENT
        await writer.drained()
        left = (await server.ledger.budgets())[0]
        assert (left.spent_nanousd, left.held_nanousd) == (CENT, 0)
        await writer.aclose()

    kernel.run(main())


def test_entries_are_structs_that_survive_the_file(tmp_path: Path) -> None:
    file = SpillFile(tmp_path / "x.spill")
    odd: list[LedgerEntry] = [entry(1, "\u2028\n\"'\\"), entry(2, cost_nanousd=2**62)]
    file.append(batch(1, odd, releases=[("h", "k", 3)], renewals=[("h", "k")]))
    assert file.head() == batch(1, odd, releases=[("h", "k", 3)], renewals=[("h", "k")])
    file.pop()
    file.close()
