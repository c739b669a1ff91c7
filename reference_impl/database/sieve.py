"""A row that the database will never take must not stop all others: it is found, and set aside in a file.

A batch that is refused for its values is written row by row. Where an outage interrupts that, it goes on with the row at which
it stopped, so a row is set aside once, however long the database is away.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from reference_impl.database.backlog import append_line
from reference_impl.database.entries import UNCOUNTED, EntryBatch, LedgerEntry, encoded
from reference_impl.database.errors import InvalidValue, summary
from reference_impl.database.port import LedgerStore

__all__ = ["Sieve"]

log = logging.getLogger("twinload.ledger")


class Sieve:
    """Writes refused batches to `store`, one at a time.

    Args:
        store: where rows go.
        path: the file of rows that are set aside; None: they are told whole in the log, which then is all that has them.
    """

    def __init__(self, store: LedgerStore, path: Path | None) -> None:
        self._store = store
        self._path = path
        self._under_way: tuple[str, int] | None = None
        self._row = self._new = self._refused = 0
        self._unsaved: list[bytes] = []
        self._complained = False

    def has_begun(self, batch: EntryBatch) -> bool:
        """Whether `batch` is the one under way."""
        return self._under_way == (batch.writer, batch.sequence)

    async def write(self, batch: EntryBatch) -> tuple[int, int]:
        """Write what can be written of `batch`, from where the last attempt ended; how many rows were new, and how many refused.

        Raises the DatabaseError of anything but a value: then `batch` is to be given again.
        """
        if not self.has_begun(batch):
            self._under_way = (batch.writer, batch.sequence)
            self._row = self._new = self._refused = 0
        while self._row < len(batch.entries):
            entry = batch.entries[self._row]
            try:
                self._new += await self._store.write(EntryBatch(batch.writer, UNCOUNTED, (entry,)))
            except InvalidValue as error:
                self._refused += 1
                self._set_aside(entry, error)
            self._row += 1
        try:
            await self._store.write(msgspec.structs.replace(batch, entries=()))
        except InvalidValue as error:
            log.error("ledger: holds are not released, they end by themselves: %s", summary(error))
            await self._store.write(EntryBatch(batch.writer, batch.sequence))
        self._under_way = None
        return self._new, self._refused

    def save(self) -> None:
        """Write to the file what it has not taken so far."""
        if self._path is None:
            return
        try:
            while self._unsaved:
                append_line(self._path, self._unsaved[0])
                del self._unsaved[0]
        except OSError as error:
            if not self._complained:
                log.error(
                    "%s: %s; %d refused rows stay in memory until it can be written",
                    self._path,
                    error.strerror,
                    len(self._unsaved),
                )
            self._complained = True
        else:
            self._complained = False

    def _set_aside(self, entry: LedgerEntry, error: InvalidValue) -> None:
        line = encoded(entry)
        self._unsaved.append(line)
        self.save()
        if self._unsaved:
            row = line.decode().rstrip()
            log.error("ledger: refused (%s), in no file: %s", summary(error), row)
        else:
            row = entry.entry_id
            log.error("ledger: %r refused, kept in %s: %s", row, self._path, summary(error))
        if self._path is None:
            self._unsaved.clear()
