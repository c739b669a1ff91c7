"""The autoscaler: the lesson's rule, bounds, memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_impl.autoscaler.autoscaler import AutoScaler
from reference_impl.autoscaler.concurrency import ConcurrencyPolicy
from reference_impl.deployment import AutoscalerSpec
from reference_impl.instances.port import InstanceMetrics
from simulation.kernel import run


def fleet(
    count: int, *, cpu: float = 0.5, errors: float = 0.0, in_flight: int = 0
) -> list[InstanceMetrics]:
    """`count` equal reports; `in_flight` calls in all, on the first."""
    return [
        InstanceMetrics(
            f"instance-{n}",
            cpu_usage=cpu,
            error_rate=errors,
            throughput=1.0,
            in_flight=in_flight if n == 0 else 0,
        )
        for n in range(count)
    ]


def test_the_lesson_s_scaler_grows_by_two_and_shrinks_by_one_and_remembers() -> None:
    scaler = AutoScaler(min_instances=2, max_instances=10, cpu_threshold=0.8)
    assert scaler.current_instances == 2
    assert scaler.evaluate_scaling(fleet(2, cpu=0.9)) == 2
    assert scaler.current_instances == 4
    assert scaler.evaluate_scaling(fleet(4, errors=0.06)) == 2
    assert scaler.evaluate_scaling(fleet(6, cpu=0.1)) == -1
    assert scaler.evaluate_scaling(fleet(5, cpu=0.5)) == 0
    assert scaler.current_instances == 5


def test_the_bounds_cut_a_step_short() -> None:
    scaler = AutoScaler(2, 5)
    deltas = [scaler.evaluate_scaling(fleet(2, cpu=1.0)) for _ in range(4)]
    assert deltas == [2, 1, 0, 0]
    deltas = [scaler.evaluate_scaling(fleet(2, cpu=0.0)) for _ in range(5)]
    assert deltas == [-1, -1, -1, 0, 0]


def test_no_metrics_mean_no_opinion_but_the_bounds_still_hold() -> None:
    scaler = AutoScaler(2, 10)
    assert scaler.evaluate_scaling([]) == 0
    scaler.current_instances = 0
    assert scaler.evaluate_scaling([]) == 2
    scaler.current_instances = 12
    assert scaler.evaluate_scaling([]) == -2


@given(
    st.integers(1, 5),
    st.integers(0, 5),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.integers(0, 500))),
    st.sampled_from(["cpu", "concurrency"]),
)
def test_whatever_is_reported_the_number_stays_in_bounds_and_the_deltas_add_up(
    minimum: int, width: int, reports: list[tuple[float, float, int]], policy: str
) -> None:
    scaler = AutoScaler.from_spec(
        AutoscalerSpec.model_validate(
            {"policy": policy, "min_instances": minimum, "max_instances": minimum + width}
        )
    )
    number = scaler.current_instances
    for second, (cpu, errors, in_flight) in enumerate(reports):
        number += scaler.evaluate_scaling(
            fleet(number, cpu=cpu, errors=errors, in_flight=in_flight), now_s=5.0 * second
        )
        assert number == scaler.current_instances
        assert minimum <= number <= minimum + width


@pytest.mark.parametrize("bounds", [(0, 3), (4, 3), (-1, 3)])
def test_impossible_bounds_are_refused(bounds: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected 1 <= min_instances <= max_instances"):
        AutoScaler(*bounds)
    with pytest.raises(ValueError, match="must not be negative"):
        AutoScaler(down_stabilization_s=-1.0)


def numbers(scaler: AutoScaler, loads: list[int], step_s: float = 10.0) -> list[int]:
    """The fleet after each decision, when every order is ready at once."""
    result = []
    for index, in_flight in enumerate(loads):
        scaler.evaluate_scaling(
            fleet(scaler.current_instances, in_flight=in_flight), now_s=index * step_s
        )
        result.append(scaler.current_instances)
    return result


def test_shrinking_waits_until_the_window_holds_no_higher_recommendation() -> None:
    scaler = AutoScaler(1, 10, policy=ConcurrencyPolicy(10.0), down_stabilization_s=30.0)
    #              t = 0   10  20  30  40  50  60
    assert numbers(scaler, [50, 50, 20, 30, 10, 10, 10]) == [5, 5, 5, 5, 3, 3, 1]


def test_growing_does_not_wait() -> None:
    scaler = AutoScaler(1, 10, policy=ConcurrencyPolicy(10.0), down_stabilization_s=300.0)
    assert numbers(scaler, [20, 40, 80]) == [2, 4, 8]


def test_a_fleet_at_its_start_does_not_shrink_before_a_window_has_passed() -> None:
    scaler = AutoScaler(1, 10, policy=ConcurrencyPolicy(10.0), down_stabilization_s=30.0)
    scaler.current_instances = 4
    assert numbers(scaler, [0, 0, 0, 0]) == [4, 4, 4, 1]


def test_the_loop_s_clock_is_read_when_no_instant_is_given() -> None:
    scaler = AutoScaler(1, 10, policy=ConcurrencyPolicy(10.0), down_stabilization_s=30.0)
    with pytest.raises(RuntimeError, match="no running event loop"):
        scaler.evaluate_scaling(fleet(1))

    async def main() -> int:
        return scaler.evaluate_scaling(fleet(1, in_flight=30))

    assert run(main()) == 2


def test_a_spec_is_followed() -> None:
    cpu = AutoScaler.from_spec(
        AutoscalerSpec(policy="cpu", cpu_threshold=0.5, down_stabilization_s=0.0, max_instances=9)
    )
    assert (cpu.min_instances, cpu.max_instances, cpu.current_instances) == (1, 9, 1)
    assert cpu.evaluate_scaling(fleet(1, cpu=0.6)) == 2
    concurrency = AutoScaler.from_spec(AutoscalerSpec(target_in_flight=4.0, tolerance=0.5))
    assert concurrency.evaluate_scaling(fleet(1, in_flight=6), now_s=0.0) == 0
    assert concurrency.evaluate_scaling(fleet(1, in_flight=7), now_s=5.0) == 1
