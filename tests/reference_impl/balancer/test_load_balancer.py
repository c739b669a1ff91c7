"""The balancer: membership, health, and its own count of the calls in flight."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from reference_impl.balancer.load_balancer import ROUTING_POLICIES, LoadBalancer
from reference_impl.instances.port import InstanceMetrics, InstanceStatus
from simulation.kernel import run

HEALTHY, DEGRADED, UNHEALTHY = InstanceStatus


def balancer_of(*ids: str, policy: str = "least_loaded") -> LoadBalancer:
    balancer = LoadBalancer(policy)
    for instance_id in ids:
        balancer.add_instance(InstanceMetrics(instance_id))
    return balancer


def picks(balancer: LoadBalancer, count: int) -> str:
    return "".join(balancer.select_instance() or "-" for _ in range(count))


@pytest.mark.parametrize("policy", ROUTING_POLICIES)
def test_an_empty_fleet_has_no_instance_to_select(policy: str) -> None:
    balancer = LoadBalancer(policy)
    assert balancer.select_instance() is None
    assert balancer.statistics().unserved == 1


@pytest.mark.parametrize("policy", ROUTING_POLICIES)
def test_an_unhealthy_instance_is_not_selected_until_it_recovers(policy: str) -> None:
    balancer = balancer_of("a", "b", policy=policy)
    balancer.update(InstanceMetrics("a", status=UNHEALTHY))
    assert picks(balancer, 20) == "b" * 20
    balancer.update(InstanceMetrics("a"))
    assert set(picks(balancer, 20)) == {"a", "b"}
    balancer.update(InstanceMetrics("a", status=DEGRADED))
    assert picks(balancer, 20) == "b" * 20
    for instance_id in "ab":
        balancer.update(InstanceMetrics(instance_id, status=UNHEALTHY))
    assert balancer.select_instance() is None


@pytest.mark.parametrize("policy", ROUTING_POLICIES)
def test_a_degraded_instance_is_selected_only_when_no_healthy_one_is_left(policy: str) -> None:
    balancer = balancer_of("a", "b", "c", policy=policy)
    balancer.update(InstanceMetrics("a", status=DEGRADED))
    balancer.update(InstanceMetrics("b", status=DEGRADED))
    assert picks(balancer, 20) == "c" * 20
    balancer.remove_instance("c")
    assert set(picks(balancer, 20)) == {"a", "b"}


def test_the_lesson_s_least_loaded_goes_by_reported_load_and_not_by_latency() -> None:
    balancer = LoadBalancer()
    balancer.add_instance(InstanceMetrics("slow but idle", latency_ms=900.0, in_flight=1))
    balancer.add_instance(InstanceMetrics("fast but busy", latency_ms=90.0, in_flight=30))
    assert {balancer.select_instance() for _ in range(5)} == {"slow but idle"}
    # Without a count in the reports, Little's law gives one: 2/s x 0.9 s against 100/s x 0.09 s.
    balancer.update(InstanceMetrics("slow but idle", latency_ms=900.0, throughput=2.0))
    balancer.update(InstanceMetrics("fast but busy", latency_ms=90.0, throughput=100.0))
    assert {balancer.select_instance() for _ in range(5)} == {"slow but idle"}


def test_once_calls_are_counted_the_reports_load_is_left_aside() -> None:
    balancer = LoadBalancer()
    balancer.add_instance(InstanceMetrics("a", in_flight=50))
    balancer.add_instance(InstanceMetrics("b", in_flight=1))
    balancer.started("b")
    assert balancer.select_instance() == "a"
    balancer.update(InstanceMetrics("a", in_flight=50))
    assert balancer.select_instance() == "a"
    assert (balancer.in_flight("a"), balancer.in_flight("b")) == (0, 1)


def test_calls_in_flight_even_out() -> None:
    balancer = balancer_of("a", "b", "c", "d")
    for _ in range(40):
        instance_id = balancer.select_instance()
        assert instance_id is not None
        balancer.started(instance_id)
    assert [balancer.in_flight(i) for i in "abcd"] == [10, 10, 10, 10]
    for _ in range(6):
        balancer.finished("b", 0.5, ok=True)
    balancer.finished("b", 1.5, ok=False)
    chosen = Counter[str]()
    for _ in range(7):
        instance_id = balancer.select_instance()
        assert instance_id is not None
        balancer.started(instance_id)
        chosen[instance_id] += 1
    assert chosen == {"b": 7}
    b = balancer.statistics().members[1]
    assert (b.in_flight, b.completed, b.failed, b.latency_s) == (10, 7, 1, 4.5 / 7)
    assert balancer.statistics().in_flight == 40


def test_calls_on_a_removed_instance_stay_counted_until_they_end() -> None:
    async def main() -> None:
        balancer = balancer_of("a", "b")
        balancer.started("a")
        balancer.started("a")
        assert balancer.remove_instance("a")
        assert not balancer.remove_instance("a")
        assert (balancer.in_flight("a"), balancer.statistics().in_flight) == (2, 2)
        assert picks(balancer, 3) == "bbb"
        loop = asyncio.get_running_loop()
        loop.call_later(1.0, balancer.finished, "a", 1.0, True)
        loop.call_later(2.0, balancer.finished, "a", 2.0, True)
        await balancer.wait_idle("a")
        assert loop.time() == 2.0
        assert balancer.in_flight("a") == 0
        await balancer.wait_idle("a")

    run(main())


def test_an_instance_that_returns_still_holds_its_calls() -> None:
    balancer = balancer_of("a", "b")
    balancer.started("a")
    balancer.remove_instance("a")
    balancer.add_instance(InstanceMetrics("a"))
    assert balancer.in_flight("a") == 1
    assert balancer.select_instance() == "b"
    balancer.finished("a", 1.0, ok=True)
    assert balancer.in_flight("a") == 0


def test_wrong_accounts_are_errors() -> None:
    balancer = balancer_of("a")
    with pytest.raises(ValueError, match="no call is in flight on instance 'a'"):
        balancer.finished("a", 1.0, ok=True)
    with pytest.raises(ValueError, match="no call is in flight on instance 'z'"):
        balancer.finished("z", 1.0, ok=True)
    with pytest.raises(KeyError):
        balancer.started("z")
    with pytest.raises(ValueError, match="'a' is in the balancer already"):
        balancer.add_instance(InstanceMetrics("a"))
    with pytest.raises(ValueError, match="weight must be positive, is 0"):
        balancer.add_instance(InstanceMetrics("b", weight=0.0))
    assert not balancer.update(InstanceMetrics("z"))


def test_an_unknown_policy_is_one_line_that_names_the_allowed() -> None:
    with pytest.raises(
        ValueError,
        match=r"^routing_policy: 'fastest' is unknown; "
        r"allowed: least_loaded, round_robin, weighted, power_of_two$",
    ):
        LoadBalancer("fastest")


def test_the_policy_can_be_changed_on_the_way() -> None:
    balancer = balancer_of("a", "b", "c")
    for _ in range(3):
        balancer.started("a")
    balancer.update(InstanceMetrics("c", status=UNHEALTHY))
    assert picks(balancer, 4) == "bbbb"
    balancer.routing_policy = "round_robin"
    assert picks(balancer, 4) == "abab"
    balancer.routing_policy = "least_loaded"
    assert picks(balancer, 4) == "bbbb"
    balancer.update(InstanceMetrics("c"))
    assert set(picks(balancer, 4)) == {"b", "c"}


def test_weights_of_reports_are_followed() -> None:
    balancer = LoadBalancer("weighted")
    for instance_id, weight in (("a", 5.0), ("b", 1.0), ("c", 1.0)):
        balancer.add_instance(InstanceMetrics(instance_id, weight=weight))
    assert picks(balancer, 7) == "aabacaa"
    balancer.update(InstanceMetrics("a", weight=1.0))
    assert Counter(picks(balancer, 30)) == {"a": 10, "b": 10, "c": 10}
