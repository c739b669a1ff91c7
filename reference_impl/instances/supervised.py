"""Instances behind a supervisor: it starts them, hears their heartbeats, and ends them.

What an instance is, a process or a service on the same virtual loop, is the business of `spawn`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from reference_impl.errors import UpstreamFailed
from reference_impl.instances.heartbeat import HeartbeatLog
from reference_impl.instances.port import InstanceMetrics, RunningInstance
from reference_impl.llm.port import MessagesPort

__all__ = ["Child", "PortFactory", "ReadyLine", "Spawn", "SupervisedProvider"]

# The port to the instance that listens at this URL.
PortFactory = Callable[[str], MessagesPort]

# Time for an instance to write down what it recorded, beyond its drain.
_EXIT_GRACE_S = 5.0


class ReadyLine(msgspec.Struct, frozen=True):
    """What an instance announces when it is ready: its URL. A process prints it as a line of JSON."""

    ready: str


class Child(Protocol):
    """A spawned instance. `ended` gets the reason when it ends unasked, and is cancelled when it was stopped."""

    @property
    def ended(self) -> asyncio.Future[str]: ...

    async def ready(self, limit_s: float) -> ReadyLine:
        """Wait for the announcement. Raises UpstreamFailed when the child ends, or the limit passes, without it."""
        ...

    async def stop(self, limit_s: float) -> None:
        """Ask it to end; end it by force after `limit_s`."""
        ...


Spawn = Callable[[str], Awaitable[Child]]


class SupervisedProvider:
    """Starts and stops children; implements `InstanceProvider`.

    A child reports by `heartbeat` (through the gateway's HTTP endpoint) and ends, when asked, once it has drained. Must be
    made on the running loop.
    """

    def __init__(
        self,
        spawn: Spawn,
        make_port: PortFactory,
        boot_s: Callable[[str], float],
        *,
        capacity: int,
        heartbeat_s: float,
        ready_limit_s: float = 60.0,
    ) -> None:
        """`boot_s(instance_id)`: no earlier is the instance ready. `capacity`: its concurrency limit."""
        self._spawn = spawn
        self._make_port = make_port
        self._boot_s = boot_s
        self._capacity = capacity
        self._ready_limit_s = ready_limit_s
        self._reports = HeartbeatLog(heartbeat_s)
        # From the spawn to the end, so also while an instance boots or drains.
        self._children: dict[str, Child] = {}
        self._ports: dict[str, MessagesPort] = {}

    async def start(self, instance_id: str) -> RunningInstance:
        """Boot an instance. Raises UpstreamFailed, in one line with its last words, when it does not become ready."""
        loop = asyncio.get_running_loop()
        ready_from_s = loop.time() + self._boot_s(instance_id)
        child = await self._spawn(instance_id)
        self._children[instance_id] = child
        try:
            line = await child.ready(self._ready_limit_s)
            await _outlive(instance_id, child, ready_from_s)
        except BaseException:
            try:
                await child.stop(0.0)
            finally:
                del self._children[instance_id]
            raise
        port = self._ports[instance_id] = self._make_port(line.ready)
        self._reports.expect(instance_id, self._capacity)
        child.ended.add_done_callback(lambda _: self._reports.forget(instance_id))
        return RunningInstance(instance_id, port, self._capacity, child.ended)

    async def stop(self, instance_id: str, drain_s: float) -> None:
        """SIGTERM, so that the instance drains; SIGKILL when it is not gone after `drain_s` and a short grace."""
        if instance_id not in self._ports:
            return
        # It stays registered to its end: when this is cancelled, `aclose` finds it and gives it its grace.
        await self._children[instance_id].stop(drain_s + _EXIT_GRACE_S)
        self._children.pop(instance_id, None)
        port = self._ports.pop(instance_id, None)
        if port is not None:
            await port.aclose()

    def heartbeat(self, metrics: InstanceMetrics) -> bool:
        """Take a report that an instance has sent. False when no such instance runs.

        The reports of instances that boot or drain are acknowledged (else they would take themselves for orphans) but
        not kept: they do not describe what takes calls.
        """
        return self._reports.report(metrics) or metrics.instance_id in self._children

    def metrics(self) -> list[InstanceMetrics]:
        """The latest reports; those older than three heartbeats show UNHEALTHY."""
        return self._reports.metrics()

    async def aclose(self) -> None:
        """End every instance: SIGTERM to all at once, a short grace to write their records, SIGKILL."""
        await asyncio.gather(*[self.stop(instance_id, 0.0) for instance_id in list(self._ports)])


async def _outlive(name: str, child: Child, until_s: float) -> None:
    """Wait until `until_s` on the loop's clock. Raises UpstreamFailed as soon as the child has ended."""
    try:
        async with asyncio.timeout_at(until_s):
            reason = await asyncio.shield(child.ended)
    except TimeoutError:
        return
    raise UpstreamFailed(f"{name}: {reason} while it booted")
