"""The fleet: the instances that exist, and every change of them.

The gateway asks it for the port of an instance, the autoscaler for metrics and changes. It knows no processes and no
models, only a provider that starts and stops instances.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from reference_impl.balancer.load_balancer import LoadBalancer
from reference_impl.deployment import DeploymentSpec
from reference_impl.errors import ServiceError, UpstreamFailed
from reference_impl.instances.meter import StationMeter
from reference_impl.instances.port import (
    InstanceMetrics,
    InstanceProvider,
    InstanceStatus,
    RunningInstance,
)
from reference_impl.llm.port import MessagesPort
from reference_impl.telemetry import StationSample, SystemEvent

__all__ = ["UNRESPONSIVE_S", "Fleet", "FleetCounts"]

# An instance whose heartbeat is missing for so long is given up: Kubernetes' default liveness probe, 3 failures x 10 s.
UNRESPONSIVE_S = 30.0
# Pauses between replacements of instances that keep failing double from one heartbeat up to this.
_MAX_PAUSE_S = 60.0
_HEALTH = {InstanceStatus.UNHEALTHY: 0, InstanceStatus.DEGRADED: 1, InstanceStatus.HEALTHY: 2}

Detail = float | int | str | bool | None


class FleetCounts(msgspec.Struct, frozen=True):
    """Instances by state: `ready` ones take calls, `booting` ones will, `draining` ones finish what they have."""

    ready: int
    booting: int
    draining: int

    @property
    def ordered(self) -> int:
        """What the autoscaler steers: those that take calls or will."""
        return self.ready + self.booting


class Fleet:
    """Keeps the balancer in step with what the provider runs, and the fleet at or above its floor.

    The floor is the autoscaler's minimum or, without autoscaler, the initial number. Instances are numbered and a number
    is never used twice. Events have the kind "instance", the id as subject, and in their detail a `state`: booting, ready,
    boot_failed, boot_cancelled, draining, stopped, stop_failed, died. Must be made on the running loop.
    """

    def __init__(
        self,
        provider: InstanceProvider,
        balancer: LoadBalancer,
        spec: DeploymentSpec,
        on_event: Callable[[SystemEvent], None],
        *,
        origin_s: float = 0.0,
    ) -> None:
        """`origin_s`: the run's start on the loop's clock; the instants of events and samples count from it."""
        self._provider = provider
        self._balancer = balancer
        self._on_event = on_event
        self._origin_s = origin_s
        self._drain_s = spec.instances.drain_s
        self._refresh_s = spec.instances.heartbeat_s
        scaled = spec.autoscaler.enabled
        self._floor = spec.autoscaler.min_instances if scaled else spec.instances.initial
        self._loop = asyncio.get_running_loop()
        self._meter = StationMeter("fleet", "fleet", 0)
        self._ordered = 0
        self._ready: dict[str, RunningInstance] = {}
        self._booting: dict[str, asyncio.Task[None]] = {}
        self._draining: dict[str, RunningInstance] = {}
        self._ports: dict[str, MessagesPort] = {}
        self._unhealthy_since_s: dict[str, float] = {}
        # A dict, not a set: iterated in the order of creation.
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._failed_s = -_MAX_PAUSE_S
        self._pause_s = 0.0
        self._fill_from_s = 0.0
        self._closed = False

    @property
    def counts(self) -> FleetCounts:
        return FleetCounts(len(self._ready), len(self._booting), len(self._draining))

    @property
    def ports(self) -> Mapping[str, MessagesPort]:
        """The ports of the ready and the draining instances by id: a live view."""
        return MappingProxyType(self._ports)

    async def start(self, initial: int) -> None:
        """Boot `initial` instances at once; returns when each is ready or has failed.

        Raises the first failure when none is ready. A partial failure is an event, and the floor is filled up later.
        """
        failures: list[ServiceError] = []
        await asyncio.gather(*[self._order("boot", failures.append) for _ in range(initial)])
        if not self._ready:
            raise failures[0] if failures else UpstreamFailed("the fleet was given no instance")
        self._spawn(self._refresh(), "background:fleet")

    def scale_by(self, delta: int) -> int:
        """Order `delta` more instances, or take `-delta` away; returns the change made. Does not wait for it.

        Boots run side by side; a failed one is an event, and the next decision sees it missing. The youngest that still
        boot are taken away first, then unhealthy, degraded and healthy ones in this order, of these the least loaded, of
        equals the youngest; they drain. Never below the floor.
        """
        if self._closed:
            return 0
        if delta >= 0:
            for _ in range(delta):
                self._order("background:boot")
            return delta
        excess = min(-delta, max(0, self.counts.ordered - self._floor))
        for _ in range(excess):
            if self._booting:
                self._cancel_boot()
            else:
                self._drain_one()
        return -excess

    def metrics(self) -> list[InstanceMetrics]:
        """The latest report of every ready instance, in flight as the balancer counts it.

        An instance that has not reported yet shows as healthy and idle.
        """
        reports = {report.instance_id: report for report in self._provider.metrics()}
        result = []
        for instance_id, running in self._ready.items():
            report = reports.get(instance_id)
            if report is None:
                report = InstanceMetrics(instance_id, capacity=running.capacity)
            in_flight = self._balancer.in_flight(instance_id)
            result.append(msgspec.structs.replace(report, in_flight=in_flight))
        return result

    def sample(self) -> StationSample:
        """The interval since the last sample: `in_service` is the mean number of instances ready or draining,
        `queue_length` of booting ones; their sum x interval is what is paid for. `capacity` are the ready ones."""
        return self._meter.sample(origin_s=self._origin_s)

    async def aclose(self) -> None:
        """End every instance at once."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for instance_id in [*self._ready, *self._draining]:
            self._balancer.remove_instance(instance_id)
        self._ready.clear()
        self._draining.clear()
        self._ports.clear()
        self._count()
        await self._provider.aclose()

    # Changes of state. Each leaves the meter, the balancer and the ports in step.

    def _order(
        self, purpose: str, on_failure: Callable[[ServiceError], None] | None = None
    ) -> asyncio.Task[None]:
        self._ordered += 1
        instance_id = f"instance-{self._ordered}"
        task = self._spawn(self._boot(instance_id, on_failure), f"{purpose} {instance_id}")
        self._booting[instance_id] = task
        self._meter.arrivals += 1
        self._count()
        self._emit(instance_id, "booting")
        return task

    async def _boot(
        self, instance_id: str, on_failure: Callable[[ServiceError], None] | None
    ) -> None:
        from_s = self._loop.time()
        try:
            running = await self._provider.start(instance_id)
        except ServiceError as error:
            self._failed()
            self._meter.completions += 1
            self._emit(instance_id, "boot_failed", reason=error.message)
            if on_failure is not None:
                on_failure(error)
            return
        finally:
            self._booting.pop(instance_id, None)
            self._count()
        self._ready[instance_id] = running
        self._ports[instance_id] = running.port
        self._balancer.add_instance(InstanceMetrics(instance_id, capacity=running.capacity))
        self._count()
        self._emit(instance_id, "ready", boot_s=self._loop.time() - from_s)
        if running.ended is not None:
            running.ended.add_done_callback(lambda ended: self._ended(instance_id, ended))

    def _cancel_boot(self) -> None:
        instance_id, task = self._booting.popitem()
        task.cancel()
        self._meter.completions += 1
        self._count()
        self._emit(instance_id, "boot_cancelled")

    def _drain_one(self) -> None:
        # Sick ones first: else the healthy, being idle, would go and leave a fleet that answers nothing.
        # `reversed` makes the youngest of equals the first minimum.
        report = min(reversed(self.metrics()), key=lambda m: (_HEALTH[m.status], m.in_flight))
        instance_id = report.instance_id
        self._balancer.remove_instance(instance_id)
        self._draining[instance_id] = self._ready.pop(instance_id)
        self._unhealthy_since_s.pop(instance_id, None)
        self._count()
        self._emit(instance_id, "draining", in_flight=self._balancer.in_flight(instance_id))
        self._spawn(self._drain(instance_id), f"background:drain {instance_id}")

    async def _drain(self, instance_id: str) -> None:
        until_s = self._loop.time() + self._drain_s
        try:
            # By our own count first: a call may be on its way that the instance does not know yet.
            async with asyncio.timeout_at(until_s):
                await self._balancer.wait_idle(instance_id)
        except TimeoutError:
            pass  # `stop` below ends it with what it still holds, and the event tells how much
        in_flight = self._balancer.in_flight(instance_id)
        await self._stop(instance_id, max(0.0, until_s - self._loop.time()))
        if self._draining.pop(instance_id, None) is not None:
            self._ports.pop(instance_id, None)
            self._meter.completions += 1
            self._count()
            self._emit(instance_id, "stopped", in_flight=in_flight)

    async def _stop(self, instance_id: str, drain_s: float) -> None:
        try:
            await self._provider.stop(instance_id, drain_s)
        except ServiceError as error:
            self._emit(instance_id, "stop_failed", reason=error.message)

    def _ended(self, instance_id: str, ended: asyncio.Future[str]) -> None:
        if not ended.cancelled() and not self._closed:
            self._died(instance_id, ended.result())

    def _died(self, instance_id: str, reason: str) -> None:
        in_flight = self._balancer.in_flight(instance_id)
        self._balancer.remove_instance(instance_id)
        self._ready.pop(instance_id, None)
        self._draining.pop(instance_id, None)
        self._ports.pop(instance_id, None)
        self._unhealthy_since_s.pop(instance_id, None)
        self._meter.completions += 1
        self._count()
        self._failed()
        self._emit(instance_id, "died", reason=reason, in_flight=in_flight)
        # What is left of it: its port, or a process that hangs.
        self._spawn(self._stop(instance_id, 0.0), f"background:stop {instance_id}")
        self._fill_up()

    # Upkeep.

    async def _refresh(self) -> None:
        """Every heartbeat: tell the balancer of the reports, give up the silent, fill up to the floor."""
        at_s = self._loop.time()
        while True:
            at_s = max(at_s + self._refresh_s, self._loop.time())
            await asyncio.sleep(at_s - self._loop.time())
            for report in self.metrics():
                self._balancer.update(report)
                self._watch(report)
            self._fill_up()

    def _watch(self, report: InstanceMetrics) -> None:
        instance_id = report.instance_id
        if report.status is not InstanceStatus.UNHEALTHY:
            self._unhealthy_since_s.pop(instance_id, None)
            return
        now_s = self._loop.time()
        if now_s - self._unhealthy_since_s.setdefault(instance_id, now_s) >= UNRESPONSIVE_S:
            self._died(instance_id, f"unresponsive for {UNRESPONSIVE_S:g} s")

    def _failed(self) -> None:
        """The first failure in a while is made good at once; a series of them in growing intervals."""
        now_s = self._loop.time()
        if now_s - self._failed_s > _MAX_PAUSE_S:
            self._pause_s = 0.0
        self._failed_s = now_s
        self._fill_from_s = now_s + self._pause_s
        self._pause_s = min(_MAX_PAUSE_S, max(self._refresh_s, 2 * self._pause_s))

    def _fill_up(self) -> None:
        if self._loop.time() >= self._fill_from_s:
            self.scale_by(max(0, self._floor - self.counts.ordered))

    def _count(self) -> None:
        meter = self._meter
        meter.advance()
        meter.busy = len(self._ready) + len(self._draining)
        meter.waiting = len(self._booting)
        meter.capacity = len(self._ready)

    def _emit(self, instance_id: str, state: str, **detail: Detail) -> None:
        self._on_event(
            SystemEvent(
                t_s=self._loop.time() - self._origin_s,
                kind="instance",
                subject=instance_id,
                detail={"state": state, **detail},
            )
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = self._loop.create_task(work, name=name)
        self._tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._loop.call_exception_handler(
                {"message": f"{task.get_name()} failed", "exception": error, "task": task}
            )
