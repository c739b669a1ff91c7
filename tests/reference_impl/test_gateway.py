"""The request path, in virtual time over scripted instances."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from reference_impl.answers import Answer
from reference_impl.balancer.load_balancer import LoadBalancer
from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.compute import InlineCompute
from reference_impl.database.accounting import Accounting
from reference_impl.database.connect import build_accounting
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.deployment import DatabaseSpec, GatewaySpec
from reference_impl.errors import (
    ConnectionFailed,
    EndpointUnreachable,
    NoInstance,
    RateLimited,
    Rejected,
    RequestTimeout,
    ServiceError,
)
from reference_impl.gateway import Gateway
from reference_impl.instances.port import InstanceMetrics
from reference_impl.messages import Chunk, Completion, Emit, Usage
from simulation.kernel import run
from tests.reference_impl.calls import ANSWER, ScriptedPort, Step, make_call


def answers_after(seconds: float, completion: Completion = ANSWER) -> Step:
    async def step(call: Any, emit: Emit | None) -> Completion:
        await asyncio.sleep(seconds)
        if emit is not None:
            await emit(Chunk(b"event: x\n\n"))
        return completion

    return step


def fails_with(error: Exception, after_chunk: bool = False) -> Step:
    async def step(call: Any, emit: Emit | None) -> Completion:
        if after_chunk and emit is not None:
            await emit(Chunk(b"event: x\n\n"))
        raise error

    return step


def gateway_over(
    *ports: ScriptedPort,
    cached: bool = False,
    refresh_ahead: float = 0.0,
    accounting: Accounting | None = None,
    policy: str = "round_robin",
    **spec: Any,
) -> Gateway:
    balancer = LoadBalancer(policy)
    by_id = {f"instance-{n}": port for n, port in enumerate(ports, start=1)}
    for instance_id in by_id:
        balancer.add_instance(InstanceMetrics(instance_id, capacity=10))
    cache: CacheLayer[Answer] | None = None
    if cached:
        cache = CacheLayer(60, refresh_ahead=refresh_ahead)
    return Gateway(
        GatewaySpec(**spec), balancer, by_id, InlineCompute(), cache=cache, accounting=accounting
    )


def in_virtual_time(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run(work())


async def outcome_of(answer: Awaitable[Completion]) -> object:
    try:
        return await answer
    except ServiceError as error:
        return type(error)


def test_a_call_is_answered_by_the_instance_that_the_balancer_names() -> None:
    async def work() -> None:
        gateway = gateway_over(ScriptedPort(answers_after(1)), ScriptedPort(answers_after(1)))
        calls = [make_call(request_id=n) for n in range(4)]
        for call in calls:
            assert await gateway.complete(call) == ANSWER
        assert [c.trace.instance for c in calls] == ["instance-1", "instance-2"] * 2

    in_virtual_time(work)


def test_beyond_its_bound_the_gateway_turns_calls_away_and_takes_new_ones_afterwards() -> None:
    async def work() -> None:
        gateway = gateway_over(ScriptedPort(answers_after(1)), max_in_flight=2)
        outcomes = await asyncio.gather(
            *(outcome_of(gateway.complete(make_call(request_id=n))) for n in range(3))
        )
        assert outcomes == [ANSWER, ANSWER, Rejected]
        assert await gateway.complete(make_call()) == ANSWER
        found = gateway.statistics()
        assert (found.arrivals, found.completed, found.rejected, found.in_flight) == (4, 3, 1, 0)

    in_virtual_time(work)


def test_a_call_that_takes_too_long_is_ended_and_its_instance_freed() -> None:
    async def work() -> None:
        port = ScriptedPort(answers_after(100))
        gateway = gateway_over(port, request_timeout_s=5)
        loop = asyncio.get_running_loop()
        with pytest.raises(RequestTimeout, match="within 5 s"):
            await gateway.complete(make_call())
        assert loop.time() == 5
        assert port.in_flight == 0
        assert gateway.statistics().in_flight == 0

    in_virtual_time(work)


def test_a_client_that_leaves_cancels_the_call_down_to_the_instance() -> None:
    async def work() -> None:
        port = ScriptedPort(answers_after(100))
        gateway = gateway_over(port)
        task = asyncio.create_task(gateway.complete(make_call()))
        await asyncio.sleep(1)
        assert port.in_flight == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        assert (port.in_flight, gateway.statistics().in_flight) == (0, 0)

    in_virtual_time(work)


def test_an_instance_that_cannot_be_reached_is_replaced_by_another() -> None:
    async def work() -> None:
        gateway = gateway_over(
            ScriptedPort(fails_with(ConnectionFailed("gone"))), ScriptedPort(answers_after(1))
        )
        call = make_call()
        assert await gateway.complete(call) == ANSWER
        assert call.trace.instance == "instance-2"

    in_virtual_time(work)


def test_failover_is_bounded() -> None:
    async def work() -> None:
        ports = [ScriptedPort(fails_with(ConnectionFailed("gone"))) for _ in range(5)]
        gateway = gateway_over(*ports, max_failovers=2)
        with pytest.raises(ConnectionFailed):
            await gateway.complete(make_call())
        assert sum(len(port.attempts) for port in ports) == 3

    in_virtual_time(work)


@pytest.mark.parametrize("error", [EndpointUnreachable("no endpoint"), RateLimited("slow down")])
def test_what_another_instance_could_not_do_better_is_not_tried_there(error: Exception) -> None:
    async def work() -> None:
        other = ScriptedPort(answers_after(1))
        gateway = gateway_over(ScriptedPort(fails_with(error)), other)
        with pytest.raises(type(error)):
            await gateway.complete(make_call())
        assert other.attempts == []

    in_virtual_time(work)


def test_once_content_was_delivered_nothing_is_tried_again() -> None:
    async def work() -> None:
        other = ScriptedPort(answers_after(1))
        gateway = gateway_over(
            ScriptedPort(fails_with(ConnectionFailed("gone"), after_chunk=True)), other
        )
        seen: list[Chunk] = []

        async def emit(chunk: Chunk) -> None:
            seen.append(chunk)

        with pytest.raises(ConnectionFailed):
            await gateway.complete(make_call(stream=True), emit)
        assert len(seen) == 1
        assert other.attempts == []

    in_virtual_time(work)


def test_without_a_ready_instance_the_client_is_told_to_come_back() -> None:
    async def work() -> None:
        with pytest.raises(NoInstance):
            await gateway_over().complete(make_call())

    in_virtual_time(work)


def test_equal_calls_at_the_same_time_make_one_call_and_later_ones_none() -> None:
    async def work() -> None:
        port = ScriptedPort(answers_after(1))
        gateway = gateway_over(port, cached=True)
        calls = [make_call(request_id=n, key="same") for n in range(3)]
        await asyncio.gather(*(gateway.complete(call) for call in calls))
        later = make_call(request_id=9, key="same")
        await gateway.complete(later)
        assert [c.trace.cache for c in [*calls, later]] == ["miss", "coalesced", "coalesced", "l1"]
        assert len(port.attempts) == 1
        assert (calls[0].trace.cache_s, calls[1].trace.cache_s, later.trace.cache_s) == (0, 1, 0)

    in_virtual_time(work)


def test_an_answer_that_was_streamed_is_given_again_whole() -> None:
    events = (
        b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","type":"message",'
        b'"role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,'
        b'"usage":{"input_tokens":1,"output_tokens":0}}}\n\n'
        b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        b'"content_block":{"type":"text","text":""}}\n\n'
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"hello"}}\n\n'
        b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},'
        b'"usage":{"output_tokens":1}}\n\n'
        b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )

    async def streams(call: Any, emit: Emit | None) -> Completion:
        assert emit is not None
        await emit(Chunk(events))
        return Completion(usage=Usage(output_tokens=1))

    async def work() -> None:
        gateway = gateway_over(ScriptedPort(streams), cached=True)
        delivered: list[bytes] = []

        async def emit(chunk: Chunk) -> None:
            delivered.append(chunk.data)

        await gateway.complete(make_call(stream=True, key="same"), emit)
        again = await gateway.complete(make_call(stream=False, key="same"))
        assert b'"text":"hello"' in again.body
        await gateway.complete(make_call(stream=True, key="same"), emit)
        assert delivered == [events, events]

    in_virtual_time(work)


@pytest.mark.parametrize("with_ledger", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_is_refreshed_ahead_of_its_expiry_is_heard_by_nobody_and_paid_for_apart(
    with_ledger: bool, stream: bool
) -> None:
    async def work() -> None:
        ledger = MemoryLedger()
        accounting = build_accounting(
            ledger, DatabaseSpec(), source="g", wall_clock=asyncio.get_running_loop().time
        )
        await accounting.start({"": 1.0})
        port = ScriptedPort(answers_after(1))
        gateway = gateway_over(
            port,
            cached=True,
            refresh_ahead=0.5,
            accounting=accounting if with_ledger else None,
        )
        heard: list[float] = []

        async def emit(_chunk: Chunk) -> None:
            heard.append(asyncio.get_running_loop().time())

        for at_s in (0, 40, 65):  # the second in the second half of its life, the third after it
            await asyncio.sleep(at_s - asyncio.get_running_loop().time())
            call = make_call(request_id=at_s, key="same", stream=stream)
            assert await gateway.complete(call, emit if stream else None) == ANSWER
            assert call.trace.cache == ("l1" if at_s else "miss")
        assert port.started_s == [0, 40]
        assert heard == ([1, 40, 65] if stream else [])
        await accounting.aclose()
        rows = [(row.at_s, row.cache, row.cost_nanousd) for row in ledger._entries.values()]
        paid = [(1, "miss", 35_000), (40, "l1", 0), (41, "miss", 35_000), (65, "l1", 0)]
        assert rows == (paid if with_ledger else [])
        (budget,) = await ledger.budgets()
        assert (budget.spent_nanousd, budget.held_nanousd) == (70_000 * with_ledger, 0)

    in_virtual_time(work)


def test_a_failure_is_not_cached() -> None:
    async def work() -> None:
        port = ScriptedPort(fails_with(RateLimited("slow down")), answers_after(1))
        gateway = gateway_over(port, cached=True)
        with pytest.raises(RateLimited):
            await gateway.complete(make_call(key="same"))
        assert await gateway.complete(make_call(key="same")) == ANSWER

    in_virtual_time(work)
