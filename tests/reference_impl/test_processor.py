"""The processor's attempts, waits, time-outs and accounts, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference_impl.concurrency import BatchFailed
from reference_impl.deployment import RetrySpec
from reference_impl.errors import (
    ConnectionFailed,
    InvalidRequest,
    Overloaded,
    RateLimited,
    Rejected,
    RequestTimeout,
    ServiceError,
    StreamBroken,
    UpstreamFailed,
)
from reference_impl.instances.slots import Slots
from reference_impl.messages import Call, Chunk, Completion, Emit, Usage
from reference_impl.overload.breaker import BreakerState, CircuitBreaker
from reference_impl.processor import AsyncLLMProcessor
from reference_impl.telemetry import RequestTrace
from simulation.kernel import run
from tests.reference_impl.calls import (
    ANSWER,
    ScriptedPort,
    Step,
    answer,
    fail,
    make_call,
    stage_sum_s,
    stream,
)

T = TypeVar("T")

START = Chunk(b"start", content=False)
HELLO = Chunk(b"hello")
WORLD = Chunk(b"world")
GENEROUS = RetrySpec(max_attempts=4, backoff_s=1.0, backoff_max_s=4.0, budget_reserve_per_s=10.0)


def half(purpose: str, request_id: int, attempt: int) -> float:
    return 0.5


def processor(*steps: Step, **options: Any) -> tuple[AsyncLLMProcessor, ScriptedPort]:
    port = ScriptedPort(*steps)
    settled: dict[str, Any] = {"retry": GENEROUS, "uniform": half} | options
    return AsyncLLMProcessor(port=port, **settled), port


async def collect(
    subject: AsyncLLMProcessor, call: Call, **options: Any
) -> tuple[list[Chunk], ServiceError | None]:
    """The chunks that a client of `subject` sees, and how it failed, if it did."""
    chunks: list[Chunk] = []

    async def emit(chunk: Chunk) -> None:
        chunks.append(chunk)

    try:
        await subject.complete(call, emit, **options)
    except ServiceError as error:
        return chunks, error
    return chunks, None


def elapsed(main: Callable[[], Awaitable[T]]) -> tuple[T, float]:
    """Run in virtual time; the result and the seconds that passed."""

    async def timed() -> tuple[T, float]:
        result = await main()
        return result, asyncio.get_running_loop().time()

    return run(timed())


# Attempts and waits


def test_an_answer_takes_one_attempt_and_its_own_time() -> None:
    subject, _port = processor(answer(after_s=2.0))
    call = make_call()
    completion, passed_s = elapsed(lambda: subject.complete(call))
    assert completion is ANSWER
    assert passed_s == 2.0
    assert call.trace == RequestTrace(attempts=1, llm_first_token_s=2.0)


def test_waits_double_with_full_jitter() -> None:
    subject, port = processor(
        fail(Overloaded("busy")),
        fail(UpstreamFailed("oops")),
        fail(ConnectionFailed("gone")),
        answer(),
    )
    call = make_call()
    run(subject.complete(call))
    assert port.started_s == pytest.approx([0.0, 0.5, 1.5, 3.5])
    assert port.attempts == [0, 1, 2, 3]
    assert call.trace == RequestTrace(attempts=4, retry_wait_s=3.5)


def test_each_retry_draws_its_own_jitter_by_request_and_attempt() -> None:
    drawn: list[tuple[str, int, int]] = []

    def uniform(purpose: str, request_id: int, attempt: int) -> float:
        drawn.append((purpose, request_id, attempt))
        return 0.5

    subject, _ = processor(
        fail(Overloaded("busy")), fail(Overloaded("busy")), answer(), uniform=uniform
    )
    run(subject.complete(make_call(request_id=77)))
    assert drawn == [("backoff", 77, 0), ("backoff", 77, 1)]


def test_retry_after_is_honoured_to_the_second() -> None:
    subject, port = processor(fail(RateLimited("slow down", retry_after_s=7.25)), answer())
    run(subject.complete(make_call()))
    assert port.started_s == [0.0, 7.25]


def test_a_peer_that_asks_for_a_very_long_wait_gets_no_retry() -> None:
    subject, port = processor(fail(RateLimited("tomorrow", retry_after_s=61.0)), answer())
    with pytest.raises(RateLimited, match="tomorrow"):
        run(subject.complete(make_call()))
    assert port.attempts == [0]


def test_the_last_attempts_error_is_the_callers() -> None:
    errors = [Overloaded("first"), UpstreamFailed("second"), RateLimited("third"), Overloaded("x")]
    subject, port = processor(*(fail(error) for error in errors))
    with pytest.raises(Overloaded) as caught:
        run(subject.complete(make_call()))
    assert caught.value is errors[-1]
    assert len(port.attempts) == GENEROUS.max_attempts


@pytest.mark.parametrize("error", [InvalidRequest("no such field"), Rejected("queue is full")])
def test_what_cannot_help_is_not_tried_again(error: ServiceError) -> None:
    subject, port = processor(fail(error), answer())
    with pytest.raises(type(error)):
        run(subject.complete(make_call()))
    assert port.attempts == [0]


def test_a_defect_is_neither_retried_nor_renamed() -> None:
    subject, _port = processor(fail(KeyError("bug"), after_s=1.0), answer())
    call = make_call()
    with pytest.raises(KeyError, match="bug"):
        run(subject.complete(call))
    assert call.trace == RequestTrace(attempts=1, failed_attempts_s=1.0)


# Time-outs and deadlines


def test_an_attempt_that_takes_too_long_is_ended_and_tried_again() -> None:
    retry = GENEROUS.model_copy(update={"attempt_timeout_s": 3.0})
    subject, port = processor(answer(after_s=100.0), answer(after_s=1.0), retry=retry)
    call = make_call()
    _, passed_s = elapsed(lambda: subject.complete(call))
    assert port.started_s == [0.0, 3.5]
    assert passed_s == 4.5
    assert port.in_flight == 0
    assert call.trace == RequestTrace(
        attempts=2, failed_attempts_s=3.0, retry_wait_s=0.5, llm_first_token_s=1.0
    )


def test_an_answer_at_the_very_instant_of_the_time_out_is_a_time_out() -> None:
    retry = RetrySpec(max_attempts=1, attempt_timeout_s=3.0)
    subject, _ = processor(answer(after_s=3.0), retry=retry)
    with pytest.raises(RequestTimeout, match="the attempt's limit"):
        run(subject.complete(make_call()))


def test_no_wait_reaches_beyond_the_callers_deadline() -> None:
    subject, port = processor(fail(Overloaded("busy", retry_after_s=10.0), after_s=1.0), answer())

    async def main() -> None:
        await subject.complete(make_call(deadline_s=11.0))

    with pytest.raises(Overloaded, match="busy"):
        run(main(), until=1.0)
    assert port.attempts == [0]


def test_the_deadline_ends_an_attempt_and_leaves_no_time_for_another() -> None:
    subject, port = processor(answer(after_s=10.0), answer())
    call = make_call(deadline_s=4.0)

    async def main() -> tuple[ServiceError | None, float]:
        _, error = await collect(subject, call)
        return error, asyncio.get_running_loop().time()

    error, passed_s = run(main())
    assert isinstance(error, RequestTimeout)
    assert "the request's deadline" in error.message
    assert passed_s == 4.0
    assert port.attempts == [0]


def test_a_call_whose_deadline_has_passed_makes_no_attempt() -> None:
    subject, port = processor(answer())

    async def main() -> None:
        await asyncio.sleep(5.0)
        await subject.complete(make_call(deadline_s=5.0))

    with pytest.raises(RequestTimeout, match="before the first attempt"):
        run(main())
    assert port.attempts == []


def test_a_cancellation_is_not_taken_for_a_time_out() -> None:
    retry = RetrySpec(attempt_timeout_s=5.0)
    subject, port = processor(answer(after_s=100.0), retry=retry)
    call = make_call()

    async def main() -> bool:
        task = asyncio.create_task(subject.complete(call))
        await asyncio.sleep(2.0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run(main())
    assert port.in_flight == 0
    assert subject.statistics().in_flight == 0
    assert call.trace == RequestTrace(attempts=1, failed_attempts_s=2.0)


def test_a_cancellation_at_the_instant_of_the_time_out_wins() -> None:
    retry = RetrySpec(attempt_timeout_s=2.0)
    subject, _ = processor(answer(after_s=100.0), retry=retry)

    async def main() -> bool:
        task = asyncio.create_task(subject.complete(make_call()))
        await asyncio.sleep(2.0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run(main())


def test_a_time_out_leaves_an_enclosing_time_out_intact() -> None:
    retry = RetrySpec(max_attempts=2, attempt_timeout_s=2.0, backoff_s=1.0)
    subject, _ = processor(answer(after_s=100.0), retry=retry)

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3.0):
                await subject.complete(make_call())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return asyncio.get_running_loop().time()

    assert run(main()) == 3.0


def test_a_finished_call_leaves_no_timer_behind() -> None:
    retry = RetrySpec(attempt_timeout_s=3600.0)
    subject, _ = processor(answer(after_s=1.0), retry=retry)
    _, passed_s = elapsed(lambda: subject.complete(make_call()))
    assert passed_s == 1.0


# Streams


def test_a_stream_is_split_at_its_first_content() -> None:
    subject, _ = processor(stream(1.0, START, 2.0, HELLO, 4.0, WORLD, 0.5))
    call = make_call(stream=True)
    chunks, error = run(collect(subject, call))
    assert error is None
    assert chunks == [START, HELLO, WORLD]
    assert call.trace == RequestTrace(attempts=1, llm_first_token_s=3.0, llm_stream_s=4.5)


def test_a_stream_that_fails_before_content_is_tried_again_and_begins_once() -> None:
    subject, _ = processor(
        stream(1.0, START, 1.0, Overloaded("busy")), stream(START, 2.0, HELLO, WORLD)
    )
    call = make_call(stream=True)
    chunks, error = run(collect(subject, call))
    assert error is None
    assert chunks == [START, HELLO, WORLD]
    assert call.trace == RequestTrace(
        attempts=2, failed_attempts_s=2.0, retry_wait_s=0.5, llm_first_token_s=2.0
    )


def test_nothing_is_tried_again_once_content_was_seen() -> None:
    subject, port = processor(stream(START, 1.0, HELLO, 1.0, StreamBroken("cut")), answer())
    call = make_call(stream=True)
    chunks, error = run(collect(subject, call))
    assert isinstance(error, StreamBroken)
    assert chunks == [START, HELLO]
    assert port.attempts == [0]
    assert call.trace == RequestTrace(attempts=1, failed_attempts_s=2.0)


def test_any_failure_after_content_is_a_broken_stream() -> None:
    subject, _ = processor(stream(HELLO, Overloaded("busy", request_id="req_7")))
    _, error = run(collect(subject, make_call(stream=True)))
    assert isinstance(error, StreamBroken)
    assert isinstance(error.__cause__, Overloaded)
    assert error.request_id == "req_7"


def test_a_time_out_after_content_is_a_broken_stream() -> None:
    retry = RetrySpec(attempt_timeout_s=3.0)
    subject, port = processor(stream(1.0, HELLO, 100.0), retry=retry)
    _, error = run(collect(subject, make_call(stream=True)))
    assert isinstance(error, StreamBroken)
    assert "the attempt's limit" in error.message
    assert port.attempts == [0]


def test_an_answer_without_content_is_passed_on_when_it_is_complete() -> None:
    subject, _ = processor(stream(1.0, START, 1.0))
    call = make_call(stream=True)
    chunks, error = run(collect(subject, call))
    assert error is None
    assert chunks == [START]
    assert call.trace.llm_first_token_s == 2.0


def test_a_client_that_fails_to_take_a_chunk_ends_the_attempt() -> None:
    subject, port = processor(stream(HELLO, WORLD))

    async def emit(chunk: Chunk) -> None:
        raise ConnectionResetError("client has left")

    with pytest.raises(ConnectionResetError):
        run(subject.complete(make_call(stream=True), emit))
    assert port.attempts == [0]


# Slots


def test_a_slot_is_given_back_during_the_wait_and_taken_again() -> None:
    async def main() -> tuple[list[tuple[float, str]], RequestTrace]:
        loop = asyncio.get_running_loop()
        slots = Slots(1, 10)
        subject, _ = processor(
            fail(Overloaded("busy", retry_after_s=4.0), after_s=1.0), answer(after_s=1.0)
        )
        seen: list[tuple[float, str]] = []
        call = make_call()

        async def other() -> None:
            lease = slots.lease(RequestTrace())
            await lease.acquire()
            seen.append((loop.time(), "other has it"))
            await asyncio.sleep(6.0)
            lease.release()

        lease = slots.lease(call.trace)
        await lease.acquire()
        waiting = asyncio.create_task(other())
        await subject.complete(call, None, lease)
        seen.append((loop.time(), "answered"))
        lease.release()
        await waiting
        assert slots.statistics().busy == 0
        return seen, call.trace

    seen, trace = run(main())
    # The retry was due at 5, but the other kept the slot until 7.
    assert seen == [(1.0, "other has it"), (8.0, "answered")]
    assert trace == RequestTrace(
        attempts=2,
        failed_attempts_s=1.0,
        retry_wait_s=4.0,
        instance_wait_s=2.0,
        llm_first_token_s=1.0,
    )


@pytest.mark.parametrize("cancel_at_s", [0.5, 1.0, 3.0, 5.0, 6.0])
def test_a_slot_is_free_after_a_cancellation_at_any_stage(cancel_at_s: float) -> None:
    """Invariant 6."""

    async def main() -> tuple[int, RequestTrace]:
        slots = Slots(1, 10)
        subject, _ = processor(
            fail(Overloaded("busy", retry_after_s=4.0), after_s=1.0), answer(after_s=2.0)
        )
        trace = RequestTrace()

        async def holder() -> None:
            lease = slots.lease(trace)
            await lease.acquire()
            try:
                await subject.complete(make_call(trace=trace), None, lease)
            finally:
                lease.release()

        task = asyncio.create_task(holder())
        await asyncio.sleep(cancel_at_s)
        task.cancel()
        await asyncio.wait([task])
        return slots.statistics().busy, trace

    busy, trace = run(main())
    assert busy == 0
    assert stage_sum_s(trace) == pytest.approx(cancel_at_s)


# Budget and breaker


def test_a_failing_peer_sees_no_more_than_the_budget_allows() -> None:
    retry = RetrySpec(max_attempts=3, budget_fraction=0.2, budget_reserve_per_s=0.0)
    subject, port = processor(fail(Overloaded("busy", retry_after_s=0.0)), retry=retry)

    async def main() -> None:
        for index in range(100):
            await collect(subject, make_call(request_id=index))

    run(main())
    statistics = subject.statistics()
    assert statistics.requests == 100
    assert statistics.attempts == len(port.attempts) == 120
    assert statistics.retries == 20
    assert statistics.denied > 0


def tripped(**options: Any) -> CircuitBreaker:
    return CircuitBreaker(min_calls=2, open_s=10.0, jitter=0.0, probes=1, **options)


def test_an_open_breaker_rejects_without_an_attempt_and_says_how_long() -> None:
    breaker = tripped()
    retry = RetrySpec(max_attempts=1)
    subject, port = processor(fail(UpstreamFailed("oops")), retry=retry, breaker=breaker)

    async def main() -> ServiceError | None:
        for _ in range(2):
            await collect(subject, make_call())
        await asyncio.sleep(4.0)
        _, error = await collect(subject, make_call())
        return error

    error = run(main())
    assert isinstance(error, Rejected)
    assert (error.status, error.retry_after_s, error.retryable) == (503, 6.0, False)
    assert len(port.attempts) == 2


def test_a_breaker_that_opens_ends_the_retries_at_once_with_their_own_error() -> None:
    subject, port = processor(
        fail(UpstreamFailed("oops")), fail(UpstreamFailed("again")), breaker=tripped()
    )
    # The second attempt fails at 0.5 s and opens the breaker for longer than the next wait of 1 s.
    (_, error), passed_s = elapsed(lambda: collect(subject, make_call()))
    assert error is not None
    assert error.message == "again"
    assert passed_s == 0.5
    assert len(port.attempts) == 2


def test_a_breaker_that_others_opened_meanwhile_lets_no_attempt_begin() -> None:
    breaker = tripped()
    subject, port = processor(fail(UpstreamFailed("oops")), answer(), breaker=breaker)

    async def main() -> ServiceError | None:
        call = asyncio.create_task(collect(subject, make_call()))
        await asyncio.sleep(0.25)
        breaker.failed(breaker.try_acquire(0.25), 0.25, 0.5)
        _, error = await call
        return error

    error = run(main())
    assert error is not None
    assert error.message == "oops"
    assert len(port.attempts) == 1


@pytest.mark.parametrize(
    "error", [RateLimited("slow down"), InvalidRequest("no"), Rejected("full")]
)
def test_refusals_that_concern_the_caller_do_not_open_the_breaker(error: ServiceError) -> None:
    breaker = tripped()
    retry = RetrySpec(max_attempts=1)
    subject, _ = processor(fail(error), retry=retry, breaker=breaker)

    async def main() -> None:
        for _ in range(10):
            await collect(subject, make_call())

    run(main())
    assert breaker.state is BreakerState.CLOSED


def test_a_caller_in_a_hurry_says_nothing_about_the_peer() -> None:
    breaker = tripped()
    subject, _ = processor(answer(after_s=10.0), breaker=breaker)

    async def main() -> None:
        for deadline_s in range(1, 11):
            _, error = await collect(subject, make_call(deadline_s=float(deadline_s)))
            assert isinstance(error, RequestTimeout)

    run(main())
    assert breaker.state is BreakerState.CLOSED


def test_a_cancelled_probe_makes_room_for_the_next() -> None:
    breaker = tripped()
    retry = RetrySpec(max_attempts=1)
    subject, _ = processor(
        fail(UpstreamFailed("x")), fail(UpstreamFailed("x")), answer(after_s=5.0), retry=retry,
        breaker=breaker,
    )  # fmt: skip

    async def main() -> Completion:
        for _ in range(2):
            await collect(subject, make_call())
        await asyncio.sleep(10.0)
        probe = asyncio.create_task(subject.complete(make_call()))
        await asyncio.sleep(1.0)
        probe.cancel()
        await asyncio.wait([probe])
        return await subject.complete(make_call())

    assert run(main()) is ANSWER
    assert breaker.state is BreakerState.CLOSED


# Accounts


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ok", "overloaded", "limited", "hang", "broken", "late error"]),
            st.floats(0.0, 4.0),
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
    st.one_of(st.none(), st.floats(0.1, 20.0)),
)
def test_the_stages_add_up_to_the_latency_whatever_happens(
    script: list[tuple[str, float]], streamed: bool, deadline_s: float | None
) -> None:
    """Invariant 2 for the processor's share."""
    steps: dict[str, Callable[[float], Step]] = {
        "ok": lambda s: stream(s, HELLO, s, WORLD) if streamed else answer(after_s=s),
        "overloaded": lambda s: fail(Overloaded("busy"), after_s=s),
        "limited": lambda s: fail(RateLimited("slow", retry_after_s=s), after_s=s),
        "hang": lambda s: answer(after_s=1000.0),
        "broken": lambda s: stream(s, HELLO, s, StreamBroken("cut")) if streamed else answer(s),
        "late error": lambda s: fail(InvalidRequest("no"), after_s=s),
    }
    retry = GENEROUS.model_copy(update={"attempt_timeout_s": 3.0})
    subject, port = processor(*(steps[kind](s) for kind, s in script), retry=retry)
    call = make_call(stream=streamed)
    if deadline_s is not None:
        call.deadline_s = deadline_s

    async def main() -> float:
        await collect(subject, call)
        return asyncio.get_running_loop().time()

    latency_s = run(main())
    trace = call.trace
    assert stage_sum_s(trace) == pytest.approx(latency_s, abs=1e-9)
    assert trace.attempts == len(port.attempts)
    for stage_s in (
        trace.retry_wait_s,
        trace.failed_attempts_s,
        trace.llm_first_token_s,
        trace.llm_stream_s,
    ):
        assert stage_s >= 0.0
    if deadline_s is not None:
        assert latency_s <= deadline_s + 1e-9


def test_the_price_of_an_answer_is_written_down() -> None:
    def price(model: str, usage: Usage) -> float:
        return usage.input_tokens * 1e-6 + usage.output_tokens * 5e-6

    subject, _ = processor(answer(), price=price)
    call = make_call()
    run(subject.complete(call))
    assert call.trace.cost_usd == pytest.approx(35e-6)


# Prompts


def text_answer(call: Call, *, after_s: float = 0.0) -> Completion:
    prompt = call.body.split(b'"content":"')[1].split(b'"')[0]
    body = b'{"content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"%b"},' % prompt
    body += b'{"type":"text","text":"!"}]}'
    return Completion(usage=Usage(), body=body)


def echoing(after_s: float, failing: frozenset[str] = frozenset()) -> Step:
    async def step(call: Call, emit: Emit | None) -> Completion:
        await asyncio.sleep(after_s)
        for prompt in failing:
            if b'"%b"' % prompt.encode() in call.body:
                raise InvalidRequest(f"{prompt} is refused")
        return text_answer(call)

    return step


def test_a_single_prompt_gets_the_text_without_the_thinking() -> None:
    subject, _ = processor(echoing(1.0))
    assert run(subject.process_single("hello")) == "hello!"


def test_an_answer_that_is_not_a_message_is_the_peers_failure() -> None:
    async def step(call: Call, emit: Emit | None) -> Completion:
        return Completion(usage=Usage(), body=b"<html>")

    subject, _ = processor(step)
    with pytest.raises(UpstreamFailed, match="not a message"):
        run(subject.process_single("hello"))


def test_a_batch_keeps_its_order_and_its_bound() -> None:
    subject, port = processor(echoing(1.0), concurrency=20)
    prompts = [f"p{i}" for i in range(200)]
    texts, passed_s = elapsed(lambda: subject.process_batch(prompts))
    assert texts == [f"{prompt}!" for prompt in prompts]
    assert port.most_in_flight == 20
    assert passed_s == 10.0


def test_one_failure_does_not_lose_the_others_results() -> None:
    subject, _ = processor(echoing(1.0, frozenset({"p17"})), concurrency=50)
    prompts = [f"p{i}" for i in range(200)]
    with pytest.raises(BatchFailed, match=r"1 of 200 items failed \(first: item 17") as caught:
        run(subject.process_batch(prompts))
    failed = caught.value
    assert list(failed.failures) == [17]
    assert isinstance(failed.failures[17], InvalidRequest)
    expected: list[str | None] = [f"{prompt}!" for prompt in prompts]
    expected[17] = None
    assert failed.results == expected


def test_failures_can_take_the_places_of_their_results() -> None:
    subject, _ = processor(echoing(0.0, frozenset({"b"})))
    texts = run(subject.process_batch(["a", "b", "c"], return_exceptions=True))
    assert (texts[0], texts[2]) == ("a!", "c!")
    assert isinstance(texts[1], InvalidRequest)


def test_a_prompt_that_waits_for_its_retry_leaves_its_place_to_another() -> None:
    subject, port = processor(
        fail(RateLimited("slow", retry_after_s=10.0), after_s=1.0), echoing(1.0), concurrency=1
    )
    texts = run(subject.process_batch(["a", "b", "c"]))
    assert texts == ["a!", "b!", "c!"]
    assert port.started_s == [0.0, 1.0, 2.0, 11.0]
    assert port.most_in_flight == 1


def test_an_empty_batch_is_an_empty_list() -> None:
    subject, _ = processor(echoing(1.0))
    assert run(subject.process_batch([])) == []


def test_a_single_text_is_not_taken_for_a_batch_of_letters() -> None:
    subject, port = processor(echoing(1.0))
    with pytest.raises(TypeError, match="process_single"):
        run(subject.process_batch("hello"))
    assert port.attempts == []


def test_a_cancelled_batch_leaves_nothing_in_flight() -> None:
    subject, port = processor(echoing(10.0))

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await subject.process_batch([str(i) for i in range(50)])

    run(main())
    assert port.in_flight == 0


def test_a_processor_serves_one_loop_after_another() -> None:
    subject, _ = processor(echoing(1.0), concurrency=1)
    for _ in range(2):
        assert run(subject.process_batch(["a", "b"])) == ["a!", "b!"]


def test_leaving_the_context_closes_the_port() -> None:
    subject, port = processor(answer())

    async def main() -> None:
        async with subject:
            pass

    run(main())
    assert port.closed


@pytest.mark.parametrize(
    ("options", "name"), [({"concurrency": 0}, "concurrency"), ({"max_tokens": 0}, "max_tokens")]
)
def test_impossible_settings_are_refused_by_name(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        processor(answer(), **options)
