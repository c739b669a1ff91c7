"""One instance as a service: `Instance`, HTTP application, heartbeats and run log, without sockets or signals."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from reference_impl.batches.consumer import BatchConsumer
from reference_impl.closing import close_all
from reference_impl.compute import Compute
from reference_impl.errors import UpstreamFailed
from reference_impl.instances.heartbeat import HeartbeatSender, Usage
from reference_impl.instances.port import InstanceMetrics
from reference_impl.llm.port import MessagesPort
from reference_impl.llm.transport import HttpTransport
from reference_impl.metrics import ServiceMetrics
from reference_impl.process_config import ProcessConfig
from reference_impl.service import (
    CONTROL_TOKEN_HEADER,
    HEARTBEAT_PATH,
    MessagesEndpoint,
    instance_app,
    request_ids,
)
from reference_impl.system import build_instance
from reference_impl.telemetry import StationSample
from reference_impl.telemetry.run_log import RunLog

__all__ = ["InstanceService"]


class InstanceService:
    """What a gateway forwards to.

    Args:
        instance_id: its name in the fleet.
        config: what exists, seed, sampling, and the token for the gateway.
        llm: the endpoint; closed with the service.
        compute: the CPU of this process; cpu_sample: its station; usage: its load, for heartbeats.
        control: the gateway, for heartbeats; None sends none. on_orphaned: called when nobody takes
            them any more.
        batches: takes requests of batches, closed with the service; None: nothing does.
    """

    def __init__(
        self,
        instance_id: str,
        config: ProcessConfig,
        llm: MessagesPort,
        compute: Compute,
        *,
        cpu_sample: Callable[[], StationSample],
        usage: Callable[[], Usage],
        control: HttpTransport | None,
        on_orphaned: Callable[[], None],
        batches: BatchConsumer | None = None,
    ) -> None:
        spec = config.deployment
        self._drain_s = spec.instances.drain_s
        self._heartbeat_s = spec.instances.heartbeat_s
        self._run_log = run_log = RunLog(config.run_dir, "instance", instance_id)
        self._sample_interval_s = config.sample_interval_s
        self._cpu_sample = cpu_sample
        self._usage = usage
        self._control = control
        self._control_headers = {
            "content-type": "application/json",
            CONTROL_TOKEN_HEADER: config.control_token,
        }
        self._on_orphaned = on_orphaned
        self._batches = batches
        self._tasks: list[asyncio.Task[None]] = []
        self._instance = build_instance(instance_id, spec, llm, compute, seed=config.seed)
        metrics = ServiceMetrics(
            {
                "twinload_instance_in_flight": (
                    "Calls held.",
                    lambda: self._instance.statistics().in_flight,
                )
            }
        )
        self.app = instance_app(
            MessagesEndpoint(
                self._instance,
                metrics,
                request_ids(),
                on_done=run_log.trace,
                trust_tags=config.forward_tags,
            ),
            metrics,
            lambda: not self._instance.statistics().draining,
        )

    def start(self) -> None:
        """Begin sampling, heartbeats and the work on batches."""
        sampling = self._run_log.sample_every(self._sample_interval_s, self._stations)
        self._tasks.append(asyncio.create_task(sampling, name="background:sampling"))
        if self._control is not None:
            sender = HeartbeatSender(
                self._measure, self._post, self._heartbeat_s, on_orphaned=self._on_orphaned
            )
            self._tasks.append(asyncio.create_task(sender.run(), name="background:heartbeat"))
        if self._batches is not None:
            self._batches.start(self._instance, lambda _key, call: self._run_log.trace(call))

    async def drain(self) -> None:
        """Refuse new calls and wait for those in flight, at most the deployment's `drain_s`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._instance.drain(self._drain_s))
            if self._batches is not None:
                group.create_task(self._batches.drain(self._drain_s))

    async def aclose(self) -> None:
        """Write the last samples and close all. A step that fails keeps none of the others from being done."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # Before the pool closes that it looks at.
        steps: list[Callable[[], Awaitable[None] | None]] = [
            lambda: self._run_log.stations(self._stations())
        ]
        if self._batches is not None:
            steps.append(self._batches.aclose)
        steps += [self._run_log.close, self._instance.aclose]
        if self._control is not None:
            steps.append(self._control.aclose)
        await close_all(*steps)

    def _stations(self) -> list[StationSample]:
        ledger = [] if self._batches is None else self._batches.samples()
        return [self._instance.sample(), self._cpu_sample(), *ledger]

    def _measure(self) -> InstanceMetrics:
        used = self._usage()
        return self._instance.metrics(cpu_usage=used.cpu, memory_usage=used.memory)

    async def _post(self, report: InstanceMetrics) -> None:
        assert self._control is not None
        await self._control.post(
            HEARTBEAT_PATH, self._control_headers, msgspec.json.encode(report), _Acknowledgement()
        )


class _Acknowledgement:
    """Receives the gateway's answer to a heartbeat, of which only the status counts."""

    def head(self, status: int, headers: Mapping[str, str]) -> None:  # noqa: ARG002 - a Receiver's signature
        if status >= 400:
            raise UpstreamFailed(f"the gateway refused a heartbeat: HTTP {status}")

    async def data(self, data: bytes) -> None:
        """There is none to speak of."""
