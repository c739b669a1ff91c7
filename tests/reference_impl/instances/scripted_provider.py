"""A provider for tests: real instances in virtual time, whose boots, deaths and silence the test decides."""

from __future__ import annotations

import asyncio

import msgspec

from reference_impl.errors import UpstreamFailed
from reference_impl.instances.instance import Instance
from reference_impl.instances.port import InstanceMetrics, InstanceStatus, RunningInstance
from reference_impl.instances.slots import Slot
from reference_impl.messages import Call, Completion, Emit, Usage
from reference_impl.telemetry import SystemEvent


class SleepingProcessor:
    """Answers after `service_s`."""

    def __init__(self, service_s: float) -> None:
        self.service_s = service_s

    async def complete(
        self, call: Call, emit: Emit | None = None, slot: Slot | None = None
    ) -> Completion:
        await asyncio.sleep(self.service_s)
        return Completion(Usage())

    async def aclose(self) -> None:
        """It holds nothing."""


class ScriptedProvider:
    """Boots take `boot_s`; the ids in `failing` fail at their end, those in `silent` report no more."""

    def __init__(self, boot_s: float = 2.0, service_s: float = 1.0) -> None:
        self.boot_s = boot_s
        self.service_s = service_s
        self.failing: set[str] = set()
        self.silent: set[str] = set()
        self.cpu_usage = 0.0
        self.instances: dict[str, Instance] = {}
        self.ended: dict[str, asyncio.Future[str]] = {}
        self.stopped: list[tuple[str, float]] = []
        self.boots_cancelled: list[str] = []
        self.booting = 0
        self.closed = False

    async def start(self, instance_id: str) -> RunningInstance:
        self.booting += 1
        try:
            await asyncio.sleep(self.boot_s)
        except asyncio.CancelledError:
            self.boots_cancelled.append(instance_id)
            raise
        finally:
            self.booting -= 1
        if instance_id in self.failing:
            raise UpstreamFailed(f"{instance_id}: exited with status 3")
        instance = Instance(
            instance_id, SleepingProcessor(self.service_s), concurrency=4, queue_limit=100
        )
        self.instances[instance_id] = instance
        self.ended[instance_id] = asyncio.get_running_loop().create_future()
        return RunningInstance(instance_id, instance, 4, self.ended[instance_id])

    async def stop(self, instance_id: str, drain_s: float) -> None:
        self.stopped.append((instance_id, drain_s))
        self.ended[instance_id].cancel()
        instance = self.instances.pop(instance_id, None)
        if instance is not None:
            await instance.drain(drain_s)

    def metrics(self) -> list[InstanceMetrics]:
        reports = [i.metrics(cpu_usage=self.cpu_usage) for i in self.instances.values()]
        return [
            msgspec.structs.replace(report, status=InstanceStatus.UNHEALTHY)
            if report.instance_id in self.silent
            else report
            for report in reports
        ]

    def kill(self, instance_id: str, reason: str = "was killed by SIGKILL") -> None:
        """The instance dies."""
        del self.instances[instance_id]
        self.ended[instance_id].set_result(reason)

    async def aclose(self) -> None:
        self.closed = True
        self.instances.clear()


class EventLog:
    """Events in a form that a test can compare: (instant, subject, state or delta)."""

    def __init__(self) -> None:
        self.events: list[SystemEvent] = []

    def __call__(self, event: SystemEvent) -> None:
        self.events.append(event)

    def of(self, *states: str) -> list[tuple[float, str, str]]:
        """The instances' events with one of these states."""
        return [
            (event.t_s, event.subject, str(event.detail["state"]))
            for event in self.events
            if event.kind == "instance" and event.detail["state"] in states
        ]

    def scaling(self) -> list[tuple[float, object]]:
        return [(e.t_s, e.detail["delta"]) for e in self.events if e.kind == "scaling"]
