"""The gateway as a service: system, HTTP application and run log in one, without sockets, processes or signals.

`live/gateway.py` serves it on a port with instances in processes; the virtual world can play the same bytes over a modelled
network.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from reference_impl.answer_cache import NO_BACKENDS, CacheBackends
from reference_impl.batches.routes import BatchRoutes
from reference_impl.batches.service import BatchService
from reference_impl.closing import close_all
from reference_impl.compute import Compute
from reference_impl.database.connect import build_accounting
from reference_impl.database.port import LedgerStore
from reference_impl.instances.port import InstanceMetrics, InstanceProvider
from reference_impl.metrics import ServiceMetrics
from reference_impl.process_config import ProcessConfig
from reference_impl.queues.port import MessageQueue
from reference_impl.queues.station import QueueStation
from reference_impl.service import MessagesEndpoint, gateway_app, request_ids
from reference_impl.system import System
from reference_impl.telemetry import StationSample
from reference_impl.telemetry.run_log import RunLog

__all__ = ["GatewayService", "ReportedProvider"]


class ReportedProvider(InstanceProvider, Protocol):
    """A provider whose instances report themselves over HTTP."""

    def heartbeat(self, metrics: InstanceMetrics) -> bool:
        """Take a report; False when no such instance runs."""
        ...


class GatewayService:
    """The front door of a deployment.

    Args:
        config: what exists, seed, tenants, control token, sampling.
        provider: starts instances; gets the heartbeats that arrive over HTTP.
        compute: the CPU of this process; cpu_sample: its station.
        ledger: where requests are accounted for, closed with the service; None: nowhere.
        queue: carries the requests of message batches, closed with the service; None: it takes no batches.
        cache_backends: what the cache needs beside its description.
        wall_clock: Unix time in seconds. source: unique to this start; names its rows in the ledger.
    """

    def __init__(
        self,
        config: ProcessConfig,
        provider: ReportedProvider,
        compute: Compute,
        *,
        cpu_sample: Callable[[], StationSample],
        ledger: LedgerStore | None = None,
        queue: MessageQueue | None = None,
        cache_backends: CacheBackends = NO_BACKENDS,
        wall_clock: Callable[[], float] | None = None,
        source: str = "gateway",
    ) -> None:
        self._drain_s = config.deployment.instances.drain_s
        self._run_log = run_log = RunLog(config.run_dir, "gateway", "gateway")
        self._sample_interval_s = config.sample_interval_s
        self._cpu_sample = cpu_sample
        self._watching: list[asyncio.Task[None]] = []
        self._ready = False
        clock = wall_clock or asyncio.get_running_loop().time
        accounting = None
        if ledger is not None:
            accounting = build_accounting(
                ledger,
                config.deployment.database,
                source=source,
                wall_clock=clock,
                folder=config.ledger_dir or config.run_dir,
                on_event=run_log.event,
            )
        self._ledger = ledger
        self._system = System(
            config.deployment,
            provider,
            compute,
            seed=config.seed,
            on_event=run_log.event,
            accounting=accounting,
            cache_backends=cache_backends,
        )
        metrics = ServiceMetrics(
            {
                "twinload_gateway_in_flight": (
                    "Requests held.",
                    lambda: self._system.gateway.statistics().in_flight,
                ),
                "twinload_instances_ready": (
                    "Ready instances.",
                    lambda: self._system.fleet.counts.ready,
                ),
            }
        )
        messages = MessagesEndpoint(
            self._system.gateway,
            metrics,
            request_ids(),
            config.tenants,
            on_done=run_log.trace,
            trust_tags=config.forward_tags,
        )
        self._queue = queue
        self._queue_station = QueueStation()
        self._batches: BatchService | None = None
        if queue is not None:
            assert ledger is not None, "DeploymentSpec asks for a ledger where there is a queue"
            self._batches = BatchService(
                ledger.batches(),
                queue,
                clock,
                max_retries=config.deployment.queue.max_retries,
                compute=compute,
            )
        self.app = gateway_app(
            messages,
            metrics,
            lambda: self._ready and self._system.fleet.counts.ready > 0,
            on_heartbeat=provider.heartbeat,
            control_token=config.control_token,
            batches=(
                None
                if self._batches is None
                else BatchRoutes(self._batches, messages.authenticate, messages.new_request_id)
            ),
        )

    async def start(self) -> None:
        """Open the ledger, boot the fleet, wait for the queue.

        Raises a DatabaseError, a ServiceError when no instance becomes ready, or a QueueError.
        """
        await self._system.start()
        if self._batches is not None:
            await self._batches.start()
        sampling = self._run_log.sample_every(self._sample_interval_s, self._stations)
        self._watching.append(asyncio.create_task(sampling, name="background:sampling"))
        if self._queue is not None:
            watch = self._queue_station.watch(self._queue, self._sample_interval_s)
            self._watching.append(asyncio.create_task(watch, name="background:queue watch"))
        self._ready = True

    async def drain(self) -> None:
        """Say that no more is taken, and wait for what is in flight, at most the deployment's `drain_s`."""
        self._ready = False
        await self._system.drain(self._drain_s)

    async def aclose(self) -> None:
        """End the fleet and write the last samples. A step that fails keeps none of the others from being done."""
        for task in self._watching:
            task.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        steps: list[Callable[[], Awaitable[None] | None]] = []
        if self._watching:
            steps.append(lambda: self._run_log.stations(self._stations()))
        if self._batches is not None:
            steps.append(self._batches.aclose)
        await close_all(*steps, self._system.aclose, self._run_log.close)

    def _stations(self) -> list[StationSample]:
        ledger = [] if self._ledger is None else self._ledger.samples()
        queue = self._queue_station.sample()
        return [self._cpu_sample(), self._system.fleet.sample(), *ledger, *queue]
