"""LedgerWriter: rows come in one by one, go out in batches, and are not lost when the database is.

Requests never wait for it: `add` is a list append. What has come in is cut into a batch every half `flush_s`; a batch that the
database has not taken by the next cut goes to the spill file. So a kill costs at most the rows of the last `flush_s`, whether
the database is there, away or hanging, and memory is bounded all the while. When the database is back the batches are
written in order, each once.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from reference_impl.database.backlog import Backlog, size_bytes
from reference_impl.database.entries import EntryBatch, LedgerEntry
from reference_impl.database.errors import (
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    InvalidValue,
    summary,
)
from reference_impl.database.port import LedgerStore
from reference_impl.database.sieve import Sieve
from reference_impl.deployment import DatabaseSpec
from reference_impl.telemetry import SystemEvent

__all__ = ["Housekeeping", "LedgerWriter", "WriterStatistics"]

log = logging.getLogger("twinload.ledger")

BACKOFF_S: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
CLOSE_S: Final = 5.0

_State = Literal["back", "away", "refuses", "fails", "defect"]

# Called at every cut: more releases, and the (hold, key) pairs to renew.
Housekeeping = Callable[[], tuple[list[tuple[str, str, int]], list[tuple[str, str]]]]


class WriterStatistics(msgspec.Struct, frozen=True):
    """Rows since the start: `added` = `written` + `known` + `refused` + those that wait.

    `known` were in the ledger already; `refused` are set aside for a value (see `Sieve`). `in_memory` rows wait there, `spilled` counts rows
    that ever went to the spill file. `away`: the last attempt to write failed.
    """

    added: int
    written: int
    known: int
    refused: int
    in_memory: int
    spilled: int
    batches: int
    away: bool


class LedgerWriter:
    """Writes entries and releases of held money to a store, in batches.

    Args:
        store: where batches go; it is the caller's.
        spec: `flush_s` and the bounds.
        name: unique to this process and start; names the writer and its spill file.
        folder: of spill files; those that dead processes left there are written too. None: memory only.
        on_event: told when the database goes and comes (kind `ledger`).
        housekeeping: see `Housekeeping`.
    """

    def __init__(
        self,
        store: LedgerStore,
        spec: DatabaseSpec,
        *,
        name: str,
        folder: Path | None = None,
        on_event: Callable[[SystemEvent], None] | None = None,
        housekeeping: Housekeeping | None = None,
    ) -> None:
        self._store = store
        self._spec = spec
        self._name = name
        self._on_event = on_event
        self._housekeeping = housekeeping
        self._backlog = Backlog(folder, name)
        self._sieve = Sieve(store, None if folder is None else folder / f"{name}.refused")
        self._pending: list[LedgerEntry] = []
        self._pending_bytes = 0
        self._releases: dict[tuple[str, str], int] = defaultdict(int)
        self._sequence = 0
        self._work = asyncio.Event()
        self._drained = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._state: _State = "back"
        self._last_defect = ""
        self._added = self._written = self._known = self._refused = self._batches = 0

    def start(
        self,
        opening: Callable[[], Awaitable[None]] | None = None,
        *,
        away: DatabaseError | None = None,
    ) -> None:
        """Begin to write, first of all what dead processes left.

        `opening`: what must succeed before; tried again, as writing is. `away`: why it did not yet.
        """
        if away is not None:
            self._note(away)
        self._tasks = [
            asyncio.create_task(self._cut_regularly(), name="background:ledger cutter"),
            asyncio.create_task(self._send(opening), name="background:ledger sender"),
        ]

    def add(self, entry: LedgerEntry) -> None:
        """Take a row. Never waits and never fails."""
        self._pending.append(entry)
        self._added += 1
        self._pending_bytes += size_bytes(entry)
        spec = self._spec
        if len(self._pending) >= spec.batch_rows or self._pending_bytes >= spec.max_bytes // 4:
            self._cut(house=False)

    def release(self, hold: str, key_id: str, nanousd: int) -> None:
        """Give back held money, in the same batch as the rows added before it."""
        self._releases[hold, key_id] += nanousd

    @property
    def overflowing(self) -> bool:
        """Neither database nor disk takes rows and memory holds four times what it should."""
        return len(self._pending) + self._backlog.memory_rows > 4 * self._spec.max_rows

    async def drained(self) -> None:
        """Cut now, and return when all that was added so far is in the database."""
        self._cut()
        if self._backlog:
            self._drained.clear()
            self._work.set()
            await self._drained.wait()

    async def aclose(self, limit_s: float = CLOSE_S) -> None:
        """Write what there is, for at most `limit_s`; what is left goes to the spill file."""
        late = False
        try:
            if self._tasks:
                async with asyncio.timeout(limit_s):
                    await self.drained()
        except TimeoutError:
            late = True
        finally:
            try:
                await self.abandon()
            finally:
                self._close_files(late)

    async def abandon(self) -> None:
        """Write nothing more, as a killed process."""
        for task in self._tasks:
            task.cancel()
        for ended in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                self._tell_defect(ended)
        self._tasks = []

    def statistics(self) -> WriterStatistics:
        return WriterStatistics(
            added=self._added,
            written=self._written,
            known=self._known,
            refused=self._refused,
            in_memory=len(self._pending) + self._backlog.memory_rows,
            spilled=self._backlog.spilled_rows,
            batches=self._batches,
            away=self._state != "back",
        )

    async def _cut_regularly(self) -> None:
        loop = asyncio.get_running_loop()
        half_s = self._spec.flush_s / 2
        next_s = loop.time()
        while True:
            next_s = max(next_s + half_s, loop.time())
            await asyncio.sleep(next_s - loop.time())
            # What the last cut handed over and is not yet written has had its chance: from now on it must survive.
            self._persist()
            self._cut()
            if self._state != "back":
                self._persist()

    def _cut(self, *, house: bool = True) -> None:
        """Make a batch of what came in, and hand it over."""
        renewals: list[tuple[str, str]] = []
        if house and self._housekeeping is not None:
            try:
                idle, renewals = self._housekeeping()
                for hold, key_id, nanousd in idle:
                    self._releases[hold, key_id] += nanousd
            except Exception as error:  # noqa: BLE001 - told; rows must not wait for it
                self._tell_defect(error)
        if not (self._pending or self._releases or renewals):
            return
        self._sequence += 1
        releases = tuple((hold, key, amount) for (hold, key), amount in self._releases.items())
        self._backlog.append(
            EntryBatch(self._name, self._sequence, tuple(self._pending), releases, tuple(renewals))
        )
        self._pending = []
        self._pending_bytes = 0
        self._releases.clear()
        if self._backlog.memory_rows > self._spec.max_rows:
            self._persist()
        self._work.set()

    def _persist(self) -> None:
        """Bring to disk what waits, as far as the disk takes it."""
        try:
            self._backlog.persist()
            self._sieve.save()
        except Exception as error:  # noqa: BLE001 - told; what waits stays in memory
            self._tell_defect(error)

    def _close_files(self, late: bool) -> None:
        self._cut()
        self._sieve.save()
        kept = self._backlog.close()
        if late and kept:
            files = ", ".join(map(str, kept))
            log.warning("ledger: the database has not taken the last rows; they are in %s", files)
        if self._backlog.memory_rows:
            log.error(
                "ledger: %d rows are in neither database nor file, and end with this process",
                self._backlog.memory_rows,
            )

    async def _send(self, opening: Callable[[], Awaitable[None]] | None) -> None:
        """Open, then write batch after batch. Whatever goes wrong, batches wait and are tried again: this never ends by itself."""
        failures = 0
        while True:
            try:
                if opening is not None:
                    await opening()
                    opening = None
                    self._note(None)
                batch = self._backlog.head()
                if batch is None:
                    self._drained.set()
                    self._work.clear()
                    await self._work.wait()
                    continue
                new, refused = await self._write(batch)
                self._backlog.pop()
            except Exception as error:  # noqa: BLE001 - told; a sender that ends would take all later rows with it
                self._note(error)
                self._persist()
                await asyncio.sleep(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1
                continue
            failures = 0
            self._batches += 1
            self._written += new
            self._refused += refused
            self._known += len(batch.entries) - new - refused
            self._note(None)

    async def _write(self, batch: EntryBatch) -> tuple[int, int]:
        """How many rows of `batch` were new, and how many are refused for themselves."""
        if not self._sieve.has_begun(batch):
            try:
                return await self._store.write(batch), 0
            except InvalidValue as error:
                log.error("ledger: a batch is written row by row: %s", summary(error))
        return await self._sieve.write(batch)

    def _note(self, error: Exception | None) -> None:
        """Tell of changes, not of every attempt."""
        before, self._state = self._state, _state_of(error)
        if error is None:
            if before != "back":
                log.warning("ledger: the database is back")
        elif self._state == "defect":
            self._tell_defect(error)
        elif self._state != before:
            # Away at first and then found to be wrong (a password, a schema): somebody must act, so it is told as well.
            if self._state != "away":
                log.error("ledger: the database %s, rows are kept: %s", self._state, summary(error))
            elif before == "back":
                log.warning("ledger: the database is away, rows are kept: %s", summary(error))
        if self._on_event is not None and (before == "back") != (self._state == "back"):
            self._on_event(
                SystemEvent(
                    t_s=asyncio.get_running_loop().time(),
                    kind="ledger",
                    subject="database",
                    detail={"state": "back" if error is None else "away"},
                )
            )

    def _tell_defect(self, error: Exception) -> None:
        """An exception that nobody foresaw: tell where it comes from, once while it repeats."""
        what = f"{type(error).__name__}: {summary(error)}"
        if what != self._last_defect:
            # Not the traceback as Python prints it: that has the message once more, with whatever password is in it.
            trace = "".join(traceback.format_tb(error.__traceback__))
            log.error("ledger: a defect, rows are kept: %s\n%s", what, trace)
        self._last_defect = what


def _state_of(error: Exception | None) -> _State:
    match error:
        case None:
            return "back"
        case DatabaseUnavailable():
            return "away"
        case DatabaseRefused():
            return "refuses"
        case DatabaseError():
            return "fails"
        case _:
            return "defect"
