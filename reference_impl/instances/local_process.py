"""Instances as worker processes on this machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from reference_impl.errors import UpstreamFailed
from reference_impl.instances.child_process import ChildProcess
from reference_impl.instances.heartbeat import HeartbeatLog
from reference_impl.instances.port import InstanceMetrics, RunningInstance
from reference_impl.llm.port import MessagesPort

__all__ = ["Command", "LocalProcessProvider", "PortFactory", "service_command"]

# The program and its arguments for the instance with this id.
Command = Callable[[str], Sequence[str]]
# The port to the instance that listens at this URL.
PortFactory = Callable[[str], MessagesPort]

# Time for an instance to write down what it recorded, beyond its drain.
_EXIT_GRACE_S = 5.0


def service_command(config_path: Path) -> Command:
    """The project's own instance process: `python -P -m reference_impl.service instance --config ... --id ...`.

    `-P`: the current folder is not searched for modules, so a user's own `reference_impl/` cannot get in the way.
    """

    def command(instance_id: str) -> Sequence[str]:
        arguments = ["instance", "--config", str(config_path), "--id", instance_id]
        return [sys.executable, "-P", "-m", "reference_impl.service", *arguments]

    return command


class LocalProcessProvider:
    """Starts and stops instances as child processes; implements `InstanceProvider`.

    A child announces `{"ready": "http://127.0.0.1:PORT"}` on its standard output, reports by `heartbeat` (through the
    gateway's HTTP endpoint), and ends on SIGTERM once it has drained. Must be made on the running loop.
    """

    def __init__(
        self,
        command: Command,
        make_port: PortFactory,
        boot_s: Callable[[str], float],
        *,
        capacity: int,
        heartbeat_s: float,
        ready_limit_s: float = 60.0,
    ) -> None:
        """`boot_s(instance_id)`: no earlier is the instance ready. `capacity`: its concurrency limit."""
        self._command = command
        self._make_port = make_port
        self._boot_s = boot_s
        self._capacity = capacity
        self._ready_limit_s = ready_limit_s
        self._reports = HeartbeatLog(heartbeat_s)
        # From the spawn to the end, so also while an instance boots or drains.
        self._children: dict[str, ChildProcess] = {}
        self._ports: dict[str, MessagesPort] = {}
        # The folder that `reference_impl` was loaded from, wherever it is installed.
        root = str(Path(__file__).resolve().parents[2])
        inherited = os.environ.get("PYTHONPATH")
        self._env = {"PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root}

    async def start(self, instance_id: str) -> RunningInstance:
        """Boot an instance. Raises UpstreamFailed, in one line with its last words, when it does not become ready."""
        loop = asyncio.get_running_loop()
        ready_from_s = loop.time() + self._boot_s(instance_id)
        child = await ChildProcess.spawn(instance_id, self._command(instance_id), self._env)
        self._children[instance_id] = child
        try:
            line = await child.ready(self._ready_limit_s)
            await _outlive(child, ready_from_s)
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


async def _outlive(child: ChildProcess, until_s: float) -> None:
    """Wait until `until_s` on the loop's clock. Raises UpstreamFailed as soon as the child has ended."""
    try:
        async with asyncio.timeout_at(until_s):
            reason = await asyncio.shield(child.ended)
    except TimeoutError:
        return
    raise UpstreamFailed(f"{child.name}: {reason} while it booted")
