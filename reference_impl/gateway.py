"""The request path, without HTTP: admit, look up, choose an instance, stream back.

A `MessagesPort` itself, so the service in front of it and the virtual world call it alike. Whatever is taken (a place in
the gateway, the balancer's count of calls in flight) is given back in `finally`, however the request ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from reference_impl.answers import Answer
from reference_impl.balancer.load_balancer import LoadBalancer
from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.compute import Compute
from reference_impl.database.accounting import Accounting
from reference_impl.deployment import GatewaySpec
from reference_impl.errors import ConnectionFailed, NoInstance, Rejected, RequestTimeout
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import BYTES_PER_KB, Call, Chunk, Completion, Emit, content_key
from reference_impl.relay import Relay
from reference_impl.telemetry import RequestTrace
from reference_impl.time_limit import TimeLimit

if TYPE_CHECKING:  # numpy comes with it, and few gateways want it
    from reference_impl.semantic_answers import SemanticAnswers

__all__ = ["Gateway", "GatewayStatistics"]


class GatewayStatistics(msgspec.Struct, frozen=True):
    """Counts since the start; `in_flight` at this instant. arrivals = completed + failed + rejected + in_flight."""

    arrivals: int
    completed: int
    failed: int
    rejected: int
    in_flight: int


class Gateway:
    """Admission, cache, balancer and failover in front of a fleet of instances.

    Args:
        spec: bounds and time-outs.
        balancer: chooses among the instances that are ready.
        ports: the port of every instance that the balancer may name; read at each call, so it may change.
        compute: the CPU of this process.
        cache: exact cache of `Answer`s, or None. semantic: looks up by meaning too, over `cache`; or None.
        accounting: the ledger and the budgets, or None.
    """

    def __init__(
        self,
        spec: GatewaySpec,
        balancer: LoadBalancer,
        ports: Mapping[str, MessagesPort],
        compute: Compute,
        *,
        cache: CacheLayer[Answer] | None = None,
        semantic: SemanticAnswers | None = None,
        accounting: Accounting | None = None,
    ) -> None:
        self._spec = spec
        self._balancer = balancer
        self._ports = ports
        self._compute = compute
        self._cache = cache
        self._semantic = semantic
        self._accounting = accounting
        self._arrivals = 0
        self._completed = 0
        self._rejected = 0
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def statistics(self) -> GatewayStatistics:
        ended = self._arrivals - self._rejected - self._in_flight
        return GatewayStatistics(
            arrivals=self._arrivals,
            completed=self._completed,
            failed=ended - self._completed,
            rejected=self._rejected,
            in_flight=self._in_flight,
        )

    def complete(self, call: Call, emit: Emit | None = None) -> Coroutine[Any, Any, Completion]:
        """Answer `call`. Raises `Rejected` when the gateway is full, `RequestTimeout` when its time is up."""
        if self._accounting is None:
            return self._complete(call, emit)
        return self._accounting.recorded(call, emit, self._complete)

    async def _complete(self, call: Call, emit: Emit | None) -> Completion:
        self._arrivals += 1
        if self._in_flight >= self._spec.max_in_flight:
            self._rejected += 1
            raise Rejected(
                f"the gateway holds {self._in_flight} requests, its limit; try again later"
            )
        loop = asyncio.get_running_loop()
        arrived_s = loop.time()
        self._in_flight += 1
        if self._in_flight == 1:
            self._idle.clear()
        limit = TimeLimit(loop, arrived_s + self._spec.request_timeout_s)
        try:
            await self._compute.use("parse", call.size_bytes / BYTES_PER_KB)
            call.trace.admission_s = loop.time() - arrived_s
            if self._cache is None:
                completion = await self._forward(call, emit)
            else:
                completion = await self._through_cache(self._cache, call, emit)
            await self._compute.use("encode", completion.size_bytes / BYTES_PER_KB)
            self._completed += 1
            return completion
        except BaseException as error:
            if limit.was_the_cause() and isinstance(error, asyncio.CancelledError):
                text = f"no answer within {self._spec.request_timeout_s:g} s"
                raise RequestTimeout(text) from error
            raise
        finally:
            limit.cancel()
            self._in_flight -= 1
            if self._in_flight == 0:
                self._idle.set()

    async def idle(self) -> None:
        """Return once no request is in flight."""
        await self._idle.wait()

    async def aclose(self) -> None:
        """The gateway holds no connections of its own; the fleet closes the instances' ports."""

    async def _through_cache(
        self, cache: CacheLayer[Answer], call: Call, emit: Emit | None
    ) -> Completion:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        trace = call.trace
        await self._compute.use("lookup", call.size_bytes / BYTES_PER_KB)

        asker = asyncio.current_task()

        def compute() -> Awaitable[Answer]:
            if asyncio.current_task() is not asker:  # ahead of its expiry: nobody waits for it
                return self._refreshed_answer(call)
            trace.cache_s = loop.time() - started_s
            return self._computed_answer(call, emit)

        if self._semantic is None:
            answer, source = await cache.fetch(content_key(call), compute)
        else:
            answer, source = await self._semantic.fetch(call, compute)
        trace.cache = source
        if source == "miss":
            return answer.completion
        trace.cache_s = loop.time() - started_s
        if call.stream and emit is not None:
            await emit(Chunk(answer.as_events()))
            return answer.completion
        return answer.as_message()

    async def _computed_answer(self, call: Call, emit: Emit | None) -> Answer:
        """A live answer, with the events that a stream delivered kept for those who ask for the same."""
        if emit is None:
            return Answer(await self._forward(call, None))
        events: list[bytes] = []
        deliver = emit

        def keep(chunk: Chunk) -> Awaitable[None]:
            events.append(chunk.data)
            return deliver(chunk)

        completion = await self._forward(call, keep)
        return Answer(completion, b"".join(events))

    async def _refreshed_answer(self, call: Call) -> Answer:
        """An answer to the same question for those who will ask: a call of its own, paid for in a row of its own."""
        again = msgspec.structs.replace(call, trace=RequestTrace(cache="miss"))
        emit = _to_nobody if call.stream else None
        if self._accounting is None:
            return await self._computed_answer(again, emit)
        answers: list[Answer] = []

        async def complete(call: Call, emit: Emit | None) -> Completion:
            answers.append(await self._computed_answer(call, emit))
            return answers[0].completion

        await self._accounting.recorded(again, emit, complete)
        return answers[0]

    def _forward(self, call: Call, emit: Emit | None) -> Coroutine[Any, Any, Completion]:
        """Have an instance answer, with money reserved for it where there are budgets."""
        if self._accounting is None:
            return self._route(call, emit)
        return self._accounting.forwarded(call, emit, self._route)

    async def _route(self, call: Call, emit: Emit | None) -> Completion:
        """Hand the call to an instance; one that cannot be reached is replaced by another until the bound."""
        loop = asyncio.get_running_loop()
        trace = call.trace
        balancer = self._balancer
        relay = None if emit is None else Relay(emit, self._compute)
        failovers_left = self._spec.max_failovers
        while True:
            balancing_since_s = loop.time()
            await self._compute.use("forward", call.size_bytes / BYTES_PER_KB)
            instance_id = balancer.select_instance()
            if instance_id is None:
                raise NoInstance("no instance is ready; try again later")
            trace.instance = instance_id
            balancer.started(instance_id)
            sent_s = loop.time()
            trace.balance_s += sent_s - balancing_since_s
            ok = False
            try:
                completion = await self._ports[instance_id].complete(call, relay)
                ok = True
                return completion
            except ConnectionFailed:
                if failovers_left == 0 or (relay is not None and relay.started):
                    raise
                failovers_left -= 1
            finally:
                balancer.finished(instance_id, loop.time() - sent_s, ok)


async def _to_nobody(_chunk: Chunk) -> None:
    """Where the events of an answer go that is kept for later."""
