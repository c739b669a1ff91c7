"""The LLM endpoint: one behaviour for the simulation (in process) and for the mock server (over HTTP).

A call is decided on when it arrives (`admit`) and then delivered (`deliver`); `complete` does both.
"""

from __future__ import annotations

import asyncio

from reference_impl.errors import ServiceError, StreamBroken
from reference_impl.messages import Call, Completion, Emit
from reference_impl.prices import PriceTable, load_prices
from simulation.models.endpoint.admission import Admission
from simulation.models.endpoint.answer import passage_text
from simulation.models.endpoint.attempt import Attempt, EndpointStatistics
from simulation.models.endpoint.batching import EngineStatistics
from simulation.models.endpoint.books import Books, Observer
from simulation.models.endpoint.delivery import Detail, play
from simulation.models.endpoint.faults import Fault, FaultOrder, Faults, raise_status
from simulation.models.endpoint.limits import AccountLimits
from simulation.models.endpoint.lines import Lines
from simulation.models.endpoint.request_types import MessagesRequest
from simulation.models.endpoint.timing import FAULT_LUCK
from simulation.scenario.endpoint import EndpointProfile
from simulation.scenario.random_streams import uniforms

__all__ = ["LLMEndpoint"]


class LLMEndpoint:
    """Answers Messages calls as `profile` says; implements MessagesPort on either loop.

    Args:
        profile: the behaviour.
        seed: of all its luck, drawn per (request id, attempt).
        detail: `ends` plays a stream of a call without a body as its first and last token, `chunks` plays all of them;
            both begin and end at the same instants. A call with a body is always played in full.
        prices: what the records' `cost_usd` is computed with; the shipped price file by default.
        account: whose limits and prompt cache `complete` uses (the holder of the API key).
        observer: called once per attempt, also for refused ones.
    """

    def __init__(
        self,
        profile: EndpointProfile,
        seed: int,
        *,
        detail: Detail = "ends",
        prices: PriceTable | None = None,
        account: str = "",
        observer: Observer | None = None,
    ) -> None:
        self.profile = profile
        prices = load_prices() if prices is None else prices
        self._seed = seed
        self._detail: Detail = detail
        self._account = account
        self._lines = Lines(profile, prices)
        self._admission = Admission(profile, seed, self._lines)
        self._faults = Faults(profile.faults, profile.speedup)
        self._books = Books(prices, observer)
        self._started_s: float | None = None

    def statistics(self) -> EndpointStatistics:
        """Counts since the start."""
        return self._books.statistics()

    def engine_statistics(self) -> dict[str, EngineStatistics]:
        """Each self-hosted engine by its model line ("" is the one that lines share)."""
        return {name: engine.statistics() for name, engine in self._lines.engines().items()}

    def knows(self, model: str) -> bool:
        """Whether the model exists here (checked for calls with a body)."""
        return self._lines.knows(model)

    def limits_of(self, account: str, model: str) -> AccountLimits | None:
        """The limits that a call of this account to this model meets; None: unlimited."""
        return self._admission.limits_of(account, model, asyncio.get_running_loop().time())

    def prepare(self) -> None:
        """Build the tables that a first call would otherwise wait for (a live server does this before it is ready)."""
        passage_text(0, 1)
        self._lines.prepare()

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        """Answer `call` (see MessagesPort); writes `call.trace.endpoint_s`, also when it fails.

        A coroutine of its own although it only passes on `deliver`'s: a task that is cancelled before it has begun must
        leave nothing admitted.
        """
        return await self.deliver(self.admit(call), emit)

    async def aclose(self) -> None:
        """Nothing to release."""

    def admit(
        self,
        call: Call,
        request: MessagesRequest | None = None,
        *,
        account: str | None = None,
        order: FaultOrder | None = None,
        batch: bool = False,
    ) -> Attempt:
        """Decide on a call that arrives now; raises the ServiceError that it is refused with.

        Args:
            request: the parsed body, if the caller has it already.
            account: in place of the endpoint's own.
            order: the fault that the request asked for.
            batch: part of a batch: outside the rate limits of Messages, at the price of batches.
        """
        now = asyncio.get_running_loop().time()
        if self._started_s is None:
            self._started_s = now
        self._books.arrived()
        account = self._account if account is None else account
        fault: Fault | None = None
        try:
            luck = uniforms(self._seed, "endpoint", call.request_id, call.attempt)
            if order is not None:
                fault = self._faults.ordered(order)
            elif self.profile.faults:
                fault = self._faults.drawn(luck[FAULT_LUCK], now - self._started_s)
            if fault is not None:
                raise_status(fault)
            attempt = self._admission.decide(call, request, account, luck, fault, now, batch=batch)
        except ServiceError as error:
            call.trace.endpoint_s = 0.0
            self._books.refused(call, account, now, error, fault)
            raise
        if attempt.answer is not None:
            attempt.message_id = f"msg_{self._seed:x}_{call.request_id:x}_{call.attempt:x}"
        return attempt

    async def deliver(self, attempt: Attempt, emit: Emit | None = None) -> Completion:
        """Play an admitted call to its end; a cancellation frees what it holds."""
        loop = asyncio.get_running_loop()
        call = attempt.call
        outcome, status = "cancelled", 499
        try:
            completion = await play(attempt, emit if call.stream else None, self._detail, loop)
            outcome, status = "ok", 200
        except ServiceError as error:
            outcome = error.outcome
            status = 200 if isinstance(error, StreamBroken) else error.status
            raise
        finally:
            now = loop.time()
            call.trace.endpoint_s = now - attempt.arrived_s
            if outcome != "ok":
                self._admission.abandon(attempt, now)
            self._admission.settle(attempt, now)
            self._books.ended(attempt, outcome, status, call.trace.endpoint_s)
        return completion
