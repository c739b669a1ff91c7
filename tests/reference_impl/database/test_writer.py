"""The ledger's writer: an outage costs no row and doubles none, a kill costs one interval. In virtual time."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import NoReturn

import pytest

from reference_impl.database.backlog import Backlog, SpillFile
from reference_impl.database.entries import EntryBatch, LedgerEntry
from reference_impl.database.errors import DatabaseUnavailable, InvalidValue, StatementFailed
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


class Picky(MemoryLedger):
    """Refuses rows of the key `bad` for themselves; `troubles` are raised by writes of the key `fragile`, one each."""

    def __init__(self, *troubles: Exception) -> None:
        super().__init__()
        self.troubles = list(troubles)

    async def write(self, batch: EntryBatch) -> int:
        keys = {e.key_id for e in batch.entries}
        if "bad" in keys:
            raise InvalidValue("value out of range")
        if "fragile" in keys and self.troubles:
            raise self.troubles.pop(0)
        return await super().write(batch)


def fed(store: MemoryLedger, folder: Path | None, *keys: str) -> LedgerWriter:
    """A writer that has begun, with a row of each key."""
    writer = LedgerWriter(store, SPEC, name="w", folder=folder)
    writer.start()
    for number, key_id in enumerate(keys):
        writer.add(entry(number, key_id))
    return writer


def test_a_row_that_the_database_refuses_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        store = Picky()
        writer = fed(store, tmp_path, *("bad" if n == 3 else "k" for n in range(10)))
        await writer.drained()
        assert sorted(store._entries) == [entry(n).entry_id for n in range(10) if n != 3]
        statistics = writer.statistics()
        assert (statistics.written, statistics.refused, statistics.known) == (9, 1, 0)
        assert store._sequences == {"w": 1}, "and leaves no trace of how it was found"
        await writer.aclose()
        assert b"e000003" in (tmp_path / "w.refused").read_bytes()

    kernel.run(main())


def test_an_outage_while_rows_are_written_singly_sets_none_aside_twice(tmp_path: Path) -> None:
    async def main() -> None:
        store = Picky(*(DatabaseUnavailable("away") for _ in range(3)))
        writer = fed(store, tmp_path, "k", "bad", "fragile")
        await writer.drained()
        statistics = writer.statistics()
        assert (statistics.written, statistics.refused, statistics.known) == (2, 1, 0)
        assert not store.troubles
        await writer.aclose()
        assert len((tmp_path / "w.refused").read_bytes().splitlines()) == 1

    kernel.run(main())


def test_a_release_that_the_database_refuses_does_not_hold_up_the_rows(tmp_path: Path) -> None:
    class NoReleases(MemoryLedger):
        async def write(self, batch: EntryBatch) -> int:
            if batch.releases:
                raise InvalidValue("value out of range")
            return await super().write(batch)

    async def main() -> None:
        store = NoReleases()
        writer = fed(store, tmp_path, "k")
        writer.release("h", "k", 2**80)
        await writer.drained()
        assert list(store._entries) == [entry(0).entry_id]
        await writer.aclose()
        assert list(tmp_path.iterdir()) == []

    kernel.run(main())


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        (
            StatementFailed("no such table: ledger_entries"),
            "database fails, rows are kept: no such",
        ),
        (RuntimeError("no such thing"), "a defect, rows are kept: RuntimeError: no such thing"),
    ],
)
def test_what_is_not_the_rows_fault_is_waited_out_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trouble: Exception, told: str
) -> None:
    async def main() -> None:
        store = Picky(*[trouble] * 5)
        writer = fed(store, tmp_path, "k", "fragile")
        writer._cut()
        await asyncio.sleep(0.01)
        assert writer.statistics().away
        assert (tmp_path / "w.spill").stat().st_size > 0, "a kill would lose nothing"
        await writer.drained()
        statistics = writer.statistics()
        assert (statistics.written, statistics.refused, statistics.away) == (2, 0, False)
        await writer.aclose()
        assert list(tmp_path.iterdir()) == []

    kernel.run(main())
    assert sum(told in r.message for r in caplog.records) == 1


def test_a_defect_in_the_housekeeping_keeps_no_row_waiting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> NoReturn:
        raise KeyError("purse")

    async def main() -> None:
        store = MemoryLedger()
        writer = LedgerWriter(store, SPEC, name="w", housekeeping=broken)
        writer.start()
        writer.add(entry(1))
        await asyncio.sleep(10)
        assert list(store._entries) == [entry(1).entry_id]
        await writer.aclose()

    kernel.run(main())
    assert sum("KeyError" in r.message for r in caplog.records) == 1


def test_a_refused_row_waits_for_a_file_that_cannot_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        in_the_way = tmp_path / "w.refused"
        in_the_way.mkdir()
        store = Picky()
        writer = fed(store, tmp_path, "bad", "k")
        await writer.drained()
        assert list(store._entries) == [entry(1).entry_id], "others do not wait for it"
        in_the_way.rmdir()
        await writer.aclose()
        assert b"e000000" in in_the_way.read_bytes()

    kernel.run(main())
    assert any('"entry_id":"e000000"' in r.message for r in caplog.records), (
        "meanwhile the log has it"
    )


def test_without_a_folder_the_log_has_what_is_refused_and_says_what_is_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        writer = fed(Picky(*[DatabaseUnavailable("away")] * 100), None, "bad", "fragile")
        await writer.aclose(limit_s=2)

    kernel.run(main())
    assert any('"entry_id":"e000000"' in r.message for r in caplog.records)
    assert "2 rows are in neither database nor file" in caplog.text
    assert "spill" not in caplog.text


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


def test_a_line_that_a_kill_cut_short_is_copied_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = SpillFile(tmp_path / "x.spill")
    file.append(batch(1, [entry(1)]))
    file.append(batch(2, [entry(2)]))
    file._file.truncate(file._end - 20)
    file._file.close()
    cut = (tmp_path / "x.spill").read_bytes().splitlines()[1]
    again = SpillFile(tmp_path / "x.spill")
    assert again.head() == batch(1, [entry(1)])
    again.pop()
    assert again.head() is None
    assert "is no batch" in caplog.text
    assert not again.close()
    assert (tmp_path / "x.corrupt").read_bytes() == cut + b"\n"
    assert [path.name for path in tmp_path.iterdir()] == ["x.corrupt"]


def spoilt(folder: Path) -> bytes:
    """A dead process's file of three batches, with a byte in the second that is no text; that line."""
    file = SpillFile(folder / "dead.spill")
    for n in (1, 2, 3):
        file.append(batch(n, [entry(n)], writer="dead"))
    file._file.close()
    lines = (folder / "dead.spill").read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"claude", b"cl\xffude")
    (folder / "dead.spill").write_bytes(b"".join(lines))
    return lines[1]


def test_a_byte_that_is_no_text_costs_its_line_and_no_other_row(tmp_path: Path) -> None:
    async def main() -> None:
        line = spoilt(tmp_path)
        store = MemoryLedger()
        writer = fed(store, tmp_path, "k")
        await writer.drained()
        writer.add(entry(9))
        await writer.aclose()
        assert list(store._entries) == [entry(n).entry_id for n in (1, 3, 0, 9)]
        assert (tmp_path / "dead.corrupt").read_bytes() == line
        assert [path.name for path in tmp_path.iterdir()] == ["dead.corrupt"]

    kernel.run(main())


def test_a_line_that_cannot_be_copied_stays_in_its_file(tmp_path: Path) -> None:
    line = spoilt(tmp_path)
    (tmp_path / "dead.corrupt").mkdir()
    backlog = Backlog(tmp_path, "w")
    read = []
    while (head := backlog.head()) is not None:
        read.append(head.sequence)
        backlog.pop()
    assert read == [1, 3]
    backlog.close()
    assert line in (tmp_path / "dead.spill").read_bytes()


def test_a_file_that_another_process_has_cut_comes_to_an_end(tmp_path: Path) -> None:
    file = SpillFile(tmp_path / "x.spill")
    file.append(batch(1, [entry(1)]))
    (tmp_path / "x.spill").write_bytes(b"")
    assert file.head() is None
    file.append(batch(2, [entry(2)]))
    assert file.head() == batch(2, [entry(2)])
    file.pop()
    assert not file.close()


def test_a_defect_at_the_close_leaves_the_last_rows_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    async def main() -> None:
        writer = fed(Picky(*[DatabaseUnavailable("away")] * 100), tmp_path, "fragile")
        monkeypatch.setattr(writer, "drained", broken)
        with pytest.raises(OSError, match="Input/output"):
            await writer.aclose()
        assert b"e000000" in (tmp_path / "w.spill").read_bytes()

    kernel.run(main())


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
    odd: list[LedgerEntry] = [
        entry(0, input_tokens=10**30),
        entry(1, "\u2028\n\"'\\"),
        entry(2, cost_nanousd=2**62),
    ]
    file.append(batch(1, odd, releases=[("h", "k", 3)], renewals=[("h", "k")]))
    assert file.head() == batch(1, odd, releases=[("h", "k", 3)], renewals=[("h", "k")])
    file.pop()
    file.close()


def test_text_that_is_not_unicode_does_not_keep_a_row_from_the_file(tmp_path: Path) -> None:
    file = SpillFile(tmp_path / "x.spill")
    file.append(batch(1, [entry(1, instance="i\udcff")]))
    assert file.head() == batch(1, [entry(1, instance="i?")])
    file.pop()
    file.close()
