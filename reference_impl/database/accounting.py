"""What the gateway does about money: reserve before a request is forwarded, settle after, one row for every request.

Answers from the cache cost nothing and reserve nothing. A stream that its client leaves, or that breaks, is booked by what
was delivered, because the provider bills that too; what was reserved beyond goes back.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping

from reference_impl.database.budgets import Budgets, Reservation
from reference_impl.database.entries import LedgerEntry, to_nanousd
from reference_impl.database.errors import DatabaseUnavailable
from reference_impl.database.port import LedgerStore
from reference_impl.database.writer import LedgerWriter, WriterStatistics
from reference_impl.errors import Rejected, ServiceError
from reference_impl.messages import Call, Chunk, Completion, Emit, Usage
from reference_impl.prices import PriceTable
from reference_impl.sane_text import sane_text
from reference_impl.telemetry.records import Outcome

__all__ = ["Accounting", "most_nanousd"]

Complete = Callable[[Call, Emit | None], Awaitable[Completion]]

_DELTA = b"event: content_block_delta"
# A reservation assumes at least one token in so many bytes of a body, whatever a client says: English text has four.
BYTES_PER_TOKEN = 3


class Accounting:
    """The ledger and the budgets of one gateway.

    Args:
        store: belongs to it from here on.
        writer, budgets: over that store.
        prices: what answers cost. A model that they do not list costs nothing.
        source: unique to this gateway's start; the ids of entries begin with it.
        wall_clock: Unix time in seconds.
    """

    def __init__(
        self,
        store: LedgerStore,
        writer: LedgerWriter,
        budgets: Budgets,
        prices: PriceTable,
        *,
        source: str,
        wall_clock: Callable[[], float],
    ) -> None:
        self.store = store
        self.writer = writer
        self.budgets = budgets
        self._prices = prices
        self._source = source
        self._wall_clock = wall_clock
        self._time = asyncio.get_running_loop().time
        self._numbers = itertools.count()
        # Requests whose row is not yet written, by the identity of their call, which lives as long as they do.
        self._open: dict[int, _Charge] = {}

    async def recorded(self, call: Call, emit: Emit | None, complete: Complete) -> Completion:
        """`complete(call, emit)`, with a row of the ledger however it ends."""
        charge = self._open[id(call)] = _Charge(call, next(self._numbers), self._time())
        usage = Usage()
        try:
            completion = await complete(call, emit)
            charge.outcome, usage = "ok", completion.usage
            return completion
        except ServiceError as error:
            charge.outcome = error.outcome
            raise
        except Exception:
            charge.outcome = "server_error"
            raise
        finally:
            del self._open[id(call)]
            if not charge.paid:
                charge.usage = usage
            self._close(charge)

    async def forwarded(self, call: Call, emit: Emit | None, forward: Complete) -> Completion:
        """`forward(call, emit)` inside `recorded` of the same call, with money reserved. Raises BudgetExceeded, Rejected."""
        charge = self._open[id(call)]
        if self.writer.overflowing:
            raise Rejected("the ledger cannot be kept: neither database nor disk takes rows")
        asked_s = self._time()
        try:
            charge.reservation = await self.budgets.reserve(
                call.tenant, most_nanousd(self._prices, call)
            )
        finally:
            call.trace.database_s += self._time() - asked_s
        try:
            completion = await forward(call, emit if emit is None else charge.counting(emit))
            charge.usage = completion.usage
            return completion
        except BaseException:
            if charge.delivered:
                charge.usage = Usage(call.input_tokens, charge.delivered)
            raise
        finally:
            charge.paid = True

    async def start(self, budgets_usd: Mapping[str, float | None]) -> None:
        """Open the store, set the budgets (None lifts a key's limit; keys that are not named keep theirs), begin to write.

        A database that is away does not keep the gateway from starting: requests are accounted for as in an outage, and the
        writer opens the store and sets the budgets when it answers. Raises the DatabaseError of one that will not do: a wrong
        DSN or password, a server too old, a schema too new.
        """

        async def opened() -> None:
            await self.store.open()
            for key_id, limit_usd in budgets_usd.items():
                limit_nanousd = None if limit_usd is None else to_nanousd(limit_usd)
                await self.store.set_budget(key_id, limit_nanousd)
            self.budgets.resume()

        try:
            await opened()
        except DatabaseUnavailable as error:
            self.budgets.suspend()
            self.writer.start(opened, away=error)
        else:
            self.writer.start()

    async def aclose(self) -> None:
        """Write what there is, or keep it in the spill file; give back what was reserved; close the store."""
        self.budgets.give_back()
        await self.writer.aclose()
        await self.store.aclose()

    async def abandon(self) -> None:
        """Stop without a word, as a killed process: what was not written is lost, what was reserved ends by itself."""
        await self.writer.abandon()

    def statistics(self) -> WriterStatistics:
        return self.writer.statistics()

    def _close(self, charge: _Charge) -> None:
        """Write the row and settle the reservation: both travel in the same batch."""
        call, usage, trace = charge.call, charge.usage, charge.call.trace
        price_usd = self._prices.price_usd(call.model, usage)
        price_nanousd = to_nanousd(price_usd)
        cost_nanousd = price_nanousd if charge.paid else 0
        if (
            charge.paid and trace.cost_usd == 0.0
        ):  # live, the processor's trace is another process's
            trace.cost_usd = price_usd
        self.writer.add(
            LedgerEntry(
                entry_id=f"{self._source}/{charge.name}",
                at_s=self._wall_clock(),
                key_id=sane_text(call.tenant),
                model=sane_text(call.model),
                outcome=charge.outcome,
                cache=trace.cache,
                attempts=trace.attempts,
                input_tokens=usage.input_tokens,
                cached_tokens=usage.cache_read_input_tokens + usage.cache_creation_input_tokens,
                output_tokens=usage.output_tokens,
                cost_nanousd=cost_nanousd,
                saved_nanousd=price_nanousd - cost_nanousd,
                latency_s=self._time() - charge.since_s,
                instance=trace.instance,
            )
        )
        if charge.reservation is not None:
            self.budgets.settle(charge.reservation, cost_nanousd)


def most_nanousd(prices: PriceTable, call: Call, *, batch: bool = False) -> int:
    """The most that an answer may cost: every input token at its dearest price, every output token used."""
    input_tokens = max(call.input_tokens, call.size_bytes // BYTES_PER_TOKEN)
    return to_nanousd(
        prices.most_usd(
            call.model, input_tokens=input_tokens, output_tokens=call.max_tokens, batch=batch
        )
    )


class _Charge:
    """One request's money while it is under way."""

    __slots__ = (
        "call",
        "delivered",
        "name",
        "outcome",
        "paid",
        "reservation",
        "since_s",
        "usage",
    )

    def __init__(self, call: Call, number: int, now_s: float) -> None:
        self.call = call
        # `number` makes it unique: a client names its request as it likes, twice if it likes. The rest is to join by; now,
        # because the processor counts `attempt` up where it shares the call.
        self.name = f"{number}/{call.request_id}" + (f"/{call.attempt}" if call.attempt else "")
        self.since_s = now_s
        self.paid = False  # it went to an instance
        self.outcome: Outcome = "cancelled"  # unless something better, or worse, is known
        self.usage = Usage()
        self.delivered = 0
        self.reservation: Reservation | None = None

    def counting(self, emit: Emit) -> Emit:
        """`emit`, with the tokens that it delivers counted (a delta is at least one)."""

        def count(chunk: Chunk) -> Awaitable[None]:
            if chunk.content:
                self.delivered += chunk.data.count(_DELTA) if chunk.data else chunk.count
            return emit(chunk)

        return count
