"""One attempt at the endpoint: what was decided when it arrived, and what became of it."""

from __future__ import annotations

import math

import msgspec

from reference_impl.messages import Call
from simulation.models.endpoint.answer import Answer
from simulation.models.endpoint.batching import BatchingEngine, Sequence
from simulation.models.endpoint.faults import Fault
from simulation.models.endpoint.limits import AccountLimits, Flow
from simulation.models.endpoint.timing import Timing
from simulation.models.endpoint.wire import TokenCounts

__all__ = ["Attempt", "AttemptRecord", "EndpointStatistics"]


class Attempt(msgspec.Struct, kw_only=True):
    """An admitted call. Instants are on the loop's clock.

    `first_s` and `last_s`: planned instants of the first and last token (NaN where an engine decides as it goes).
    `answer` is None in virtual time, where a call has no body.
    """

    call: Call
    account: str
    arrived_s: float
    first_s: float
    last_s: float
    luck: tuple[float, ...]
    counts: TokenCounts
    output_tokens: int
    stop_reason: str
    timing: Timing | None
    engine: BatchingEngine | None
    chunk_tokens: int
    message_id: str = ""
    answer: Answer | None = None
    fault: Fault | None = None
    limits: AccountLimits | None = None
    flow: Flow | None = None
    sequence: Sequence | None = None
    batch: bool = False
    first_token_s: float = math.nan  # seconds from the arrival, as delivered
    tokens_out: int = 0

    def planned_tokens(self, now: float) -> int:
        """Tokens that are out by `now`, as planned (evenly between first and last)."""
        if not now >= self.first_s:  # also where nothing is planned
            return 0
        duration_s = self.last_s - self.first_s
        share = 1.0 if duration_s <= 0 else min(1.0, (now - self.first_s) / duration_s)
        return min(self.output_tokens, 1 + int((self.output_tokens - 1) * share))


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The truth about one attempt, against which losses and billing are checked.

    `arrived_s` is an instant of the loop's clock; the other times count from it. `drawn_*` are what the model drew (NaN
    where an engine decides as it goes), `first_token_s` and `endpoint_s` what was delivered. `status` is 499 when the
    client left. `output_tokens` and `cost_usd` cover what was produced, also when the answer broke off.
    """

    request_id: int
    attempt: int
    prompt_id: int
    account: str
    model: str
    stream: bool
    arrived_s: float
    endpoint_s: float
    first_token_s: float = math.nan
    drawn_first_token_s: float = math.nan
    drawn_endpoint_s: float = math.nan
    status: int
    outcome: str
    limit: str = ""
    fault: str = ""
    input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0


class EndpointStatistics(msgspec.Struct, frozen=True):
    """Counts since the start. `busy_s` is the sum of the times of all ended attempts."""

    arrivals: int
    in_flight: int
    completed: int
    rate_limited: int
    overloaded: int
    failed: int
    cancelled: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    busy_s: float
