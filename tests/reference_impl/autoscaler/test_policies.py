"""The scaling rules, as pure functions of one observation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.autoscaler.concurrency import ConcurrencyPolicy
from reference_impl.autoscaler.cpu import CpuPolicy
from reference_impl.autoscaler.port import Observation
from reference_impl.instances.port import InstanceMetrics, InstanceStatus


def seen(
    ordered: int,
    *,
    booting: int = 0,
    in_flight: int = 0,
    cpu: float = 0.5,
    errors: float = 0.0,
) -> Observation:
    return Observation(
        ordered=ordered,
        booting=booting,
        reporting=ordered - booting,
        in_flight=in_flight,
        cpu_usage=cpu,
        error_rate=errors,
    )


@pytest.mark.parametrize(
    ("cpu", "errors", "change"),
    [
        (0.81, 0.0, +2),
        (0.80, 0.0, 0),  # above, not at
        (0.50, 0.051, +2),
        (0.50, 0.05, 0),
        (0.10, 0.06, +2),  # errors weigh more than an idle CPU
        (0.19, 0.009, -1),
        (0.20, 0.0, 0),
        (0.19, 0.01, 0),
        (0.50, 0.0, 0),
    ],
)
def test_thresholds_on_cpu_and_errors(cpu: float, errors: float, change: int) -> None:
    assert CpuPolicy().recommend(seen(4, cpu=cpu, errors=errors)) == 4 + change


def test_booting_instances_count_as_idle_cpu() -> None:
    # 2 at 90% spread over 4 are 45%; 2 at 90% with one more coming are 60%.
    assert CpuPolicy(0.55).recommend(seen(4, booting=2, cpu=0.9)) == 4
    assert CpuPolicy(0.55).recommend(seen(3, booting=1, cpu=0.9)) == 5


def test_while_instances_boot_errors_order_no_more_and_none_is_taken_away() -> None:
    assert CpuPolicy().recommend(seen(4, booting=2, errors=0.5)) == 4
    assert CpuPolicy().recommend(seen(4, booting=2, cpu=0.0)) == 4


def test_without_a_fresh_report_the_number_is_held() -> None:
    assert CpuPolicy().recommend(seen(3, booting=3, cpu=0.0)) == 3


@pytest.mark.parametrize(
    ("ordered", "booting", "in_flight", "wanted"),
    [
        (2, 0, 40, 4),
        (2, 0, 41, 5),  # rounded up
        (2, 0, 22, 2),  # 10% above the target: inside the tolerance
        (2, 0, 23, 3),
        (2, 0, 18, 2),
        (2, 0, 17, 2),  # below it, but 1.7 rounds up to 2
        (4, 0, 17, 2),
        (4, 0, 0, 0),  # the bounds are the AutoScaler's
        (4, 2, 40, 4),  # what was ordered covers it
        (4, 2, 43, 4),  # back inside the tolerance with the booting ones
        (4, 2, 45, 5),
        (6, 4, 40, 6),  # over target for the ready, under it with the booting: held
        (3, 3, 0, 3),  # nothing is ready, so nothing is known
        (5, 3, 10, 1),
    ],
)
def test_a_target_of_ten_calls_in_flight(
    ordered: int, booting: int, in_flight: int, wanted: int
) -> None:
    observation = seen(ordered, booting=booting, in_flight=in_flight)
    assert ConcurrencyPolicy(10.0, 0.1).recommend(observation) == wanted


@given(
    ordered=st.integers(1, 50),
    booting=st.integers(0, 50),
    in_flight=st.integers(0, 2000),
    target=st.floats(0.5, 50),
)
def test_an_order_is_never_repeated_while_it_boots(
    ordered: int, booting: int, in_flight: int, target: float
) -> None:
    policy = ConcurrencyPolicy(target, 0.1)
    wanted = policy.recommend(seen(ordered, booting=min(booting, ordered - 1), in_flight=in_flight))
    if wanted > ordered:
        still_booting = min(booting, ordered - 1) + wanted - ordered
        again = policy.recommend(seen(wanted, booting=still_booting, in_flight=in_flight))
        assert again == wanted


def test_errors_are_weighted_by_throughput() -> None:
    observation = Observation.of(
        [
            InstanceMetrics("a", error_rate=0.0, throughput=99.0, cpu_usage=0.2, in_flight=3),
            InstanceMetrics("b", error_rate=1.0, throughput=1.0, cpu_usage=0.6, in_flight=4),
        ],
        ordered=3,
        booting=1,
    )
    assert observation == Observation(3, 1, 2, 7, 0.4, 0.01)


def test_stale_reports_do_not_count_but_their_calls_do() -> None:
    observation = Observation.of(
        [
            InstanceMetrics("a", cpu_usage=0.5, error_rate=0.25),
            InstanceMetrics(
                "b", InstanceStatus.UNHEALTHY, cpu_usage=0.9, error_rate=1.0, in_flight=6
            ),
        ],
        ordered=2,
    )
    assert observation == Observation(2, 0, 1, 6, 0.5, 0.25)


def test_an_empty_fleet_is_seen_without_a_division_by_zero() -> None:
    assert Observation.of([], ordered=0) == Observation(0, 0, 0, 0, 0.0, 0.0)
