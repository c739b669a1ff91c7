"""Entries and batches for tests of the ledger."""

from __future__ import annotations

from collections.abc import Sequence

from reference_impl.database.entries import NANO, EntryBatch, LedgerEntry

__all__ = ["CENT", "batch", "entry"]

CENT = NANO // 100


def entry(
    number: int, key_id: str = "k", cost_nanousd: int = CENT, **fields: object
) -> LedgerEntry:
    given = {"input_tokens": 100, "output_tokens": 10, "attempts": 1, **fields}
    return LedgerEntry(
        entry_id=f"e{number:06}",
        at_s=1_790_000_000.0 + number,
        key_id=key_id,
        model="claude-haiku-4-5",
        cost_nanousd=cost_nanousd,
        **given,  # type: ignore[arg-type]
    )


def batch(
    sequence: int,
    entries: Sequence[LedgerEntry] = (),
    *,
    writer: str = "w",
    releases: Sequence[tuple[str, str, int]] = (),
    renewals: Sequence[tuple[str, str]] = (),
) -> EntryBatch:
    return EntryBatch(writer, sequence, tuple(entries), tuple(releases), tuple(renewals))
