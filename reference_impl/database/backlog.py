"""Batches that wait to be written: in memory first, in a file when they must survive this process.

A spill file holds one batch a line, in order. It is locked by the process that writes it, so a process that starts can tell
the files of the dead from those of the living, and adopts the former. Appending goes to the operating system at once and is
not synced: it survives any end of the process, not a power cut of the machine. Replaying a batch that was written already
changes nothing (see `LedgerStore.write`), so a file needs no record of how far its reader came. A line that is no batch (a kill
cut it short, a disk spoilt it) is copied to `NAME.corrupt` and passed over.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import deque
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import msgspec

from reference_impl.database.entries import EntryBatch, LedgerEntry, encoded

__all__ = ["ENTRY_BYTES", "Backlog", "SpillFile", "append_line", "size_bytes"]

log = logging.getLogger("twinload.ledger")

ENTRY_BYTES = (
    400  # an entry in memory, without its texts (measured with sys.getsizeof over its fields)
)
_decode = msgspec.json.Decoder(EntryBatch).decode


def size_bytes(entry: LedgerEntry) -> int:
    """About what an entry takes in memory."""
    return ENTRY_BYTES + len(entry.entry_id) + len(entry.key_id) + len(entry.model)


def append_line(path: Path, line: bytes) -> None:
    """Add `line` to the file at `path`, whole or not at all. Raises OSError."""
    with path.open("ab", buffering=0) as file:
        _append(file, line, file.seek(0, os.SEEK_END))


def _append(file: FileIO, line: bytes, end: int) -> None:
    """Add `line` to a file that is `end` bytes long, whole or not at all."""
    try:
        written = 0
        while written < len(line):
            written += file.write(line[written:])
    except OSError:
        file.truncate(end)
        raise


class SpillFile:
    """A first-in-first-out queue of batches in one file. Raises BlockingIOError where another process uses the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise
        self._read_at = 0
        self._end = self._file.seek(0, os.SEEK_END)
        self._head: tuple[EntryBatch, int] | None = None
        self._keeps = False  # it holds a line that is nowhere else

    def append(self, batch: EntryBatch) -> None:
        """Write `batch` at the end, whole or not at all. Raises OSError (a full disk)."""
        line = encoded(batch)
        _append(self._file, line, self._end)
        self._end += len(line)

    def head(self) -> EntryBatch | None:
        """The oldest batch; None when there is none. A line that cannot be read is copied, told of and passed over."""
        while self._head is None and self._read_at < self._end:
            self._file.seek(self._read_at)
            line = self._line()
            if not line:
                log.error("%s: shorter than it was; another process has cut it", self.path)
                self._end = self._read_at = self._file.seek(0, os.SEEK_END)
                break
            try:
                self._head = _decode(line), len(line)
            except (ValueError, RecursionError) as error:  # msgspec's errors and Unicode's are both
                self._copy(line, error)
                self._read_at += len(line)
        return None if self._head is None else self._head[0]

    def pop(self) -> None:
        """Take the head off. An emptied file is cut to nothing."""
        assert self._head is not None
        self._read_at += self._head[1]
        self._head = None
        if self._read_at >= self._end and not self._keeps:
            self._file.truncate(0)
            self._read_at = self._end = 0

    def close(self) -> bool:
        """Let go of the file; it is removed if nothing waits in it. Returns whether it remains."""
        try:
            remains = self.head() is not None or self._keeps
            if not remains:
                self.path.unlink(missing_ok=True)
            return remains
        finally:
            self._file.close()

    def _copy(self, line: bytes, error: Exception) -> None:
        corrupt = self.path.with_suffix(".corrupt")
        what = f"{self.path}: a line of {len(line)} bytes is no batch ({error})"
        try:
            append_line(corrupt, line if line.endswith(b"\n") else line + b"\n")
        except OSError as trouble:
            self._keeps = True
            log.error("%s; %s: %s, so it stays where it is", what, corrupt, trouble.strerror)
        else:
            log.error("%s; it is copied to %s", what, corrupt)

    def _line(self) -> bytes:
        parts = []
        while block := self._file.read(min(1 << 20, self._end - self._file.tell())):
            end = block.find(b"\n") + 1
            if end:
                parts.append(block[:end])
                break
            parts.append(block)
        return b"".join(parts)


class Backlog:
    """First in, first out: what files of the dead hold, then the own file, then memory.

    Args:
        folder: of the spill files; None keeps everything in memory.
        name: of the own file, `NAME.spill`; unique to this process.
    """

    def __init__(self, folder: Path | None, name: str) -> None:
        self._adopted: deque[SpillFile] = deque()
        self._own: SpillFile | None = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._adopted.extend(_orphans(folder))
            self._own = SpillFile(folder / f"{name}.spill")
        self._memory: deque[EntryBatch] = deque()
        self._complained = False
        self.memory_rows = 0
        self.spilled_rows = 0

    def __bool__(self) -> bool:
        return self.head() is not None

    def append(self, batch: EntryBatch) -> None:
        """Keep `batch` in memory, behind all others."""
        self._memory.append(batch)
        self.memory_rows += len(batch.entries)

    def persist(self) -> None:
        """Move what is in memory to the own file, as far as the disk takes it; the rest stays in memory."""
        if self._own is None:
            return
        try:
            while self._memory:
                self._own.append(self._memory[0])
                rows = len(self._memory.popleft().entries)
                self.memory_rows -= rows
                self.spilled_rows += rows
        except OSError as error:
            if not self._complained:
                log.error(
                    "%s: %s; %d rows stay in memory until the disk or the database takes them",
                    self._own.path,
                    error.strerror,
                    self.memory_rows,
                )
            self._complained = True
        else:
            self._complained = False

    def head(self) -> EntryBatch | None:
        """The oldest batch, or None."""
        while self._adopted:
            batch = self._adopted[0].head()
            if batch is not None:
                return batch
            self._adopted.popleft().close()
        batch = None if self._own is None else self._own.head()
        if batch is not None:
            return batch
        return self._memory[0] if self._memory else None

    def pop(self) -> None:
        """Take off what `head` gave last, wherever it is by now."""
        if self._adopted:
            self._adopted[0].pop()
        elif self._own is not None and self._own.head() is not None:
            self._own.pop()
        else:
            self.memory_rows -= len(self._memory.popleft().entries)

    def close(self) -> list[Path]:
        """Save what is left, and let go of the files; those that something waits in."""
        self.persist()
        files = (*self._adopted, self._own)
        return [file.path for file in files if file is not None and file.close()]


def _orphans(folder: Path) -> Iterator[SpillFile]:
    """The spill files that no living process holds, oldest name first."""
    for path in sorted(folder.glob("*.spill")):
        try:
            yield SpillFile(path)
        except BlockingIOError:
            continue  # its writer lives
