"""When tokens come."""

from __future__ import annotations

import asyncio
import itertools
import statistics

import pytest

from simulation.kernel import run
from simulation.models.endpoint.timing import GapTable
from simulation.models.llm_endpoint import LLMEndpoint
from simulation.scenario.endpoint import ProviderService, load_profile
from tests.simulation.models.endpoint.calls import Records, Seen, offered, profile, tagged


def test_a_whole_answer_takes_the_first_token_and_the_rest_at_the_rate() -> None:
    async def main() -> float:
        call = tagged(1, out=11)
        await LLMEndpoint(profile(), 1).complete(call)
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)
        return call.trace.endpoint_s

    assert run(main()) == pytest.approx(1.0 + 10 / 10)


def test_prefill_adds_to_the_first_token() -> None:
    service = {
        "kind": "provider",
        "ttft_s": 1.0,
        "tokens_per_s": 10,
        "prefill_s_per_token": 0.001,
    }

    async def main() -> list[float]:
        seen = Seen()
        endpoint = LLMEndpoint(profile(service=service), 1)
        await endpoint.complete(tagged(1, tokens_in=500, out=11, stream=True), seen.emit)
        return seen.instants_s

    assert run(main()) == pytest.approx([1.5, 2.5])


@pytest.mark.parametrize("name", ["sonnet-class", "vllm-h100", "fast"])
def test_a_stream_begins_and_ends_at_the_same_instants_as_two_events_and_chunk_by_chunk(
    name: str,
) -> None:
    async def main(detail: str) -> list[tuple[float, float]]:
        endpoint = LLMEndpoint(load_profile(name), 3, detail=detail)  # type: ignore[arg-type]

        async def one(row: int) -> tuple[float, float]:
            await asyncio.sleep(row * 0.05)
            seen = Seen()
            await endpoint.complete(tagged(row, out=20 + row, stream=True), seen.emit)
            expected = 2 if detail == "ends" else 20 + row
            assert len(seen.chunks) == expected
            assert seen.instants_s == sorted(seen.instants_s)
            return seen.instants_s[0], seen.instants_s[-1]

        tasks = [asyncio.create_task(one(row)) for row in range(30)]
        return [await task for task in tasks]

    ends, chunks = run(main("ends")), run(main("chunks"))
    assert [pytest.approx(pair, abs=1e-9) for pair in chunks] == ends


def test_the_chunks_of_both_details_add_up_to_the_same_count() -> None:
    async def main() -> int:
        seen = Seen()
        await LLMEndpoint(profile(), 1).complete(tagged(1, out=37, stream=True), seen.emit)
        return sum(chunk.count for _, chunk in seen.chunks)

    assert run(main()) == 37


def test_the_luck_of_a_request_depends_on_seed_request_and_attempt_only() -> None:
    async def main(seed: int, rows: list[int], attempt: int = 0) -> dict[int, float]:
        endpoint = LLMEndpoint(load_profile("opus-class"), seed)
        calls = [tagged(row, attempt=attempt) for row in rows]
        for call in calls:
            await endpoint.complete(call)
        return {call.request_id: call.trace.endpoint_s for call in calls}

    forwards, backwards = run(main(7, [1, 2, 3])), run(main(7, [3, 2, 1]))
    assert {row: pytest.approx(s) for row, s in forwards.items()} == backwards
    assert run(main(8, [1]))[1] != pytest.approx(forwards[1])
    assert run(main(7, [1], attempt=1))[1] != pytest.approx(forwards[1])


def test_a_shipped_class_has_the_median_first_token_that_it_states() -> None:
    records = Records()

    async def main() -> None:
        endpoint = LLMEndpoint(load_profile("haiku-class"), 5, observer=records.observe)
        await offered(endpoint, [(0.0, tagged(row, tokens_in=0)) for row in range(4_000)])

    run(main())
    # Standard error of a lognormal's median: 1.25 sigma / sqrt(n), 0.9%.
    median = statistics.median(record.drawn_first_token_s for record in records)
    assert median == pytest.approx(0.6, rel=0.04)


def test_gaps_have_the_stated_spread_and_stalls() -> None:
    service = ProviderService.model_validate(
        {"ttft_s": 1, "tokens_per_s": 10, "gap_sigma": 0.4, "stall_fraction": 0.01, "stall_gaps": 4}
    )
    shares = GapTable(service).shares(0.0, 10_001)
    gaps = [b - a for a, b in itertools.pairwise(shares)]
    median = statistics.median(gaps)
    assert min(gaps) > 0
    assert sum(gaps) == pytest.approx(1.0)
    # P(gap > 4 medians) = P(Z > ln 4 / 0.4) + about half of the stalls.
    assert sum(gap > 4 * median for gap in gaps) / len(gaps) == pytest.approx(0.0053, abs=0.003)


def test_a_service_time_profile_takes_the_drawn_time_whatever_the_length() -> None:
    service = {"kind": "service_time", "service_s": {"kind": "exponential", "mean": 2.0}}

    async def main() -> list[float]:
        endpoint = LLMEndpoint(profile(service=service), 1)
        calls = [tagged(row, out=1 + row) for row in range(5_000)]
        await offered(endpoint, [(0.0, call) for call in calls])
        return [call.trace.endpoint_s for call in calls]

    assert statistics.mean(run(main())) == pytest.approx(2.0, rel=0.05)


def test_speedup_divides_every_time() -> None:
    async def main(speedup: float) -> float:
        call = tagged(1, out=11)
        await LLMEndpoint(profile(speedup=speedup), 1).complete(call)
        return call.trace.endpoint_s

    assert run(main(4.0)) == pytest.approx(run(main(1.0)) / 4)


def test_a_cancelled_call_ends_at_once_and_is_billed_for_what_was_produced() -> None:
    records = Records()

    async def main() -> None:
        endpoint = LLMEndpoint(profile(), 1, observer=records.observe)
        task = asyncio.create_task(endpoint.complete(tagged(1, out=21, stream=True), Seen().emit))
        await asyncio.sleep(2.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert endpoint.statistics().in_flight == 0
        assert endpoint.statistics().cancelled == 1

    run(main())
    assert (records[0].status, records[0].output_tokens) == (499, 11)
    assert records[0].endpoint_s == pytest.approx(2.0)


def test_a_call_that_is_cancelled_before_it_has_begun_leaves_nothing_admitted() -> None:
    async def main() -> None:
        endpoint = LLMEndpoint(profile(), 1)
        task = asyncio.create_task(endpoint.complete(tagged(1)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert endpoint.statistics().in_flight == 0

    run(main())
