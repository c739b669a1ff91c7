"""Budgets: money is reserved before a request spends it, and settled with what it really cost.

The database holds the truth, and a reservation there is atomic over all gateways. To ask it for every request would put a
round trip and a contended row on the path, so a gateway takes money for many requests at once while a key has plenty, and
exactly what one request needs when it runs short: the limit is exact, and the cost of exactness is paid near it only. What
is taken and not used goes back with the next cut of the ledger's writer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

import msgspec

from reference_impl.database.entries import from_nanousd
from reference_impl.database.errors import (
    DatabaseError,
    DatabaseRefused,
    DatabaseUnavailable,
    summary,
)
from reference_impl.database.port import LedgerStore
from reference_impl.database.writer import LedgerWriter
from reference_impl.deployment import DatabaseSpec
from reference_impl.errors import Rejected, ServiceError

__all__ = ["BudgetExceeded", "Budgets", "Reservation"]

log = logging.getLogger("twinload.ledger")

UNLIMITED_S = 5.0  # how long a key without a budget is believed to have none
AWAY_S = 1.0  # after a failure, how long the database is not asked again
# Beyond every limit that a deployment can set; four times it is still a number of 64 bits, which is what stores compare with.
UNAFFORDABLE_NANOUSD: Final = 2**60
FORGET_S = 60.0  # an idle key's purse is forgotten after this


class BudgetExceeded(ServiceError):
    """The key's money does not cover the request (402, `billing_error`)."""

    status = 402
    error_type = "billing_error"
    outcome = Rejected.outcome


class Reservation(msgspec.Struct, frozen=True):
    """Money held for one request; 0 for a key without a limit, or while the database is away."""

    key_id: str
    hold: str = ""
    nanousd: int = 0


class _Purse:
    """What this process holds of one key's money: `allowance` is free, `outstanding` reserved for requests under way."""

    __slots__ = (
        "allowance",
        "asking",
        "away_until_s",
        "hold",
        "outstanding",
        "renewed_s",
        "scarce",
        "unlimited_until_s",
        "used",
        "used_s",
    )

    def __init__(self, hold: str, now_s: float) -> None:
        self.hold = hold
        self.allowance = 0
        self.outstanding = 0
        self.scarce = False
        self.used = False
        self.used_s = now_s
        self.renewed_s = now_s
        self.unlimited_until_s = -1.0
        self.away_until_s = -1.0
        self.asking = asyncio.Lock()


class Budgets:
    """Reserve and settle, over a store.

    Args:
        store: the truth. writer: carries what is given back, together with the rows that spent it.
        spec: `budget_requests`, `budget_wait_s`, `budget_outage`, `hold_s`.
        name: unique to this process and start; holds are named after it.
    """

    def __init__(
        self, store: LedgerStore, writer: LedgerWriter, spec: DatabaseSpec, *, name: str
    ) -> None:
        self._store = store
        self._writer = writer
        self._spec = spec
        self._name = name
        self._epoch = 0
        self._purses: dict[str, _Purse] = {}
        self._time = asyncio.get_running_loop().time
        self._away = self._failing = False
        self._suspended = False

    def suspend(self) -> None:
        """The store is not open, or its budgets are not set: reservations go as in an outage until `resume`."""
        self._suspended = True

    def resume(self) -> None:
        """The budgets are set."""
        self._suspended = False

    async def reserve(self, key_id: str, nanousd: int) -> Reservation:
        """Hold `nanousd` of the key's money.

        Raises BudgetExceeded, or Rejected where an outage refuses requests or the database does not understand the question.
        """
        now_s = self._time()
        purse = self._purses.get(key_id)
        if purse is None:
            purse = self._purses[key_id] = _Purse(self._hold_name(), now_s)
        purse.used = True
        purse.used_s = now_s
        if nanousd <= 0 or now_s < purse.unlimited_until_s:
            return Reservation(key_id)
        if purse.allowance >= nanousd:
            return self._take(key_id, purse, nanousd)
        if self._suspended or now_s < purse.away_until_s:
            return self._without_database(key_id)
        # A task of its own, because a grant that arrives after its asker has left must still be accounted for.
        task = asyncio.create_task(
            self._ask(key_id, purse, nanousd), name="background:budget reservation"
        )
        try:
            async with asyncio.timeout(self._spec.budget_wait_s):
                reservation = await asyncio.shield(task)
        except TimeoutError:
            task.add_done_callback(self._unclaimed)
            purse.away_until_s = self._time() + AWAY_S
            return self._without_database(key_id)
        except DatabaseError as error:
            return self._unanswered(key_id, purse, error)
        except asyncio.CancelledError:
            task.add_done_callback(self._unclaimed)
            raise
        self._note(None)
        if reservation is None:
            raise BudgetExceeded(
                f"the budget of key {key_id!r} does not cover this request "
                f"(up to ${from_nanousd(nanousd):.6f}); raise it, or ask for fewer tokens"
            )
        return reservation

    def settle(self, reservation: Reservation, cost_nanousd: int) -> None:
        """The request is over and cost so much: what it did not use is free again."""
        held = reservation.nanousd
        if held == 0:
            return
        purse = self._purses[reservation.key_id]
        kept = 0
        if reservation.hold == purse.hold:
            purse.outstanding -= held
            if self._spec.budget_requests > 1:  # free at once for requests of this process
                kept = max(0, held - cost_nanousd)
                purse.allowance += kept
        if held > kept:
            self._writer.release(reservation.hold, reservation.key_id, held - kept)

    def housekeeping(self) -> tuple[list[tuple[str, str, int]], list[tuple[str, str]]]:
        """For the writer, at every cut: allowances that nobody used since the last, or that are scarce, go back, holds in use are renewed."""
        now_s = self._time()
        releases: list[tuple[str, str, int]] = []
        renewals: list[tuple[str, str]] = []
        for key_id, purse in list(self._purses.items()):
            if purse.allowance and (purse.scarce or not purse.used):
                releases.append((purse.hold, key_id, purse.allowance))
                purse.allowance = 0
            held = purse.allowance + purse.outstanding
            if held and now_s - purse.renewed_s >= self._spec.hold_s / 3:
                renewals.append((purse.hold, key_id))
                purse.renewed_s = now_s
            if not held and not purse.asking.locked() and now_s - purse.used_s > FORGET_S:
                del self._purses[key_id]
            purse.used = False
        return releases, renewals

    def give_back(self) -> None:
        """Release every allowance: this process takes no more requests."""
        for key_id, purse in self._purses.items():
            if purse.allowance:
                self._writer.release(purse.hold, key_id, purse.allowance)
                purse.allowance = 0

    async def _ask(self, key_id: str, purse: _Purse, need: int) -> Reservation | None:
        """Ask the database for what the allowance lacks; None when it refuses."""
        requests = self._spec.budget_requests
        if need > UNAFFORDABLE_NANOUSD:  # ask for nothing: what counts is whether there is a budget
            grant = await self._store.reserve(key_id, purse.hold, 0, 0, self._spec.hold_s)
            return None if grant.budgeted else Reservation(key_id)
        if requests == 1:
            return await self._grant(key_id, purse, need, need)
        async with purse.asking:
            want = min(need * requests, UNAFFORDABLE_NANOUSD)
            return await self._grant(key_id, purse, need, want)

    async def _grant(self, key_id: str, purse: _Purse, need: int, want: int) -> Reservation | None:
        hold = purse.hold
        lacking = need - purse.allowance
        if lacking > 0:
            try:
                grant = await self._store.reserve(key_id, hold, lacking, want, self._spec.hold_s)
            except DatabaseError as error:
                if not error.safe_to_repeat:
                    self._abandon(key_id, purse)
                raise
            if not grant.budgeted:
                purse.unlimited_until_s = self._time() + UNLIMITED_S
                return Reservation(key_id)
            if hold != purse.hold:  # abandoned meanwhile: nothing of it is counted any more
                self._writer.release(hold, key_id, grant.nanousd)
                return Reservation(key_id) if grant.nanousd else None
            purse.allowance += grant.nanousd
            purse.scarce = grant.nanousd < want
        # At once, in the step in which the grant arrived: who asks next must find what is left.
        return self._take(key_id, purse, need) if purse.allowance >= need else None

    def _unclaimed(self, task: asyncio.Task[Reservation | None]) -> None:
        """The asker has left: what its reservation got is free."""
        if task.cancelled():
            return
        error = task.exception()
        if error is None:
            reservation = task.result()
            if reservation is not None:
                self.settle(reservation, 0)
        elif not isinstance(error, DatabaseError):
            log.error("budgets: a reservation failed", exc_info=error)

    def _abandon(self, key_id: str, purse: _Purse) -> None:
        """Nobody knows whether the last reservation was made: go on under another hold, and let the old one end."""
        if purse.allowance:
            self._writer.release(purse.hold, key_id, purse.allowance)
        purse.hold = self._hold_name()
        purse.allowance = purse.outstanding = 0

    def _take(self, key_id: str, purse: _Purse, nanousd: int) -> Reservation:
        purse.allowance -= nanousd
        purse.outstanding += nanousd
        return Reservation(key_id, purse.hold, nanousd)

    def _hold_name(self) -> str:
        self._epoch += 1
        return f"{self._name}/{self._epoch}"

    def _without_database(self, key_id: str) -> Reservation:
        if self._spec.budget_outage == "refuse":
            raise Rejected(
                "budgets cannot be checked: the database does not answer; try again later",
                status=503,
                retry_after_s=AWAY_S,
            )
        return Reservation(key_id)

    def _unanswered(self, key_id: str, purse: _Purse, error: DatabaseError) -> Reservation:
        """What becomes of a request whose reservation ended in `error`. Raises Rejected."""
        if isinstance(error, DatabaseUnavailable | DatabaseRefused):  # nobody could be asked
            purse.away_until_s = self._time() + AWAY_S
            self._note(error)
            return self._without_database(key_id)
        # It is there and says no to this request: that opens no budget, neither for it nor for those beside it.
        if not self._failing:
            log.error("budgets: the database refuses a reservation: %s", summary(error))
        self._failing = True
        raise Rejected(
            "the budget of this request cannot be checked: the database refuses to; see the gateway's log",
            status=503,
        ) from error

    def _note(self, error: DatabaseError | None) -> None:
        self._failing = False
        away = error is not None
        if away != self._away:
            self._away = away
            if error is not None:
                outage = self._spec.budget_outage
                log.warning("budgets: cannot be checked (%s: %s)", outage, summary(error))
            else:
                log.warning("budgets: can be checked again")
