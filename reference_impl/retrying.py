"""The attempts of a call: when to try again, when to stop, and where the time went.

It is the only place of the system that tries again. Each attempt has a time-out; between attempts it waits with full
jitter, or as long as the peer asked (`retry-after`); a budget bounds what retries add to the load, a breaker spares a sick
peer. Once a client has seen content nothing is tried again, and what came before the first content (`message_start`,
pings) is held back until then, so that a retried stream begins once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from reference_impl.attempt import ContentGate
from reference_impl.deployment import RetrySpec
from reference_impl.errors import Rejected, RequestTimeout, ServiceError, StreamBroken
from reference_impl.instances.slots import Slot
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.overload.breaker import CircuitBreaker
from reference_impl.overload.jitter import Uniform, full_jitter_s, hashed_uniform
from reference_impl.overload.retry_budget import RetryBudget
from reference_impl.time_limit import TimeLimit

__all__ = ["ProcessorStatistics", "RetryingMessages"]


class ProcessorStatistics(msgspec.Struct, frozen=True):
    """Counts since the start. attempts = calls that reached the port; retries are those of them beyond a request's first;
    `denied` are retries that the budget refused."""

    requests: int
    attempts: int
    retries: int
    denied: int
    in_flight: int


class RetryingMessages:
    """A MessagesPort over another, with retries.

    Args:
        port: where attempts go; closed by `aclose`.
        retry: attempts, waits, time-out and budget.
        breaker: refuses attempts while the peer is sick; None: none.
        uniform: jitter by (purpose, request id, attempt).
        retry_after_max_s: a peer that asks for a longer wait gets no retry; its error tells the caller how long.
        price: (model, usage) -> US dollars, added to `trace.cost_usd`.
    """

    def __init__(
        self,
        port: MessagesPort,
        *,
        retry: RetrySpec = RetrySpec(),  # noqa: B008 - immutable
        breaker: CircuitBreaker | None = None,
        uniform: Uniform | None = None,
        retry_after_max_s: float = 60.0,
        price: Callable[[str, Usage], float] | None = None,
    ) -> None:
        self.retry = retry
        self._port = port
        self._budget = RetryBudget(retry.budget_fraction, retry.budget_reserve_per_s)
        self._breaker = breaker
        self._uniform = uniform if uniform is not None else hashed_uniform(0)
        self._retry_after_max_s = retry_after_max_s
        self._price = price
        self._attempt_timeout_s = retry.attempt_timeout_s
        self._requests = 0
        self._attempts = 0
        self._retries = 0
        self._denied = 0
        self._in_flight = 0

    async def complete(
        self, call: Call, emit: Emit | None = None, slot: Slot | None = None
    ) -> Completion:
        """Answer `call` in as many attempts as policy allows (MessagesPort).

        Args:
            call: `call.attempt` counts up with each retry, so that every attempt has luck of its own; no wait reaches
                beyond `call.deadline_s`. The processor's fields of `call.trace` add up to the time spent here.
            emit: gets the chunks of a stream, from the first content on, of the attempt that answers.
            slot: given back during the waits and taken again after them.

        Raises:
            Rejected: the breaker is open; nothing was sent.
            RequestTimeout: the last attempt, or `call.deadline_s`, ran out.
            StreamBroken: it failed after content was emitted.
            ServiceError: any other, of the last attempt.
        """
        loop = asyncio.get_running_loop()
        trace = call.trace
        gate = ContentGate(emit, loop) if call.stream and emit is not None else None
        retries = 0
        error: ServiceError | None = None
        started_s = loop.time()
        self._budget.deposit(started_s)
        self._requests += 1
        self._in_flight += 1
        try:
            while True:
                permit = self._permit(call, started_s, error)
                self._attempts += 1
                trace.attempts += 1
                limit = TimeLimit(loop, min(started_s + self._attempt_timeout_s, call.deadline_s))
                try:
                    completion = await self._port.complete(call, gate)
                    if gate is not None:
                        await gate.flush()
                except BaseException as raised:
                    failed_s = loop.time()
                    trace.failed_attempts_s += failed_s - started_s
                    error = self._failure(raised, limit, gate, call)
                    self._report(permit, failed_s, error, call)
                    if error is None:
                        raise
                    error.__cause__ = raised if error is not raised else raised.__cause__
                else:
                    self._account(call, permit, started_s, loop.time(), gate, completion.usage)
                    return completion
                finally:
                    limit.cancel()
                wait_s = self._wait_before_retry_s(error, call, gate, retries, failed_s)
                if wait_s is None:
                    raise error
                retries += 1
                call.attempt += 1
                self._retries += 1
                if slot is not None:
                    slot.release()
                try:
                    await asyncio.sleep(wait_s)
                finally:
                    trace.retry_wait_s += loop.time() - failed_s
                if slot is not None:
                    await slot.acquire()
                started_s = loop.time()
        finally:
            self._in_flight -= 1
            error = None  # an exception that its own frame holds on to is garbage only for the collector

    async def aclose(self) -> None:
        """Close the port."""
        await self._port.aclose()

    def statistics(self) -> ProcessorStatistics:
        return ProcessorStatistics(
            requests=self._requests,
            attempts=self._attempts,
            retries=self._retries,
            denied=self._denied,
            in_flight=self._in_flight,
        )

    def _permit(self, call: Call, now: float, last: ServiceError | None) -> int:
        """The breaker's permit for an attempt (0 without a breaker); raises when no attempt may begin."""
        if now >= call.deadline_s:
            raise last or RequestTimeout("the deadline had passed before the first attempt")
        if self._breaker is None:
            return 0
        permit = self._breaker.try_acquire(now)
        if not permit:
            raise last or Rejected(
                "the endpoint fails too often; the breaker is open",
                status=503,
                retry_after_s=self._breaker.retry_after_s(now),
            )
        return permit

    def _failure(
        self, raised: BaseException, limit: TimeLimit, gate: ContentGate | None, call: Call
    ) -> ServiceError | None:
        """What a failed attempt means to the caller; None for what is not the peer's failure (cancelled, a defect)."""
        timed_out = limit.was_the_cause()
        if isinstance(raised, asyncio.CancelledError):
            if not timed_out:
                return None
            which = (
                "the request's deadline"
                if limit.when_s == call.deadline_s
                else "the attempt's limit"
            )
            error: ServiceError = RequestTimeout(f"no complete answer within {which}")
        elif isinstance(raised, ServiceError):
            error = raised
        else:
            return None
        if gate is not None and gate.opened and not isinstance(error, StreamBroken):
            return StreamBroken(
                f"broken after its first content: {error.message}", request_id=error.request_id
            )
        return error

    def _report(self, permit: int, now: float, error: ServiceError | None, call: Call) -> None:
        """Tell the breaker how an attempt ended: server errors and time-outs speak against the peer."""
        if self._breaker is None:
            return
        if error is None or now >= call.deadline_s or isinstance(error, Rejected):
            # The caller's impatience, or a full queue of ours, says nothing about the peer's health.
            self._breaker.abandoned(permit)
        elif error.status >= 500:
            u = self._uniform("breaker", call.request_id, call.attempt)
            self._breaker.failed(permit, now, u)
        else:
            self._breaker.succeeded(permit, now)

    def _account(
        self,
        call: Call,
        permit: int,
        started_s: float,
        done_s: float,
        gate: ContentGate | None,
        usage: Usage,
    ) -> None:
        """Write the stages of the attempt that answered."""
        trace = call.trace
        first_s = gate.first_content_s if gate is not None and gate.opened else done_s
        trace.llm_first_token_s += first_s - started_s
        trace.llm_stream_s += done_s - first_s
        if self._breaker is not None:
            self._breaker.succeeded(permit, done_s)
        if self._price is not None:
            trace.cost_usd += self._price(call.model, usage)

    def _wait_before_retry_s(
        self,
        error: ServiceError,
        call: Call,
        gate: ContentGate | None,
        retries: int,
        now: float,
    ) -> float | None:
        """Seconds to wait before the next attempt; None when there must not be one."""
        if not error.retryable or retries + 1 >= self.retry.max_attempts:
            return None
        if gate is not None:
            gate.discard()
        wait_s = error.retry_after_s
        if wait_s is None:
            u = self._uniform("backoff", call.request_id, call.attempt)
            wait_s = full_jitter_s(self.retry, retries, u)
        elif wait_s > self._retry_after_max_s:
            return None
        if now + wait_s >= call.deadline_s:
            return None
        if self._breaker is not None and self._breaker.retry_after_s(now) > wait_s:
            return None
        if not self._budget.try_withdraw(now):
            self._denied += 1
            return None
        return wait_s
