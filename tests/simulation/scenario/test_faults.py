"""Faults on a schedule and by luck."""

import numpy as np
import pytest

from simulation.scenario.faults import Fault, fault_windows
from simulation.scenario.spec import parse_scenario


def faults(text: str) -> tuple[Fault, ...]:
    return parse_scenario(
        f"workload: {{arrivals: {{kind: poisson, rate_per_s: 1}}}}\nhorizon_s: 9\nfaults: {text}\n"
    ).faults


def test_scheduled_faults_come_in_order_of_time_and_not_after_the_horizon() -> None:
    planned = faults(
        "[{kind: endpoint_529, at_s: 50, duration_s: 5}, {kind: instance_crash, at_s: 10, duration_s: 3},"
        " {kind: instance_hang, at_s: 500},"
        " {kind: link_latency, at_s: 10, link: gateway_instance, extra_s: {kind: exponential, mean: 0.1}}]"
    )
    windows = fault_windows(planned, seed=1, horizon_s=100)
    assert [(w.from_s, w.until_s, w.fault.kind) for w in windows] == [
        (10, 13, "instance_crash"),
        (10, 20, "link_latency"),
        (50, 55, "endpoint_529"),
    ]
    assert [w.index for w in windows] == [1, 3, 0]


def test_faults_by_luck_come_at_their_rate_and_again_for_the_same_seed() -> None:
    lucky = faults("[{kind: instance_hang, rate_per_hour: 2, duration_s: 30}]")
    windows = fault_windows(lucky, seed=1, horizon_s=3_600_000)
    assert len(windows) == pytest.approx(2000, rel=0.1)
    gaps = np.diff([w.from_s for w in windows])
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.1)
    assert windows == fault_windows(lucky, seed=1, horizon_s=3_600_000)
    assert windows != fault_windows(lucky, seed=2, horizon_s=3_600_000)


def test_one_fault_does_not_change_the_luck_of_another() -> None:
    one = faults("[{kind: instance_hang, rate_per_hour: 60}]")
    two = faults("[{kind: instance_hang, rate_per_hour: 60}, {kind: endpoint_500, rate_per_hour: 60}]")  # fmt: skip
    first = [w.from_s for w in fault_windows(one, 1, 10_000)]
    assert first == [w.from_s for w in fault_windows(two, 1, 10_000) if w.index == 0]
