"""What the ledger's database knows of the batches of a finished run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from reference_impl.batches.port import RequestProgress
from reference_impl.batches.records import BATCH
from reference_impl.database.connect import DSN_VARIABLE, ledger_of
from reference_impl.database.entries import LedgerEntry
from reference_impl.deployment import DatabaseSpec

__all__ = ["StoredBatches", "stored_batches"]

_PAGE: Final = 5000


class StoredBatches(msgspec.Struct, frozen=True):
    """Requests of batches, by batch id and index; rows of the ledger by their id. Instants are Unix seconds."""

    progress: dict[str, list[RequestProgress]] = {}
    entries: dict[str, LedgerEntry] = {}


def stored_batches(spec: DatabaseSpec, folder: Path, batch_ids: Sequence[str]) -> StoredBatches:
    """Read the ledger that the gateway of that run folder kept. Raises a DatabaseError."""
    return asyncio.run(_read(spec, folder, batch_ids))


async def _read(spec: DatabaseSpec, folder: Path, batch_ids: Sequence[str]) -> StoredBatches:
    store = ledger_of(spec, os.environ.get(DSN_VARIABLE, ""), folder)
    assert store is not None, "DeploymentSpec asks for a ledger where there is a queue"
    await store.open()
    try:
        progress: dict[str, list[RequestProgress]] = {}
        for batch_id in batch_ids:
            rows = progress[batch_id] = []
            while page := await store.batches().progress(batch_id, len(rows) - 1, _PAGE):
                rows += page
        wanted = set(batch_ids)
        entries = {
            entry.entry_id: entry
            async for page in store.entries()
            for entry in page
            if entry.kind == BATCH and entry.entry_id.rpartition("/")[0] in wanted
        }
        return StoredBatches(progress, entries)
    finally:
        await store.aclose()
