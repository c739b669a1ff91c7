"""The rows of the ledger, and money as whole numbers.

Money is counted in nano-dollars (1e-9 $) in integers of 64 bits: sums are exact and do not depend on their order, and one
cached token of the cheapest model (1e-8 $) is still ten of them.
"""

from __future__ import annotations

import json
from typing import Final

import msgspec

__all__ = [
    "ENTRY_FIELDS",
    "UNCOUNTED",
    "EntryBatch",
    "KeyBudget",
    "LedgerEntry",
    "encoded",
    "from_nanousd",
    "to_nanousd",
]

NANO: Final = 1_000_000_000
UNCOUNTED: Final = 0


def to_nanousd(usd: float) -> int:
    """US dollars as nano-dollars, rounded to the nearest."""
    return round(usd * NANO)


def from_nanousd(nanousd: int) -> float:
    return nanousd / NANO


class LedgerEntry(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, as money sees it.

    Attributes:
        entry_id: idempotency key; an entry that is written again is ignored.
        at_s: when it ended, in Unix time (virtual: seconds of the simulation).
        key_id: whose budget pays; the tenant of the API key.
        model, kind: which model; `messages` or `batch`.
        outcome, cache: as in `RequestRecord`.
        attempts: upstream calls made; those beyond the first are waste.
        input_tokens: billed at the full price; cached_tokens: read from or written to the provider's prompt cache.
        output_tokens: generated.
        cost_nanousd: what it cost. saved_nanousd: what it would have cost without our cache.
        latency_s: from the gateway's first byte in to its last out.
        instance: the instance that answered.
    """

    entry_id: str
    at_s: float
    key_id: str = ""
    model: str = ""
    kind: str = "messages"
    outcome: str = "ok"
    cache: str = "off"
    attempts: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    saved_nanousd: int = 0
    latency_s: float = 0.0
    instance: str = ""


# The columns of the table, in the order of the struct: stores read and write rows by position.
ENTRY_FIELDS: Final[tuple[str, ...]] = LedgerEntry.__struct_fields__


class EntryBatch(msgspec.Struct, frozen=True):
    """What a writer hands to a store at once, and what its spill file holds, one a line.

    Attributes:
        writer: which writer; sequence: counts its batches up from 1. A store applies a (writer, sequence) once, and
            therefore must be given a writer's batches in order. UNCOUNTED is applied whenever it is given, and remembered
            nowhere: for entries alone, whose ids keep them from being booked twice.
        entries: the rows.
        releases: by (hold, key): nano-dollars that are no longer held.
        renewals: (hold, key) pairs that are still in use.
    """

    writer: str
    sequence: int
    entries: tuple[LedgerEntry, ...] = ()
    releases: tuple[tuple[str, str, int], ...] = ()
    renewals: tuple[tuple[str, str], ...] = ()


class KeyBudget(msgspec.Struct, frozen=True):
    """A key's money in nano-dollars: `limit`, what was `spent`, and what processes hold for requests under way."""

    key_id: str
    limit_nanousd: int
    spent_nanousd: int = 0
    held_nanousd: int = 0

    @property
    def remaining_nanousd(self) -> int:
        return self.limit_nanousd - self.spent_nanousd - self.held_nanousd


_encode = msgspec.json.Encoder().encode


def encoded(value: EntryBatch | LedgerEntry) -> bytes:
    """`value` as a line of JSON. Text that is not Unicode has `?` where it is not: the row matters more."""
    try:
        return _encode(value) + b"\n"
    except UnicodeEncodeError:
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
        return text.encode(errors="replace") + b"\n"
