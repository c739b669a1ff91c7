"""The port to the ledger. Adapters: `postgres_store`, `sqlite_store`, `memory_store`; virtual: `simulation.models.database`.

A store keeps entries, budgets, keys and batches, and applies every change at most once, however often it is asked. It raises
errors of `errors.py` only. What an outage means for requests is decided above it, in `writer.py` and `budgets.py`, once for
all stores.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, Literal, Protocol

import msgspec

from reference_impl.batches.port import BatchStore
from reference_impl.database.entries import (
    EntryBatch,
    KeyBudget,
    LedgerEntry,
)
from reference_impl.telemetry import StationSample

__all__ = [
    "GROUPS",
    "NOTICE_PART",
    "Grant",
    "Group",
    "LedgerReader",
    "LedgerStore",
    "Spend",
]

Group = Literal["key", "model", "day", "outcome"]
GROUPS: tuple[Group, ...] = ("key", "model", "day", "outcome")
# The notice of a hold is this part of its `hold_s`.
NOTICE_PART: Final = 6


class Grant(msgspec.Struct, frozen=True):
    """Answer to a reservation: `nanousd` are now held (0: refused); `budgeted` is False for a key without a limit."""

    nanousd: int
    budgeted: bool = True


class Spend(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the aggregates; see `aggregates.py`.

    `group` is the key, model, day (UTC, `2026-11-23`) or outcome. `wasted_nanousd` is the cost of requests that did not
    end `ok`; `retries` are attempts beyond a request's first.
    """

    group: str
    requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_nanousd: int = 0
    saved_nanousd: int = 0
    cache_hits: int = 0
    retries: int = 0
    wasted_nanousd: int = 0


class LedgerReader(Protocol):
    """What is kept, for who only looks. Money in nano-dollars, times in seconds."""

    async def open(self) -> None:
        """Connect. Raises DatabaseUnavailable where a later attempt may succeed, else another DatabaseError."""
        ...

    async def spend(self, group: Group, *, since_s: float = 0.0) -> list[Spend]:
        """Sums over entries from `since_s` on, by group; in order of the group."""
        ...

    def entries(self, *, since_s: float = 0.0) -> AsyncIterator[list[LedgerEntry]]:
        """The entries from `since_s` on, in order of id, in pages."""
        ...

    async def aclose(self) -> None:
        """Release connections; it is not used afterwards."""
        ...


class LedgerStore(LedgerReader, Protocol):
    """Where the ledger is kept."""

    async def open(self) -> None:
        """Connect and migrate the schema; nothing where that is done.

        Raises DatabaseUnavailable where a later attempt may succeed, else another DatabaseError (DatabaseRefused, SchemaTooNew).
        """
        ...

    async def write(self, batch: EntryBatch) -> int:
        """Apply a batch whole or not at all; returns how many of its entries were new.

        A batch that was applied before changes nothing; neither does an entry whose id is known. New entries' costs are
        added to what their keys have spent, releases are taken off their holds, renewed holds live on. A hold that holds
        nothing any more is forgotten.
        """
        ...

    async def reserve(
        self, key_id: str, hold: str, need_nanousd: int, want_nanousd: int, hold_s: float
    ) -> Grant:
        """Hold money of a key: `want` while four times that is left, else `need` if that is left, else nothing.

        Atomic over all processes: what is spent and held never exceeds the limit. The money goes to the hold named `hold`.
        One that was neither renewed nor reserved for in `hold_s` is given notice by a reservation that lacks its money, and
        ends with one that still lacks it a sixth of `hold_s` later: so does what a killed process held. The notice is for the
        living: when the database was away, what they spent meanwhile is booked, and what they hold renewed, before it ends.
        """
        ...

    async def set_budget(self, key_id: str, limit_nanousd: int | None) -> None:
        """Limit what a key may spend in all; None lifts the limit. What was spent so far counts."""
        ...

    async def budgets(self) -> list[KeyBudget]:
        """Every key with a limit, by key id."""
        ...

    def batches(self) -> BatchStore:
        """Batches and their results, in the same database: what a result costs is booked in its transaction."""
        ...

    def samples(self, *, origin_s: float = 0.0) -> list[StationSample]:
        """The connection pool as a station since the last call; nothing where there is none, or none is open."""
        ...
