"""The ledger in memory: for tests, for trying out, and behind the virtual database. Lost with its process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from reference_impl.database.entries import (
    UNCOUNTED,
    EntryBatch,
    KeyBudget,
    LedgerEntry,
)
from reference_impl.database.memory_batches import MemoryBatches
from reference_impl.database.port import NOTICE_PART, Grant, Group, Spend
from reference_impl.telemetry import StationSample

__all__ = ["MemoryLedger"]

PAGE = 10_000


class MemoryLedger:
    """`LedgerStore` in dicts, on any event loop. Holds end by the loop's clock."""

    def __init__(self) -> None:
        self._entries: dict[str, LedgerEntry] = {}
        self._budgets: dict[str, KeyBudget] = {}
        self._holds: dict[tuple[str, str], _Hold] = {}
        self._sequences: dict[str, int] = {}
        self._batches = MemoryBatches(self.book)

    async def open(self) -> None:
        """Nothing to connect to."""

    async def write(self, batch: EntryBatch) -> int:
        if batch.sequence != UNCOUNTED:
            if self._sequences.get(batch.writer, 0) >= batch.sequence:
                return 0
            self._sequences[batch.writer] = batch.sequence
        new = 0
        for entry in batch.entries:
            new += self.book(entry)
        now_s = asyncio.get_running_loop().time()
        for hold, key_id, released in batch.releases:
            if (hold, key_id) in self._holds:
                self._take_off(hold, key_id, released)
        for pair in batch.renewals:
            if pair in self._holds:
                held = self._holds[pair]
                self._holds[pair] = held._replace(ends_s=now_s + held.hold_s, is_noticed=False)
        return new

    def book(self, entry: LedgerEntry) -> bool:
        """Keep an entry unless it is known, and add its cost to what its key has spent. Returns whether it was new."""
        if entry.entry_id in self._entries:
            return False
        self._entries[entry.entry_id] = entry
        self._change(entry.key_id, spent=entry.cost_nanousd)
        return True

    async def reserve(
        self, key_id: str, hold: str, need_nanousd: int, want_nanousd: int, hold_s: float
    ) -> Grant:
        budget = self._budgets.get(key_id)
        if budget is None:
            return Grant(0, budgeted=False)
        now_s = asyncio.get_running_loop().time()
        if budget.remaining_nanousd < need_nanousd:
            self._end_holds(key_id, now_s)
            budget = self._budgets[key_id]
        granted = granted_nanousd(budget.remaining_nanousd, need_nanousd, want_nanousd)
        if granted:
            self._change(key_id, held=granted)
            before = self._holds.get((hold, key_id))
            held = 0 if before is None else before.nanousd
            self._holds[hold, key_id] = _Hold(held + granted, now_s + hold_s, hold_s)
        return Grant(granted)

    async def set_budget(self, key_id: str, limit_nanousd: int | None) -> None:
        if limit_nanousd is None:
            self._budgets.pop(key_id, None)
            for pair in [pair for pair in self._holds if pair[1] == key_id]:
                del self._holds[pair]
        elif key_id in self._budgets:
            budget = self._budgets[key_id]
            self._budgets[key_id] = msgspec.structs.replace(budget, limit_nanousd=limit_nanousd)
        else:
            spent = sum(e.cost_nanousd for e in self._entries.values() if e.key_id == key_id)
            self._budgets[key_id] = KeyBudget(key_id, limit_nanousd, spent)

    async def budgets(self) -> list[KeyBudget]:
        return [self._budgets[key_id] for key_id in sorted(self._budgets)]

    def batches(self) -> MemoryBatches:
        return self._batches

    def entry(self, entry_id: str) -> LedgerEntry | None:
        """The entry of that id, at once."""
        return self._entries.get(entry_id)

    async def spend(self, group: Group, *, since_s: float = 0.0) -> list[Spend]:
        groups: dict[str, list[LedgerEntry]] = defaultdict(list)
        for entry in self._entries.values():
            if entry.at_s >= since_s:
                groups[_group_of(entry, group)].append(entry)
        return [_sum(name, groups[name]) for name in sorted(groups)]

    async def entries(self, *, since_s: float = 0.0) -> AsyncIterator[list[LedgerEntry]]:
        chosen = sorted(
            (e for e in self._entries.values() if e.at_s >= since_s), key=lambda e: e.entry_id
        )
        for start in range(0, len(chosen), PAGE):
            yield chosen[start : start + PAGE]

    def samples(self, *, origin_s: float = 0.0) -> list[StationSample]:  # noqa: ARG002 - no pool
        return []

    async def aclose(self) -> None:
        """What was kept stays readable: it is only memory."""

    def _change(self, key_id: str, *, spent: int = 0, held: int = 0) -> None:
        budget = self._budgets.get(key_id)
        if budget is not None:
            self._budgets[key_id] = msgspec.structs.replace(
                budget,
                spent_nanousd=budget.spent_nanousd + spent,
                held_nanousd=budget.held_nanousd + held,
            )

    def _take_off(self, hold: str, key_id: str, released: int) -> None:
        held = self._holds[hold, key_id]
        taken = min(held.nanousd, released)
        self._change(key_id, held=-taken)
        if taken == held.nanousd:
            del self._holds[hold, key_id]
        else:
            self._holds[hold, key_id] = held._replace(nanousd=held.nanousd - taken)

    def _end_holds(self, key_id: str, now_s: float) -> None:
        for pair, held in list(self._holds.items()):
            if pair[1] != key_id or held.ends_s > now_s:
                continue
            if held.is_noticed:
                del self._holds[pair]
                self._change(key_id, held=-held.nanousd)
            else:
                ends_s = now_s + held.hold_s / NOTICE_PART
                self._holds[pair] = held._replace(ends_s=ends_s, is_noticed=True)


class _Hold(NamedTuple):
    """Money that a process holds of a key, until when, for how long a renewal is good, and whether its end was given notice of."""

    nanousd: int
    ends_s: float
    hold_s: float
    is_noticed: bool = False


def granted_nanousd(remaining: int, need: int, want: int) -> int:
    """How much of `remaining` a reservation gets; see `LedgerStore.reserve`. The databases say the same in SQL."""
    if remaining >= 4 * max(want, need):
        return max(want, need)
    return need if remaining >= need else 0


def _group_of(entry: LedgerEntry, group: Group) -> str:
    match group:
        case "key":
            return entry.key_id
        case "model":
            return entry.model
        case "outcome":
            return entry.outcome
        case "day":
            return datetime.fromtimestamp(entry.at_s, UTC).date().isoformat()


def _sum(group: str, entries: list[LedgerEntry]) -> Spend:
    return Spend(
        group=group,
        requests=len(entries),
        input_tokens=sum(e.input_tokens for e in entries),
        cached_tokens=sum(e.cached_tokens for e in entries),
        output_tokens=sum(e.output_tokens for e in entries),
        cost_nanousd=sum(e.cost_nanousd for e in entries),
        saved_nanousd=sum(e.saved_nanousd for e in entries),
        cache_hits=sum(e.cache not in ("off", "miss") for e in entries),
        retries=sum(max(0, e.attempts - 1) for e in entries),
        wasted_nanousd=sum(e.cost_nanousd for e in entries if e.outcome != "ok"),
    )
