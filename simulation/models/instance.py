"""Instances in virtual time: the same `Instance`, behind a link, on a CPU of its own, after a drawn boot time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reference_impl.deployment import InstanceSpec
from reference_impl.instances.boot import boot_time_s
from reference_impl.instances.instance import Instance
from reference_impl.instances.port import InstanceMetrics, RunningInstance
from reference_impl.overload.jitter import Uniform
from simulation.models.cpu import VirtualCpu
from simulation.models.network import Link, RemotePort

__all__ = ["CpuUsage", "VirtualInstance", "VirtualProvider"]


class CpuUsage:
    """The busy fraction of a CPU between two looks at it; what psutil says of a live process."""

    def __init__(self, cpu: VirtualCpu) -> None:
        self._cpu = cpu
        self._loop = asyncio.get_running_loop()
        self.looked_s = self._loop.time()
        self._busy_s = cpu.busy_s(self.looked_s)

    def since_last(self) -> float:
        """Fraction of 1 since the last call; 0 at the same instant."""
        now_s = self._loop.time()
        busy_s = self._cpu.busy_s(now_s)
        elapsed_s, used_s = now_s - self.looked_s, busy_s - self._busy_s
        self.looked_s, self._busy_s = now_s, busy_s
        return min(1.0, used_s / elapsed_s) if elapsed_s > 0 else 0.0


@dataclass(slots=True)
class VirtualInstance:
    """A running instance and its CPU; `report` is what its last heartbeat said."""

    instance: Instance
    cpu: VirtualCpu
    usage: CpuUsage
    report: InstanceMetrics


class VirtualProvider:
    """Implements `InstanceProvider`.

    Reports are read when they are asked for, no more often than heartbeats would bring them: a heartbeat task for each of
    hundreds of instances would cost more than their requests.

    Args:
        spec: boot time and heartbeat.
        make: builds the instance of an id, and its CPU.
        link: between the gateway and every instance.
        uniform: luck of boot times.
        on_stopped: told an instance that has ended, for its last samples.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        make: Callable[[str], tuple[Instance, VirtualCpu]],
        link: Link,
        uniform: Uniform,
        on_stopped: Callable[[VirtualInstance], None],
    ) -> None:
        self._spec = spec
        self._make = make
        self._link = link
        self._uniform = uniform
        self._on_stopped = on_stopped
        self._loop = asyncio.get_running_loop()
        self._running: dict[str, VirtualInstance] = {}

    async def start(self, instance_id: str) -> RunningInstance:
        await asyncio.sleep(boot_time_s(self._spec, instance_id, self._uniform))
        instance, cpu = self._make(instance_id)
        self._running[instance_id] = VirtualInstance(
            instance, cpu, CpuUsage(cpu), instance.metrics()
        )
        return RunningInstance(
            instance_id, RemotePort(instance, self._link), self._spec.concurrency
        )

    async def stop(self, instance_id: str, drain_s: float) -> None:
        running = self._running.get(instance_id)
        if running is None:
            return
        await running.instance.drain(drain_s)
        if self._running.pop(instance_id, None) is not None:
            self._on_stopped(running)
            await running.instance.aclose()

    def metrics(self) -> list[InstanceMetrics]:
        now_s = self._loop.time()
        for running in self._running.values():
            if now_s - running.usage.looked_s >= self._spec.heartbeat_s:
                running.report = running.instance.metrics(cpu_usage=running.usage.since_last())
        return [running.report for running in self._running.values()]

    def running(self) -> Iterator[VirtualInstance]:
        """Every instance that is up, in the order in which they became ready."""
        return iter(self._running.values())

    async def aclose(self) -> None:
        for instance_id in list(self._running):
            await self.stop(instance_id, 0.0)
