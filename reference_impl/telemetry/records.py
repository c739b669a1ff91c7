"""The tables of a run: one row a request, one row a station and interval, one line an event.

`RequestTrace` is the mutable half that travels with a call: each hop writes the fields that it owns. Live, each process
writes its own trace to disk and the traces are joined by request id after the run; in virtual time one trace goes the
whole way. Either way `RequestRecord.assemble` makes the row, so both worlds account for time in the same way. All times
are seconds; instants count from the start of the run.
"""

from __future__ import annotations

import math
from typing import Final, Literal, get_args

import msgspec

__all__ = [
    "CACHE_RESULTS",
    "OUTCOMES",
    "STAGES",
    "CacheResult",
    "Outcome",
    "RequestRecord",
    "RequestTrace",
    "StationSample",
    "SystemEvent",
]

Outcome = Literal[
    "ok",  # answered completely
    "rejected",  # turned away by our own admission control, queue bound, or for want of an instance
    "rate_limited",  # the endpoint's 429 after the last attempt
    "overloaded",  # the endpoint's 529 after the last attempt
    "client_error",  # any other 4xx
    "server_error",  # any other 5xx
    "connection_error",  # refused or lost before the first event
    "timeout",
    "stream_broken",  # failed after the first event
    "cancelled",  # the client left
    "unfinished",  # still in flight when the run ended
]
CacheResult = Literal["off", "miss", "l1", "l2", "semantic", "coalesced"]

OUTCOMES: Final[tuple[str, ...]] = get_args(Outcome)
CACHE_RESULTS: Final[tuple[str, ...]] = get_args(CacheResult)


class RequestTrace(msgspec.Struct, gc=False):
    """What the hops of one request have measured so far. The comment names the hop that owns a field."""

    cache: CacheResult = "off"  # gateway
    instance: str = ""  # gateway
    attempts: int = 0  # processor: upstream calls made, of every hedge and retry
    admission_s: float = 0.0  # gateway: authentication, limits, queue bound
    cache_s: float = 0.0  # gateway: look-up, or the wait for another's computation
    balance_s: float = 0.0  # gateway: choosing an instance, waiting for one
    queue_wait_s: float = 0.0  # task processor: from enqueue to its handler (asynchronous path)
    database_s: float = 0.0  # gateway: waits for the ledger on the path
    instance_wait_s: float = 0.0  # instance: for a slot
    retry_wait_s: float = 0.0  # processor: between attempts
    failed_attempts_s: float = 0.0  # processor: inside attempts that failed
    llm_first_token_s: float = (
        0.0  # processor: last attempt, call to first content (or whole answer)
    )
    llm_stream_s: float = 0.0  # processor: last attempt, first content to the end
    endpoint_s: float = 0.0  # endpoint: its own time for the attempt that answered; not a stage
    cost_usd: float = 0.0  # processor


# The stages of the path in the order a request meets them; with `other_s` they add up to done - intended.
STAGES: Final[tuple[str, ...]] = (
    "lag_s",
    "admission_s",
    "cache_s",
    "balance_s",
    "queue_wait_s",
    "instance_wait_s",
    "retry_wait_s",
    "failed_attempts_s",
    "llm_first_token_s",
    "llm_stream_s",
    "database_s",
    "other_s",
)


class RequestRecord(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request, from the client's intention to its last byte.

    Attributes:
        request_id: unique in the run; the row of the compiled workload.
        session_id, turn: the conversation (-1: none) and the place in it.
        tenant, kind, model: whose, `messages` or `batch`, and which model.
        intended_s: when the workload wanted it sent; latencies of users count from here.
        sent_s: when the injector sent it; service time counts from here.
        first_token_s: first content event at the client; NaN if none came.
        done_s: last byte, or the failure.
        outcome: see `Outcome`. status: HTTP status that the client saw (0: none).
        attempts: upstream calls made for it (0 for a cache hit).
        instance: the instance that answered ("" if none did).
        cache: see `CacheResult`.
        input_tokens: all prompt tokens; cached_tokens: those of them read from the provider's prompt cache.
        output_tokens: generated.
        cost_usd: at the price file's prices, failed attempts that were billed included.
        endpoint_s: the endpoint's own time for the attempt that answered. done - intended - endpoint_s is the added time.
        lag_s .. other_s: the stages (`STAGES`); they add up to done_s - intended_s. `other_s` is what no hop accounts
            for: network, encoding, the event loops' own queues.
    """

    request_id: int
    session_id: int = -1
    turn: int = 0
    tenant: str = ""
    kind: str = "messages"
    model: str = ""
    intended_s: float
    sent_s: float
    first_token_s: float = math.nan
    done_s: float
    outcome: Outcome
    status: int = 0
    attempts: int = 0
    instance: str = ""
    cache: CacheResult = "off"
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    endpoint_s: float = 0.0
    lag_s: float = 0.0
    admission_s: float = 0.0
    cache_s: float = 0.0
    balance_s: float = 0.0
    queue_wait_s: float = 0.0
    instance_wait_s: float = 0.0
    retry_wait_s: float = 0.0
    failed_attempts_s: float = 0.0
    llm_first_token_s: float = 0.0
    llm_stream_s: float = 0.0
    database_s: float = 0.0
    other_s: float = 0.0

    @classmethod
    def assemble(
        cls,
        trace: RequestTrace,
        *,
        request_id: int,
        intended_s: float,
        sent_s: float,
        done_s: float,
        outcome: Outcome,
        first_token_s: float = math.nan,
        status: int = 0,
        session_id: int = -1,
        turn: int = 0,
        tenant: str = "",
        kind: str = "messages",
        model: str = "",
        input_tokens: int = 0,
        cached_tokens: int = 0,
        output_tokens: int = 0,
    ) -> RequestRecord:
        """The row of a request: what its client saw, and the stages that its hops measured.

        `other_s` is the remainder. A client that leaves early may see less time than its hops spent before they
        noticed; the excess is then taken off the last stages, so that the stages still add up.
        """
        lag_s = sent_s - intended_s
        stages: tuple[float, ...] = (
            lag_s,
            trace.admission_s,
            trace.cache_s,
            trace.balance_s,
            trace.queue_wait_s,
            trace.instance_wait_s,
            trace.retry_wait_s,
            trace.failed_attempts_s,
            trace.llm_first_token_s,
            trace.llm_stream_s,
            trace.database_s,
        )
        other_s = (done_s - intended_s) - math.fsum(stages)
        if other_s < 0.0:
            stages = _shortened(stages, -other_s)
            other_s = 0.0
        return cls(
            request_id=request_id,
            session_id=session_id,
            turn=turn,
            tenant=tenant,
            kind=kind,
            model=model,
            intended_s=intended_s,
            sent_s=sent_s,
            first_token_s=first_token_s,
            done_s=done_s,
            outcome=outcome,
            status=status,
            attempts=trace.attempts,
            instance=trace.instance,
            cache=trace.cache,
            input_tokens=input_tokens,
            cached_tokens=cached_tokens,
            output_tokens=output_tokens,
            cost_usd=trace.cost_usd,
            endpoint_s=trace.endpoint_s,
            lag_s=stages[0],
            admission_s=stages[1],
            cache_s=stages[2],
            balance_s=stages[3],
            queue_wait_s=stages[4],
            instance_wait_s=stages[5],
            retry_wait_s=stages[6],
            failed_attempts_s=stages[7],
            llm_first_token_s=stages[8],
            llm_stream_s=stages[9],
            database_s=stages[10],
            other_s=other_s,
        )


def _shortened(stages: tuple[float, ...], excess_s: float) -> tuple[float, ...]:
    """`stages` with `excess_s` taken off, from the last one backwards, none below zero."""
    kept = list(stages)
    for i in range(len(kept) - 1, -1, -1):
        taken = min(kept[i], excess_s)
        kept[i] -= taken
        excess_s -= taken
        if excess_s <= 0.0:
            break
    return tuple(kept)


class StationSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One station over the interval that ends at `t_s`.

    Attributes:
        station: name (`gateway cpu`, `instance-3 slots`, `endpoint`, `fleet`, ...); kind: `cpu`, `slots`, `pool`, `fleet`, ...
        arrivals, completions: counts in the interval.
        busy_s: integral of busy servers over the interval (divide by interval_s * capacity for utilisation).
        queue_length: time-weighted mean number waiting. in_service: time-weighted mean number in service.
        capacity: servers, slots or connections at the end of the interval (inf: unlimited).
    """

    t_s: float
    interval_s: float
    station: str
    kind: str
    arrivals: int
    completions: int
    busy_s: float
    queue_length: float
    in_service: float
    capacity: float


class SystemEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to the system: `kind` is scaling, instance, breaker, fault, ...; `detail` is JSON-able."""

    t_s: float
    kind: str
    subject: str = ""
    detail: dict[str, float | int | str | bool | None] = {}
