"""The loop that applies decisions, over a real fleet in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from reference_impl.autoscaler.autoscaler import AutoScaler
from reference_impl.autoscaler.control_loop import ScalingLoop
from reference_impl.balancer.load_balancer import LoadBalancer
from reference_impl.deployment import AutoscalerSpec, DeploymentSpec, InstanceSpec
from reference_impl.instances.fleet import Fleet
from simulation.kernel import run
from tests.reference_impl.instances.scripted_provider import EventLog, ScriptedProvider

SPEC = DeploymentSpec(
    instances=InstanceSpec(heartbeat_s=1.0),
    autoscaler=AutoscalerSpec(
        min_instances=1,
        max_instances=6,
        interval_s=5.0,
        target_in_flight=10.0,
        down_stabilization_s=20.0,
    ),
)


class Rig:
    """A fleet of one that is scaled; the test says how many calls are in flight."""

    def __init__(self, boot_s: float) -> None:
        self.provider = ScriptedProvider(boot_s)
        self.balancer = LoadBalancer()
        self.log = EventLog()
        self.fleet = Fleet(self.provider, self.balancer, SPEC, self.log)
        self.scaler = AutoScaler.from_spec(SPEC.autoscaler)
        self.loop = ScalingLoop(
            self.scaler, self.fleet, SPEC.autoscaler.interval_s, self.log, origin_s=boot_s
        )

    def set_in_flight(self, calls: int) -> None:
        members = self.balancer.statistics().members
        here = {m.instance_id: m.in_flight for m in members}
        for instance_id, count in here.items():
            for _ in range(count):
                self.balancer.finished(instance_id, 1.0, ok=True)
        for _ in range(calls):
            instance_id = self.balancer.select_instance() or ""
            self.balancer.started(instance_id)


def scaled(work: Callable[[Rig], Awaitable[None]], boot_s: float = 2.0) -> None:
    async def main() -> None:
        rig = Rig(boot_s)
        await rig.fleet.start(1)
        rig.loop.start()
        await work(rig)
        await rig.loop.aclose()
        await rig.fleet.aclose()

    run(main())


def test_load_comes_and_goes_and_the_fleet_follows() -> None:
    async def work(rig: Rig) -> None:
        await asyncio.sleep(7.5)
        rig.set_in_flight(45)
        await asyncio.sleep(10.0)
        assert rig.fleet.counts.ready == 5
        rig.set_in_flight(0)
        await asyncio.sleep(30.0)
        assert (rig.fleet.counts.ready, rig.fleet.counts.draining) == (1, 0)
        # The last recommendation of 5 was at 15 s; it leaves the window of 20 s at 35 s.
        assert rig.log.scaling() == [(10.0, 4), (35.0, -4)]

    scaled(work)


def test_a_boot_that_takes_many_intervals_is_ordered_once() -> None:
    async def work(rig: Rig) -> None:
        rig.set_in_flight(40)
        await asyncio.sleep(60.0)
        assert rig.log.scaling() == [(5.0, 3)]
        assert rig.fleet.counts.ready == 4

    scaled(work, boot_s=42.0)


def test_boots_that_fail_are_ordered_again_by_the_next_decision() -> None:
    async def work(rig: Rig) -> None:
        rig.set_in_flight(30)
        rig.provider.failing = {"instance-2"}
        await asyncio.sleep(20.5)
        assert rig.log.scaling() == [(5.0, 2), (10.0, 1)]
        assert [subject for _, subject, _ in rig.log.of("boot_failed")] == ["instance-2"]
        assert rig.fleet.counts.ready == 3

    scaled(work)


def test_decisions_keep_absolute_deadlines() -> None:
    async def work(rig: Rig) -> None:
        seen: list[float] = []
        loop, tick = asyncio.get_running_loop(), rig.loop.tick

        def timed_tick() -> int:
            seen.append(loop.time() - 2.0)
            return tick()

        rig.loop.tick = timed_tick  # type: ignore[method-assign]
        await asyncio.sleep(1000.5)
        assert seen == [5.0 * n for n in range(1, 201)]

    scaled(work)


def test_an_event_tells_what_the_decision_saw() -> None:
    async def work(rig: Rig) -> None:
        rig.provider.cpu_usage = 0.25
        rig.set_in_flight(30)
        await asyncio.sleep(5.5)
        (event,) = (e for e in rig.log.events if e.kind == "scaling")
        assert event.subject == "fleet"
        assert event.detail == {
            "delta": 2,
            "before": 1,
            "after": 3,
            "booting": 0,
            "draining": 0,
            "in_flight": 30,
            "cpu_usage": 0.25,
            "error_rate": 0.0,
        }

    scaled(work)


def test_a_failure_inside_the_loop_is_not_silent() -> None:
    async def main() -> list[str]:
        rig = Rig(2.0)
        await rig.fleet.start(1)
        told: list[str] = []
        loop = asyncio.get_running_loop()
        rig.fleet.metrics = lambda: 1 / 0  # type: ignore[assignment, return-value]
        rig.loop.start()
        loop.call_exception_handler = lambda context: told.append(context["message"])  # type: ignore[method-assign]
        await asyncio.sleep(6.0)
        await rig.loop.aclose()
        await rig.fleet.aclose()
        return told

    assert "the scaling loop failed" in run(main())


def test_a_loop_is_started_once_and_stops_deciding_when_closed() -> None:
    async def work(rig: Rig) -> None:
        with pytest.raises(RuntimeError, match="runs already"):
            rig.loop.start()
        await rig.loop.aclose()
        rig.set_in_flight(60)
        await asyncio.sleep(60.0)
        assert rig.log.scaling() == []

    scaled(work)
