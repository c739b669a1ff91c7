"""Instances in virtual time: the same `Instance`, behind a link, on a CPU of its own, after a drawn boot time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from reference_impl.deployment import InstanceSpec
from reference_impl.errors import ConnectionFailed
from reference_impl.instances.boot import boot_time_s
from reference_impl.instances.heartbeat import STALE_INTERVALS
from reference_impl.instances.instance import Instance
from reference_impl.instances.port import InstanceMetrics, InstanceStatus, RunningInstance
from reference_impl.messages import Call, Completion, Emit
from reference_impl.overload.jitter import Uniform
from simulation.kernel import running_loop
from simulation.models.batch_work import InstanceBatches
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
    ended: asyncio.Future[str]
    process: _Process | None = None
    hung_until_s: float = 0.0
    batches: InstanceBatches | None = None


class _Process:
    """The process around an instance: when it crashes, whoever waits for it sees the connection break."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        # A dict, not a set: cut off in the order in which the calls came.
        self._calls: dict[asyncio.Task[Any], None] = {}
        self._crashed = False

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        task = asyncio.current_task()
        assert task is not None
        if self._crashed:
            raise self._lost()
        self._calls[task] = None
        try:
            return await self._instance.complete(call, emit)
        except asyncio.CancelledError:
            if task not in self._calls and task.uncancel() == 0:  # `crash` took it out
                raise self._lost() from None
            raise
        finally:
            self._calls.pop(task, None)

    def crash(self) -> None:
        self._crashed = True
        calls, self._calls = self._calls, {}
        for task in calls:
            task.cancel()

    async def aclose(self) -> None:
        await self._instance.aclose()

    def _lost(self) -> ConnectionFailed:
        return ConnectionFailed(f"{self._instance.instance_id}: the connection was lost")


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
        crashable: whether `crash` will be asked for; a call then costs a little more.
        batches: starts the batch side of an instance that is ready; None: there is none.
    """

    def __init__(
        self,
        spec: InstanceSpec,
        make: Callable[[str], tuple[Instance, VirtualCpu]],
        link: Link,
        uniform: Uniform,
        on_stopped: Callable[[VirtualInstance], None],
        *,
        crashable: bool = False,
        batches: Callable[[str, Instance], InstanceBatches] | None = None,
    ) -> None:
        self._spec = spec
        self._make = make
        self._link = link
        self._uniform = uniform
        self._on_stopped = on_stopped
        self._crashable = crashable
        self._batches = batches
        # Instants before which a replacement of what crashed does not begin to boot.
        self._held_back_until_s: deque[float] = deque()
        self._loop = running_loop()
        self._running: dict[str, VirtualInstance] = {}

    async def start(self, instance_id: str) -> RunningInstance:
        if self._held_back_until_s:
            await self._loop.until(self._held_back_until_s.popleft())
        await asyncio.sleep(boot_time_s(self._spec, instance_id, self._uniform))
        instance, cpu = self._make(instance_id)
        ended: asyncio.Future[str] = self._loop.create_future()
        process = _Process(instance) if self._crashable else None
        self._running[instance_id] = VirtualInstance(
            instance,
            cpu,
            CpuUsage(cpu),
            instance.metrics(),
            ended,
            process,
            batches=None if self._batches is None else self._batches(instance_id, instance),
        )
        port = RemotePort(process if process is not None else instance, self._link)
        return RunningInstance(instance_id, port, self._spec.concurrency, ended)

    async def stop(self, instance_id: str, drain_s: float) -> None:
        running = self._running.get(instance_id)
        if running is None:
            return
        running.ended.cancel()
        if running.batches is None:
            await running.instance.drain(drain_s)
        else:
            await asyncio.gather(running.instance.drain(drain_s), running.batches.drain(drain_s))
        if self._running.pop(instance_id, None) is not None:
            self._on_stopped(running)
            if running.batches is not None:
                await running.batches.aclose()
            await running.instance.aclose()

    def metrics(self) -> list[InstanceMetrics]:
        now_s = self._loop.time()
        for running in self._running.values():
            silent_s = now_s - running.usage.looked_s
            if running.hung_until_s > now_s:
                if silent_s > STALE_INTERVALS * self._spec.heartbeat_s:
                    running.report = msgspec.structs.replace(
                        running.report, status=InstanceStatus.UNHEALTHY
                    )
            elif silent_s >= self._spec.heartbeat_s:
                running.report = running.instance.metrics(cpu_usage=running.usage.since_last())
        return [running.report for running in self._running.values()]

    def running(self) -> Iterator[VirtualInstance]:
        """Every instance that is up, in the order in which they became ready."""
        return iter(self._running.values())

    # Faults.

    def crash(self, instance_id: str, until_s: float) -> None:
        """The process dies with all its calls; a replacement begins to boot no earlier than `until_s`."""
        running = self._running.pop(instance_id)
        self._held_back_until_s.append(until_s)
        self._on_stopped(running)
        assert running.process is not None, "the provider was made without `crashable`"
        running.process.crash()
        if running.batches is not None:
            running.batches.crash()
        running.ended.set_result("crashed")

    def hang(self, instance_id: str, until_s: float) -> None:
        """The process stands still: no answers, no heartbeats."""
        running = self._running[instance_id]
        running.hung_until_s = max(running.hung_until_s, until_s)
        running.cpu.pause(until_s)
        if running.batches is not None:
            running.batches.hang(until_s)

    def slow_down(self, instance_id: str, factor: float) -> None:
        """Its CPU work takes `factor` times as long (1: as usual); without effect when it has ended."""
        running = self._running.get(instance_id)
        if running is not None:
            running.cpu.slow_down(factor)

    def ids(self) -> list[str]:
        """The ids of the instances that are up, in the order in which they became ready."""
        return list(self._running)

    async def aclose(self) -> None:
        for instance_id in list(self._running):
            await self.stop(instance_id, 0.0)
