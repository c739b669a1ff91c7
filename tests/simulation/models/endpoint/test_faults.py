"""Faults, drawn and ordered, in process."""

from __future__ import annotations

import asyncio

import pytest

from reference_impl.errors import (
    ConnectionFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    RateLimited,
    RequestTimeout,
    ServiceError,
    StreamBroken,
    UpstreamFailed,
)
from simulation.kernel import run
from simulation.models.endpoint.faults import FaultOrder, StreamCut
from simulation.models.llm_endpoint import LLMEndpoint
from tests.simulation.models.endpoint.calls import Records, Seen, offered, profile, tagged


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("400", InvalidRequest),
        ("404", NotFound),
        ("429", RateLimited),
        ("500", UpstreamFailed),
        ("503", UpstreamFailed),
        ("504", RequestTimeout),
        ("529", Overloaded),
        ("timeout", RequestTimeout),
        ("drop_connection", ConnectionFailed),
        ("error_in_stream", StreamBroken),
        ("drop_stream", StreamCut),
    ],
)
def test_each_kind_is_an_error_of_the_tree(kind: str, error: type[ServiceError]) -> None:
    async def main() -> None:
        seen = Seen()
        endpoint = LLMEndpoint(profile(faults=[{"kind": kind, "probability": 1.0}]), 1)
        with pytest.raises(error) as caught:
            await endpoint.complete(tagged(1, stream=True), seen.emit)
        if kind.isdecimal():
            assert caught.value.status == int(kind)
        broken = issubclass(error, StreamBroken)
        assert bool(seen.chunks) == broken  # StreamBroken after the first content, any other before

    run(main())


def test_a_slow_answer_takes_the_factor_longer() -> None:
    async def main() -> float:
        faults = [{"kind": "slow", "probability": 1.0, "factor": 5}]
        call = tagged(1, out=11)
        await LLMEndpoint(profile(faults=faults), 1).complete(call)
        return call.trace.endpoint_s

    assert run(main()) == pytest.approx(10.0)


def test_faults_befall_the_stated_share_in_the_stated_window_and_the_same_requests_each_time() -> (
    None
):
    faults = [
        {"kind": "500", "probability": 0.1},
        {"kind": "529", "probability": 0.2, "from_s": 100, "until_s": 200},
    ]

    def statuses() -> list[int]:
        records = Records()

        async def main() -> None:
            endpoint = LLMEndpoint(profile(faults=faults), 9, observer=records.observe)
            await offered(endpoint, [(i / 10, tagged(i)) for i in range(3_000)])

        run(main())
        return [r.status for r in sorted(records, key=lambda r: r.request_id)]

    first = statuses()
    assert first == statuses()
    assert first.count(500) / 3_000 == pytest.approx(0.1, abs=0.02)
    assert first[1_000:2_000].count(529) / 1_000 == pytest.approx(0.2, abs=0.04)
    assert 529 not in first[:1_000] + first[2_000:]


def test_an_order_holds_for_its_number_of_times_and_key() -> None:
    async def main() -> None:
        endpoint = LLMEndpoint(profile(), 1)
        order = FaultOrder.decode("kind=529; times=2; key=a; retry_after=1.5")
        for _ in range(2):
            with pytest.raises(Overloaded) as caught:
                endpoint.admit(tagged(1), order=order)
            assert caught.value.retry_after_s == 1.5
        endpoint.admit(tagged(1), order=order)
        with pytest.raises(Overloaded):
            endpoint.admit(tagged(1), order=FaultOrder.decode("kind=529;times=2;key=b"))

    run(main())


@pytest.mark.parametrize(
    "text",
    ["", "kind=418", "kind=429;times=x", "kind=429;times=-1", "kind", "kind=slow;factor=nan",
     "kind=429;retry_after=inf", "colour=red"],
)  # fmt: skip
def test_an_order_that_cannot_be_read_names_what_is_wrong(text: str) -> None:
    with pytest.raises(InvalidRequest, match="x-mock-fault"):
        FaultOrder.decode(text)


def test_a_hanging_call_holds_until_its_caller_gives_up() -> None:
    async def main() -> None:
        endpoint = LLMEndpoint(profile(faults=[{"kind": "timeout", "probability": 1}]), 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(60):
                await endpoint.complete(tagged(1))
        assert endpoint.statistics().in_flight == 0

    run(main())
