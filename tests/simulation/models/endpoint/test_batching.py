"""The self-hosted engine, against sums done by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from reference_impl.errors import InvalidRequest, Overloaded
from simulation.kernel import run
from simulation.models.llm_endpoint import LLMEndpoint
from simulation.scenario.endpoint import EndpointProfile
from tests.simulation.models.endpoint.calls import Seen, offered, profile, tagged


def _engine(**changes: Any) -> EndpointProfile:
    service = {
        "kind": "self_hosted",
        "max_num_seqs": 4,
        "prefill_tokens_per_s": 1_000,
        "decode_base_s": 0.02,
        "decode_per_sequence_s": 0.01,
        "kv_cache_tokens": 10_000,
        **changes,
    }
    return profile(service=service)


def _times(
    engine: EndpointProfile, arrivals: list[tuple[float, int, int]]
) -> tuple[list[float], int]:
    """Seconds that calls (instant, prompt tokens, output tokens) take, and preemptions."""

    async def main() -> tuple[list[float], int]:
        endpoint = LLMEndpoint(engine, 1)
        calls = [
            (at_s, tagged(row, tokens_in=tokens_in, out=out))
            for row, (at_s, tokens_in, out) in enumerate(arrivals)
        ]
        await offered(endpoint, calls)
        statistics = endpoint.engine_statistics()[""]
        assert (statistics.running, statistics.waiting, statistics.kv_tokens) == (0, 0, 0)
        return [call.trace.endpoint_s for _, call in calls], statistics.preemptions

    return run(main())


def test_one_sequence_takes_its_prefill_and_a_step_for_each_token() -> None:
    times, _ = _times(_engine(), [(0.0, 500, 10)])
    # The step that carries the prompt yields the first token.
    assert times == pytest.approx([0.5 + 10 * 0.03])


def test_a_batch_shares_its_steps() -> None:
    times, _ = _times(_engine(), [(0.0, 0, 10), (0.0, 0, 10), (0.0, 0, 10)])
    # The first one's step had begun when the others arrived.
    step_1, step_3, step_2 = 0.03, 0.05, 0.04
    assert times[0] == pytest.approx(step_1 + 9 * step_3)
    assert times[1] == times[2] == pytest.approx(step_1 + 9 * step_3 + step_2)


def test_a_newcomer_joins_at_the_next_step_boundary_and_its_prefill_delays_everybody() -> None:
    times, _ = _times(_engine(), [(0.0, 0, 100), (1.0, 1_000, 2)])
    # 34 steps of 0.03 are over at 1.02; then one of 0.04 with 1 s of prefill, and one of 0.04.
    assert times[1] == pytest.approx(0.02 + 1.04 + 0.04)
    assert times[0] == pytest.approx(1.02 + 1.04 + 0.04 + 64 * 0.03)


def test_beyond_the_batch_size_calls_wait_in_order() -> None:
    times, _ = _times(_engine(max_num_seqs=1), [(0.0, 0, 10), (0.0, 0, 10), (0.0, 0, 10)])
    assert times == pytest.approx([0.3, 0.6, 0.9])


def test_a_full_kv_cache_preempts_the_last_comer_which_is_recomputed() -> None:
    small = _engine(kv_cache_tokens=200, decode_per_sequence_s=0.0)
    times, preemptions = _times(small, [(0.0, 80, 60), (0.0, 80, 60)])
    assert preemptions == 1
    # Neither could run beside the other to the end: 2 * (80 + 60) > 200.
    assert times[0] == pytest.approx(0.08 + 0.08 + 60 * 0.02)
    assert times[1] > times[0] + 0.08


def test_a_call_that_can_never_fit_is_refused_and_so_is_one_beyond_the_queue() -> None:
    async def main() -> None:
        endpoint = LLMEndpoint(_engine(max_num_seqs=1, queue_limit=1, kv_cache_tokens=500), 1)
        with pytest.raises(InvalidRequest, match="KV cache"):
            endpoint.admit(tagged(0, tokens_in=499, out=10))
        tasks = [asyncio.create_task(endpoint.complete(tagged(row))) for row in (1, 2)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            endpoint.admit(tagged(3))
        for task in tasks:
            await task

    run(main())


def test_an_abandoned_sequence_frees_its_place_and_its_memory() -> None:
    async def main() -> float:
        endpoint = LLMEndpoint(_engine(max_num_seqs=1), 1)
        first = asyncio.create_task(endpoint.complete(tagged(1, tokens_in=0, out=1_000)))
        second = asyncio.create_task(endpoint.complete(tagged(2, tokens_in=0, out=10)))
        await asyncio.sleep(1.0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        statistics = endpoint.engine_statistics()[""]
        assert (statistics.running, statistics.kv_tokens) == (0, 0)
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(1.0 + 10 * 0.03, abs=0.03)


def test_strides_and_single_steps_give_the_same_instants_under_preemption() -> None:
    async def main(detail: str) -> list[float]:
        small = _engine(kv_cache_tokens=600)
        endpoint = LLMEndpoint(small, 1, detail=detail)  # type: ignore[arg-type]

        async def one(row: int) -> float:
            await asyncio.sleep(row * 0.217)
            seen = Seen()
            call = tagged(row, tokens_in=50 + row, out=40 + 7 * (row % 9), stream=True)
            await endpoint.complete(call, seen.emit)
            return seen.instants_s[-1]

        tasks = [asyncio.create_task(one(row)) for row in range(60)]
        ends = [await task for task in tasks]
        assert endpoint.engine_statistics()[""].preemptions > 0
        return ends

    assert run(main("chunks")) == pytest.approx(run(main("ends")), abs=1e-9)


def test_throughput_rises_with_the_batch_up_to_its_limit() -> None:
    def tokens_per_s(n: int) -> float:
        times, _ = _times(_engine(max_num_seqs=64, kv_cache_tokens=100_000), [(0.0, 0, 200)] * n)
        return n * 200 / max(times)

    # n tokens in a + b n seconds.
    for n in (1, 8, 64):
        assert tokens_per_s(n) == pytest.approx(n / (0.02 + 0.01 * n), rel=0.01)
