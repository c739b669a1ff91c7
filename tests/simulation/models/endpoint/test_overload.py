"""529 by load."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from reference_impl.errors import Overloaded
from simulation.kernel import run
from simulation.models.llm_endpoint import LLMEndpoint
from tests.simulation.models.endpoint.calls import Records, offered, profile, tagged


def _statuses(per_s: float, **overload: float) -> Counter[int]:
    """Offer calls of 2 s for 200 s; statuses of the second half."""
    records = Records()

    async def main() -> None:
        endpoint = LLMEndpoint(profile(overload=overload), 1, observer=records.observe)
        arrivals = [(i / per_s, tagged(i)) for i in range(int(per_s * 200))]
        await offered(endpoint, arrivals)

    run(main())
    return Counter(record.status for record in records if record.arrived_s > 100)


def test_below_the_onset_nothing_is_refused() -> None:
    assert _statuses(39, capacity_in_flight=100, onset=0.8) == Counter({200: 39 * 100 - 1})


def test_refusals_grow_with_the_load_and_in_flight_stays_below_capacity() -> None:
    some = _statuses(50, capacity_in_flight=100, onset=0.8)
    many = _statuses(100, capacity_in_flight=100, onset=0.8)
    share_some = some[529] / some.total()
    share_many = many[529] / many.total()
    assert 0.02 < share_some < 0.2 < share_many < 0.6
    # Fixed point: accepted rate = in flight / 2 s, refusal share = (in flight / 100 - 0.8) / 0.2.
    # 100 (1 - p) * 2 = 100 (0.8 + 0.2 p)  =>  p = 1.2 / 2.2.
    assert share_many == pytest.approx(1.2 / 2.2, abs=0.05)


def test_others_load_refuses_at_random() -> None:
    seen = _statuses(10, capacity_in_flight=1_000, background=0.3)
    assert seen[529] / seen.total() == pytest.approx(0.3, abs=0.05)


def test_an_abandoned_call_no_longer_counts() -> None:
    async def main() -> None:
        endpoint = LLMEndpoint(profile(overload={"capacity_in_flight": 1, "onset": 0}), 1)
        held = endpoint.admit(tagged(1))
        with pytest.raises(Overloaded):
            endpoint.admit(tagged(2))

        task = asyncio.create_task(endpoint.deliver(held))
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        endpoint.admit(tagged(3))

    run(main())
