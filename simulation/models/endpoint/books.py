"""The endpoint's books: counts, billing, and the record of every attempt."""

from __future__ import annotations

from collections.abc import Callable

from reference_impl.errors import ServiceError
from reference_impl.messages import Call
from reference_impl.prices import PriceTable
from simulation.models.endpoint.attempt import Attempt, AttemptRecord, EndpointStatistics
from simulation.models.endpoint.faults import Fault

__all__ = ["Books", "Observer"]

Observer = Callable[[AttemptRecord], None]


class Books:
    """Counts what arrived and how it ended; tells an observer of each attempt."""

    def __init__(self, prices: PriceTable, observer: Observer | None) -> None:
        self._prices = prices
        self._observer = observer
        self._arrivals = 0
        self._ended = {"ok": 0, "rate_limited": 0, "overloaded": 0, "cancelled": 0, "failed": 0}
        self._input_tokens = 0
        self._output_tokens = 0
        self._cost_usd = 0.0
        self._busy_s = 0.0

    def statistics(self) -> EndpointStatistics:
        """Counts since the start."""
        ended = self._ended
        return EndpointStatistics(
            arrivals=self._arrivals,
            in_flight=self._arrivals - sum(ended.values()),
            completed=ended["ok"],
            rate_limited=ended["rate_limited"],
            overloaded=ended["overloaded"],
            failed=ended["failed"],
            cancelled=ended["cancelled"],
            input_tokens=self._input_tokens,
            output_tokens=self._output_tokens,
            cost_usd=self._cost_usd,
            busy_s=self._busy_s,
        )

    def arrived(self) -> None:
        self._arrivals += 1

    def refused(
        self, call: Call, account: str, now: float, error: ServiceError, fault: Fault | None
    ) -> None:
        """A call was turned away on arrival."""
        self._end(error.outcome, 0.0)
        if self._observer is None:
            return
        self._observer(
            AttemptRecord(
                request_id=call.request_id,
                attempt=call.attempt,
                prompt_id=0 if call.tag is None else call.tag.prompt_id,
                account=account,
                model=call.model,
                stream=call.stream,
                arrived_s=now,
                endpoint_s=0.0,
                status=error.status,
                outcome=error.outcome,
                limit=error.message if error.status == 429 and fault is None else "",
                fault="" if fault is None else fault.kind,
            )
        )

    def ended(self, attempt: Attempt, outcome: str, status: int, endpoint_s: float) -> None:
        """An admitted attempt is over, one way or the other."""
        self._end(outcome, endpoint_s)
        call, counts = attempt.call, attempt.counts
        cost_usd = 0.0
        # An answer that broke off is billed for what was produced; one that never began is not billed.
        if outcome == "ok" or attempt.tokens_out > 0:
            cost_usd = self._prices.cost_usd(
                call.model,
                input_tokens=counts.uncached,
                output_tokens=attempt.tokens_out,
                cache_read_input_tokens=counts.read,
                cache_creation_input_tokens=counts.written,
                cache_creation_1h_input_tokens=counts.written_1h,
                batch=attempt.batch,
            )
            self._input_tokens += counts.total
            self._output_tokens += attempt.tokens_out
            self._cost_usd += cost_usd
        if self._observer is None:
            return
        self._observer(
            AttemptRecord(
                request_id=call.request_id,
                attempt=call.attempt,
                prompt_id=0 if call.tag is None else call.tag.prompt_id,
                account=attempt.account,
                model=call.model,
                stream=call.stream,
                arrived_s=attempt.arrived_s,
                endpoint_s=endpoint_s,
                first_token_s=attempt.first_token_s,
                drawn_first_token_s=attempt.first_s - attempt.arrived_s,
                drawn_endpoint_s=attempt.last_s - attempt.arrived_s,
                status=status,
                outcome=outcome,
                fault="" if attempt.fault is None else attempt.fault.kind,
                input_tokens=counts.uncached,
                cache_read_input_tokens=counts.read,
                cache_creation_input_tokens=counts.written,
                output_tokens=attempt.tokens_out,
                cost_usd=cost_usd,
            )
        )

    def _end(self, outcome: str, endpoint_s: float) -> None:
        self._ended[outcome if outcome in self._ended else "failed"] += 1
        self._busy_s += endpoint_s
