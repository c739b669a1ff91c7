"""Rate limits: what is accepted over time, what is told to those who are refused."""

from __future__ import annotations

import asyncio
import math

import pytest

from reference_impl.errors import RateLimited, ServiceError
from reference_impl.messages import Completion
from simulation.kernel import run
from simulation.models.endpoint.limits import Flow, TokenBucket
from simulation.models.llm_endpoint import LLMEndpoint
from simulation.scenario.endpoint import LIMIT_TIERS, EndpointProfile, LimitsSpec, load_profile
from tests.simulation.models.endpoint.accepted import accepted_per_min
from tests.simulation.models.endpoint.calls import Records, offered, profile, tagged

_TWO_MINUTES_S = 120.0


def _accepted(limited: EndpointProfile, per_s: float, tokens_in: int, out: int) -> Records:
    """Offer `per_s` requests a second for two minutes."""
    records = Records()

    async def main() -> None:
        endpoint = LLMEndpoint(limited, 1, observer=records.observe)
        count = int(per_s * _TWO_MINUTES_S)
        arrivals = [(i / per_s, tagged(i, tokens_in=tokens_in, out=out)) for i in range(count)]
        await offered(endpoint, arrivals)

    run(main())
    return records


def test_at_twice_the_request_limit_the_accepted_rate_is_the_limit_within_one_percent() -> None:
    limited = profile(limits={"requests_per_min": 1_000})
    records = _accepted(limited, 2 * 1_000 / 60, 10, 2)
    assert accepted_per_min(records, "requests") == pytest.approx(1_000, rel=0.01)
    assert {record.limit for record in records if record.status == 429} == {
        "This request would exceed your rate limit of requests per minute for this model."
    }


def test_at_twice_the_input_limit_the_accepted_tokens_are_the_limit_within_one_percent() -> None:
    limited = profile(limits={"input_tokens_per_min": 450_000})
    records = _accepted(limited, 2 * 450_000 / 60 / 600, 600, 2)
    assert accepted_per_min(records, "input_tokens") == pytest.approx(450_000, rel=0.01)


# Answers come long after their admission, so the bucket swings between plenty and debt; what is produced is what flows in.
@pytest.mark.parametrize("burst_s", [1, 10])
@pytest.mark.parametrize("name", ["even", "sonnet-class", "engine"])
def test_at_twice_the_output_limit_the_produced_tokens_are_the_limit_within_one_percent(
    name: str, burst_s: float
) -> None:
    limits = LimitsSpec(output_tokens_per_min=60_000, burst_s=burst_s)
    limited = {
        "even": profile(),
        "sonnet-class": load_profile("sonnet-class"),
        "engine": load_profile("vllm-h100"),
    }[name].model_copy(update={"limits": limits, "overload": None, "lines": {}})
    tokens = 11 if name == "even" else 40
    records = _accepted(limited, 2 * 1_000 / tokens, 10, tokens)
    assert accepted_per_min(records, "output_tokens") == pytest.approx(60_000, rel=0.01)
    assert {record.status for record in records} == {200, 429}


def test_who_waits_as_told_is_accepted_then() -> None:
    async def main() -> None:
        endpoint = LLMEndpoint(profile(limits={"requests_per_min": 6}), 1)
        first, second = await offered(endpoint, [(0.0, tagged(1)), (0.5, tagged(2))])
        assert isinstance(first, Completion)
        assert isinstance(second, RateLimited)
        assert second.retry_after_s == 10.0  # 9.5 s, in whole seconds
        loop = asyncio.get_running_loop()
        again = 0.5 + second.retry_after_s
        (third,) = await offered(endpoint, [(max(again, loop.time()), tagged(3))])
        assert isinstance(third, Completion)

    run(main())


def test_the_wait_that_is_told_covers_what_others_have_yet_to_produce() -> None:
    async def main() -> None:
        endpoint = LLMEndpoint(profile(limits={"output_tokens_per_min": 600}), 1)
        # Twenty a second flow out for twenty seconds, ten flow in.
        long = [(0.0, tagged(1, out=200)), (0.5, tagged(2, out=200))]
        *_, refused = await asyncio.gather(offered(endpoint, long), _outcome(endpoint, 5.0, 3))
        assert isinstance(refused, RateLimited)
        assert refused.retry_after_s == 35.0
        assert isinstance(await _outcome(endpoint, 39.0, 4), RateLimited)
        assert isinstance(await _outcome(endpoint, 5.0 + refused.retry_after_s, 5), Completion)

    run(main())


async def _outcome(endpoint: LLMEndpoint, at_s: float, row: int) -> Completion | ServiceError:
    (outcome,) = await offered(endpoint, [(at_s, tagged(row))])
    return outcome


def test_a_request_larger_than_the_bucket_passes_when_it_is_full_and_leaves_a_debt() -> None:
    bucket = TokenBucket(60_000, 1.0, 0.0)
    assert bucket.wait_s(5_000, 0.0) == 0.0
    bucket.take(5_000, 0.0)
    assert bucket.wait_s(1, 0.0) == pytest.approx(4.001)
    assert bucket.state(1.0).remaining == 0.0
    assert bucket.wait_s(1, 4.001) == 0.0


def test_output_flows_out_while_it_is_produced_and_stops_when_it_is_cut_off() -> None:
    bucket = TokenBucket(60, 10.0, 0.0)  # holds 10, refills 1 a second
    flow = Flow(2.0, 12.0, 3.0)
    bucket.drain(flow, 0.0)
    # The refill before the first token is not lost: the bucket then has 12.
    assert bucket.state(2.0).remaining == pytest.approx(60)
    assert bucket.state(4.0).remaining == pytest.approx(60 * 0.8)  # 12 - 2 * (3 - 1)
    bucket.stop(flow, 5.0)
    assert bucket.state(7.0).remaining == pytest.approx(60 * 0.8)  # 6 at 5.0, then 1 a second
    assert bucket.state(60.0).remaining == pytest.approx(60)


def test_an_answer_that_never_comes_leaves_no_more_than_a_full_bucket() -> None:
    bucket = TokenBucket(60, 10.0, 0.0)
    flow = Flow(100.0, 200.0, 1.0)
    bucket.drain(flow, 0.0)
    bucket.stop(flow, 50.0)
    bucket.take(10.0, 50.0)
    assert bucket.state(50.0).remaining == 0.0
    assert bucket.state(55.0).remaining == pytest.approx(30)
    assert bucket.state(500.0).remaining == 60.0


def test_cached_input_is_free_of_the_input_limit() -> None:
    limited = profile(
        limits={"input_tokens_per_min": 60_000}, prompt_cache={"automatic": True, "ttl_s": 3600}
    )

    async def main() -> None:
        endpoint = LLMEndpoint(limited, 1)
        same = [tagged(1, tokens_in=2_000) for _ in range(3)]
        first, refused = await offered(endpoint, [(0.0, same[0]), (0.1, same[1])])
        assert isinstance(first, Completion)
        assert isinstance(
            refused, RateLimited
        )  # not readable yet: the first token is out after 1 s
        later = [(10.0 + i / 100, tagged(1, tokens_in=2_000)) for i in range(50)]
        outcomes = await offered(endpoint, later)
        assert all(isinstance(outcome, Completion) for outcome in outcomes)

    run(main())


def test_accounts_and_model_lines_have_limits_of_their_own() -> None:
    async def main() -> None:
        endpoint = LLMEndpoint(profile(limits={"requests_per_min": 1}), 1)
        haiku = tagged(2, model="claude-haiku-5-5")
        endpoint.admit(tagged(1), account="a")
        endpoint.admit(haiku, account="a")
        endpoint.admit(tagged(3), account="b")
        with pytest.raises(RateLimited):
            endpoint.admit(tagged(4), account="a")
        # Versions of one line share.
        with pytest.raises(RateLimited):
            endpoint.admit(tagged(5, model="claude-sonnet-4-6"), account="a")

    run(main())


def test_a_sudden_rise_is_refused_where_the_same_rate_reached_slowly_is_not() -> None:
    limits = {"acceleration": {"growth": 2.0, "window_s": 10.0, "floor_per_min": 60}}

    def refused(arrivals_s: list[float]) -> int:
        records = Records()

        async def main() -> None:
            endpoint = LLMEndpoint(profile(limits=limits), 1, observer=records.observe)
            await offered(endpoint, [(at_s, tagged(i)) for i, at_s in enumerate(arrivals_s)])

        run(main())
        return sum(record.status == 429 for record in records)

    sudden = [i / 20 for i in range(200)]  # 20 a second from the start
    # The rate grows e-fold in 30 s, up to 20 a second as well.
    slow = [30 * math.log1p(i / 15) for i in range(570)]
    assert refused(sudden) > 100
    assert refused(slow) == 0


def test_the_published_tiers_are_offered_by_name() -> None:
    build = LIMIT_TIERS["build"]
    assert (build.requests_per_min, build.input_tokens_per_min, build.output_tokens_per_min) == (
        5_000,
        5_000_000,
        1_000_000,
    )
