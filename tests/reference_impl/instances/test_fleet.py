"""The fleet: boots, drains, deaths and replacements, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from reference_impl.balancer.load_balancer import LoadBalancer
from reference_impl.deployment import AutoscalerSpec, DeploymentSpec, InstanceSpec
from reference_impl.errors import UpstreamFailed
from reference_impl.instances.fleet import UNRESPONSIVE_S, Fleet
from reference_impl.messages import Call
from reference_impl.telemetry import RequestTrace
from simulation.kernel import run
from tests.reference_impl.instances.scripted_provider import EventLog, ScriptedProvider


class Rig:
    """A fleet with what stands around it."""

    def __init__(self, minimum: int = 1, drain_s: float = 30.0, autoscaler: bool = True) -> None:
        self.provider = ScriptedProvider()
        self.balancer = LoadBalancer()
        self.log = EventLog()
        spec = DeploymentSpec(
            instances=InstanceSpec(initial=2, drain_s=drain_s, heartbeat_s=1.0),
            autoscaler=AutoscalerSpec(enabled=autoscaler, min_instances=minimum),
        )
        self.fleet = Fleet(self.provider, self.balancer, spec, self.log)

    async def call(self) -> bool:
        """One call through balancer and port, as a gateway makes it."""
        instance_id = self.balancer.select_instance()
        assert instance_id is not None
        self.balancer.started(instance_id)
        call = Call(request_id=0, model="m", max_tokens=1, stream=False, trace=RequestTrace())
        ok = False
        try:
            await self.fleet.ports[instance_id].complete(call)
            ok = True
        finally:
            self.balancer.finished(instance_id, 1.0, ok)
        return ok

    @property
    def counts(self) -> tuple[int, int, int]:
        counts = self.fleet.counts
        return counts.ready, counts.booting, counts.draining

    @property
    def selectable(self) -> set[str]:
        return {m.instance_id for m in self.balancer.statistics().members}


def now() -> float:
    return asyncio.get_running_loop().time()


def in_virtual_time(work: Callable[[Rig], Awaitable[None]], **options: float | bool) -> None:
    async def main() -> None:
        rig = Rig(**options)  # type: ignore[arg-type]
        await work(rig)
        await rig.fleet.aclose()

    run(main())


def test_the_first_instances_boot_side_by_side() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(3)
        assert now() == 2.0
        assert rig.counts == (3, 0, 0)
        assert rig.selectable == {"instance-1", "instance-2", "instance-3"} == {*rig.fleet.ports}
        assert await rig.call()

    in_virtual_time(work)


def test_a_start_at_which_every_boot_fails_raises_the_first_failure() -> None:
    async def work(rig: Rig) -> None:
        rig.provider.failing = {"instance-1", "instance-2"}
        with pytest.raises(UpstreamFailed, match="instance-1: exited with status 3"):
            await rig.fleet.start(2)
        assert rig.counts == (0, 0, 0)

    in_virtual_time(work)


def test_a_start_that_fails_in_part_goes_on_and_fills_up_to_the_floor() -> None:
    async def work(rig: Rig) -> None:
        rig.provider.failing = {"instance-1"}
        await rig.fleet.start(2)
        assert rig.counts == (1, 0, 0)
        assert rig.log.of("boot_failed") == [(2.0, "instance-1", "boot_failed")]
        assert rig.log.events[2].detail["reason"] == "instance-1: exited with status 3"
        await asyncio.sleep(3.5)
        assert rig.counts == (2, 0, 0)
        assert rig.log.of("ready") == [(2.0, "instance-2", "ready"), (5.0, "instance-3", "ready")]

    in_virtual_time(work, minimum=2)


def test_without_an_autoscaler_the_initial_number_is_the_floor() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(2)
        assert rig.fleet.scale_by(-1) == 0
        rig.provider.kill("instance-1")
        await asyncio.sleep(2.5)
        assert rig.counts == (2, 0, 0)

    in_virtual_time(work, autoscaler=False)


def test_growing_does_not_wait_for_the_boots() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(1)
        assert rig.fleet.scale_by(3) == 3
        assert rig.counts == (1, 3, 0)
        assert rig.selectable == {"instance-1"}
        await asyncio.sleep(2.5)
        assert rig.counts == (4, 0, 0)
        assert [t for t, _, _ in rig.log.of("ready")] == [2.0, 4.0, 4.0, 4.0]

    in_virtual_time(work)


def test_a_failing_boot_is_an_event_and_leaves_the_next_decision_to_others() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(1)
        rig.provider.failing = {"instance-2"}
        rig.fleet.scale_by(2)
        await asyncio.sleep(10.0)
        assert rig.counts == (2, 0, 0)
        assert rig.log.of("boot_failed") == [(4.0, "instance-2", "boot_failed")]
        rig.fleet.scale_by(1)
        await asyncio.sleep(2.5)
        assert rig.selectable == {"instance-1", "instance-3", "instance-4"}

    in_virtual_time(work)


def test_shrinking_drains_the_least_loaded_and_its_calls_finish() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(3)
        rig.provider.instances["instance-2"]._processor.service_s = 3.0  # type: ignore[attr-defined]
        calls = [asyncio.create_task(rig.call()) for _ in range(5)]
        await asyncio.sleep(0.0)
        # In flight: 2, 2, 1. The third has the least.
        assert rig.fleet.scale_by(-1) == -1
        assert rig.counts == (2, 0, 1)
        assert rig.selectable == {"instance-1", "instance-2"}
        assert "instance-3" in rig.fleet.ports
        assert await asyncio.gather(*calls) == [True] * 5
        assert rig.log.of("draining", "stopped") == [
            (2.0, "instance-3", "draining"),
            (3.0, "instance-3", "stopped"),
        ]
        assert rig.provider.stopped == [("instance-3", 29.0)]
        assert "instance-3" not in rig.fleet.ports
        assert rig.counts == (2, 0, 0)

    in_virtual_time(work)


def test_of_equally_loaded_instances_the_youngest_goes() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(3)
        rig.fleet.scale_by(-2)
        assert rig.selectable == {"instance-1"}

    in_virtual_time(work)


def test_a_sick_instance_goes_before_idle_healthy_ones() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(3)
        rig.balancer.started("instance-1")
        rig.provider.silent = {"instance-1"}
        rig.fleet.scale_by(-1)
        assert rig.selectable == {"instance-2", "instance-3"}
        rig.balancer.finished("instance-1", 1.0, ok=False)

    in_virtual_time(work)


def test_shrinking_takes_away_what_still_boots_before_what_serves() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(2)
        rig.fleet.scale_by(2)
        await asyncio.sleep(1.0)
        assert rig.fleet.scale_by(-3) == -3
        assert rig.counts == (1, 0, 1)
        await asyncio.sleep(1.0)
        assert rig.provider.boots_cancelled == ["instance-4", "instance-3"]
        assert rig.counts == (1, 0, 0)

    in_virtual_time(work)


def test_the_fleet_never_shrinks_below_its_floor() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(4)
        assert rig.fleet.scale_by(-10) == -1
        assert rig.fleet.scale_by(-10) == 0
        assert rig.counts[0] == 3

    in_virtual_time(work, minimum=3)


def test_a_drain_that_takes_too_long_is_ended_and_tells_what_was_lost() -> None:
    async def work(rig: Rig) -> None:
        rig.provider.service_s = 60.0
        await rig.fleet.start(2)
        calls = [asyncio.create_task(rig.call()) for _ in range(2)]
        await asyncio.sleep(0.0)
        rig.fleet.scale_by(-1)
        await asyncio.sleep(6.0)
        assert rig.provider.stopped == [("instance-2", 0.0)]
        assert rig.log.of("stopped") == [(7.0, "instance-2", "stopped")]
        assert rig.log.events[-1].detail["in_flight"] == 1
        for task in calls:
            task.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    in_virtual_time(work, drain_s=5.0)


def test_a_stop_that_fails_is_an_event_and_not_the_end_of_the_fleet() -> None:
    async def work(rig: Rig) -> None:
        async def fail(instance_id: str, drain_s: float) -> None:
            raise UpstreamFailed(f"{instance_id}: does not end")

        await rig.fleet.start(2)
        rig.provider.stop = fail  # type: ignore[method-assign]
        rig.fleet.scale_by(-1)
        await asyncio.sleep(1.0)
        assert rig.log.of("stop_failed", "stopped") == [
            (2.0, "instance-2", "stop_failed"),
            (2.0, "instance-2", "stopped"),
        ]
        assert rig.counts == (1, 0, 0)

    in_virtual_time(work)


def test_a_dead_instance_leaves_the_balancer_at_once_and_is_replaced_to_keep_the_floor() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(2)
        rig.provider.kill("instance-1", "exited with status 7: MemoryError")
        await asyncio.sleep(0.0)
        assert rig.selectable == {"instance-2"}
        assert "instance-1" not in rig.fleet.ports
        assert rig.counts == (1, 1, 0)
        assert rig.log.of("died") == [(2.0, "instance-1", "died")]
        await asyncio.sleep(2.5)
        assert rig.selectable == {"instance-2", "instance-3"}
        assert ("instance-1", 0.0) in rig.provider.stopped  # what is left of it is cleared away

    in_virtual_time(work, minimum=2)


def test_a_death_above_the_floor_is_left_to_the_autoscaler() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(3)
        rig.provider.kill("instance-3")
        await asyncio.sleep(10.0)
        assert rig.counts == (2, 0, 0)

    in_virtual_time(work, minimum=2)


def test_an_instance_that_dies_while_it_drains_is_gone_once() -> None:
    async def work(rig: Rig) -> None:
        rig.provider.service_s = 5.0
        await rig.fleet.start(2)
        calls = [asyncio.create_task(rig.call()) for _ in range(2)]
        await asyncio.sleep(0.0)
        rig.fleet.scale_by(-1)
        rig.provider.kill("instance-2")
        await asyncio.gather(*calls)
        await asyncio.sleep(1.0)
        assert rig.counts == (1, 0, 0)
        assert rig.log.of("died", "stopped") == [(2.0, "instance-2", "died")]

    in_virtual_time(work)


def test_instances_that_keep_failing_are_replaced_in_growing_intervals() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(2)
        rig.provider.failing = {f"instance-{n}" for n in range(3, 100)}
        rig.provider.kill("instance-1")
        await asyncio.sleep(100.0)
        begun = [t for t, _, _ in rig.log.of("booting")][2:]
        pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
        # A boot of 2 s, then pauses of 1, 2, 4, ... s; the refresh that orders comes once a second.
        assert begun[0] == 2.0
        assert pauses == [3.0, 4.0, 6.0, 10.0, 18.0, 34.0]

    in_virtual_time(work, minimum=2)


def test_what_an_instance_reports_reaches_the_balancer_with_the_next_heartbeat() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(2)
        rig.provider.silent = {"instance-1"}
        await asyncio.sleep(1.5)
        assert {rig.balancer.select_instance() for _ in range(5)} == {"instance-2"}
        rig.provider.silent = set()
        await asyncio.sleep(1.0)
        assert {rig.balancer.select_instance() for _ in range(5)} == {"instance-1", "instance-2"}
        assert rig.counts == (2, 0, 0)

    in_virtual_time(work)


def test_an_instance_that_stays_silent_is_given_up_and_replaced() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(2)
        rig.provider.silent = {"instance-1"}
        await asyncio.sleep(UNRESPONSIVE_S + 0.5)
        assert rig.log.of("died") == []
        await asyncio.sleep(4.0)
        assert rig.log.of("died") == [(2.0 + 1.0 + UNRESPONSIVE_S, "instance-1", "died")]
        assert rig.selectable == {"instance-2", "instance-3"}
        assert ("instance-1", 0.0) in rig.provider.stopped

    in_virtual_time(work, minimum=2)


def test_metrics_count_the_calls_in_flight_as_the_balancer_does() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(2)
        rig.provider.cpu_usage = 0.25
        for _ in range(3):
            rig.balancer.started("instance-2")
        assert [(m.instance_id, m.in_flight, m.cpu_usage) for m in rig.fleet.metrics()] == [
            ("instance-1", 0, 0.25),
            ("instance-2", 3, 0.25),
        ]
        # Before its first report an instance shows as healthy and idle.
        rig.provider.instances.clear()
        assert [(m.instance_id, m.capacity) for m in rig.fleet.metrics()] == [
            ("instance-1", 4),
            ("instance-2", 4),
        ]

    in_virtual_time(work)


def test_a_sample_holds_what_is_paid_for_boots_included() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(2)
        rig.fleet.scale_by(1)
        await asyncio.sleep(8.0)
        sample = rig.fleet.sample()
        assert (sample.station, sample.kind, sample.t_s, sample.capacity) == (
            "fleet",
            "fleet",
            10.0,
            3,
        )
        assert sample.queue_length * sample.interval_s == 2 * 2.0 + 2.0  # booting
        assert sample.busy_s == 2 * 8.0 + 6.0
        assert (sample.arrivals, sample.completions) == (3, 0)

    in_virtual_time(work)


def test_closing_ends_boots_drains_and_instances() -> None:
    async def work(rig: Rig) -> None:
        rig.provider.service_s = 100.0
        await rig.fleet.start(2)
        call = asyncio.create_task(rig.call())
        await asyncio.sleep(0.0)
        rig.fleet.scale_by(1)
        await asyncio.sleep(0.5)
        rig.fleet.scale_by(-1)
        rig.fleet.scale_by(1)
        rig.fleet._drain_one()
        await asyncio.sleep(0.0)
        await rig.fleet.aclose()
        assert rig.counts == (0, 0, 0)
        assert (rig.provider.closed, rig.provider.booting) == (True, 0)
        assert rig.selectable == set()
        assert rig.fleet.scale_by(5) == 0
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    in_virtual_time(work)


def test_a_number_is_never_given_twice() -> None:
    async def work(rig: Rig) -> None:
        await rig.fleet.start(1)
        for _ in range(5):
            rig.fleet.scale_by(1)
            rig.fleet.scale_by(-1)
        rig.fleet.scale_by(1)
        await asyncio.sleep(3.5)
        subjects = [subject for _, subject, _ in rig.log.of("booting")]
        assert subjects == [f"instance-{n}" for n in range(1, 8)]

    in_virtual_time(work)
