"""The virtual world: the system of `reference_impl`, wired as live, with models behind its ports, on a SimPy clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import msgspec

from reference_impl.database.accounting import Accounting
from reference_impl.database.connect import build_accounting
from reference_impl.database.memory_store import MemoryLedger
from reference_impl.database.port import LedgerStore
from reference_impl.instances.instance import Instance
from reference_impl.instances.meter import StationMeter
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import Call, Completion, Emit
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.system import System, build_instance
from reference_impl.telemetry import RequestRecord, StationSample, SystemEvent
from simulation.kernel import run
from simulation.models.batch_clients import BatchClients
from simulation.models.batch_work import BatchWork
from simulation.models.clients import Clients
from simulation.models.cpu import Host, VirtualCpu
from simulation.models.database import DatabaseServer, VirtualLedger, VirtualPool
from simulation.models.fault_player import FaultPlayer, Server
from simulation.models.instance import VirtualInstance, VirtualProvider
from simulation.models.llm_endpoint import LLMEndpoint
from simulation.models.network import Link, RemotePort
from simulation.models.stations import StationChain
from simulation.models.virtual_caches import VirtualCaches
from simulation.scenario.schema import ProcessCpu, Scenario
from simulation.scenario.workload import CompiledWorkload

__all__ = ["RunSink", "SimulationSummary", "simulate"]


class RunSink(Protocol):
    """Where records go: `reference_impl.telemetry.run_folder.RunWriter`, or lists in an experiment."""

    def request(self, record: RequestRecord, /) -> None: ...
    def station(self, sample: StationSample, /) -> None: ...
    def event(self, event: SystemEvent, /) -> None: ...


class SimulationSummary(msgspec.Struct, frozen=True):
    """What a run did: `sent` = `ended`, of them `unfinished`; `simulated_s` is when its last request ended."""

    sent: int
    ended: int
    simulated_s: float


def simulate(
    scenario: Scenario,
    workload: CompiledWorkload,
    sink: RunSink,
    *,
    lead_s: float = 0.0,
    on_progress: Callable[[float, int], None] | None = None,
    max_events: int | None = None,
    wall_clock_limit_s: float | None = None,
    wall_clock: Callable[[], float] | None = None,
) -> SimulationSummary:
    """Play `workload` against `scenario` in virtual time.

    Args:
        lead_s: how long the fleet has been up when the load begins. Control loops tick from their start, so a replay of
            a live run needs the lead that the run had.
        on_progress: called at every sample with (simulated seconds, requests ended).
        max_events, wall_clock_limit_s, wall_clock: limits of the run (`simulation.kernel.run`).

    Raises:
        simulation.kernel.LimitExceeded: a limit was reached; what was recorded is in the sink.
    """
    world = _World(scenario, workload, sink, lead_s, on_progress)
    return run(
        world.main(),
        max_events=max_events,
        wall_clock_limit_s=wall_clock_limit_s,
        clock=wall_clock,
    )


class _World:
    def __init__(
        self,
        scenario: Scenario,
        workload: CompiledWorkload,
        sink: RunSink,
        lead_s: float,
        on_progress: Callable[[float, int], None] | None,
    ) -> None:
        self._scenario = scenario
        self._workload = workload
        self._sink = sink
        self._lead_s = lead_s
        self._on_progress = on_progress
        self._origin_s = 0.0
        self._early_events: list[SystemEvent] | None = []
        self._stations: StationChain | None = None
        self._database: DatabaseServer | None = None
        self._ledger: LedgerStore | None = None
        self._batch_work: BatchWork | None = None
        self._batch_clients: BatchClients | None = None

    async def main(self) -> SimulationSummary:
        scenario = self._scenario
        loop = asyncio.get_running_loop()
        network, seed = scenario.network, scenario.seed
        self._host = Host(scenario.deployment.cores)
        self._gateway_cpu = VirtualCpu("gateway", scenario.cpu.gateway, self._host)
        self._caches = VirtualCaches(scenario, self._workload, self._host)
        self._endpoint_link = Link("instance-endpoint", network.instance_endpoint_s, seed)
        instance_link = Link("gateway-instance", network.gateway_instance_s, seed)
        client_link = Link("client-gateway", network.client_gateway_s, seed)
        profile = scenario.endpoint_under_faults()
        endpoint = LLMEndpoint(profile, seed, detail=scenario.stream_detail)
        self._endpoint = _EndpointStation(endpoint)
        accounting = self._accounting()
        if scenario.deployment.queue.broker != "none":
            assert self._database is not None, "DeploymentSpec asks for one where there is a queue"
            assert self._ledger is not None
            self._batch_work = BatchWork(
                scenario,
                self._database,
                self._ledger.batches(),
                self._gateway_cpu,
                self._batch_recorded,
            )
        self._provider = VirtualProvider(
            scenario.deployment.instances,
            self._make_instance,
            instance_link,
            hashed_uniform(seed),
            self._sample_instance,
            crashable=any(fault.kind == "instance_crash" for fault in scenario.faults),
            batches=None if self._batch_work is None else self._batch_work.instance,
        )
        self._system = System(
            scenario.deployment,
            self._provider,
            self._gateway_cpu,
            seed=seed,
            on_event=self._event,
            accounting=accounting,
            cache_backends=self._caches.backends,
        )
        await self._system.start()
        await asyncio.sleep(self._lead_s)
        self._begin(loop.time())
        client_cpu = None
        if scenario.cpu.client != ProcessCpu():
            client_cpu = VirtualCpu("client", scenario.cpu.client, self._host)
        FaultPlayer(
            scenario.fault_windows(),
            {
                "client_gateway": client_link,
                "gateway_instance": instance_link,
                "instance_endpoint": self._endpoint_link,
            },
            seed,
            self._event,
            origin_s=self._origin_s,
            instances=self._provider,
            servers=self._servers(),
        )
        entrance: MessagesPort = RemotePort(self._system.gateway, client_link)
        if scenario.stations:
            entrance = self._stations = StationChain(scenario.stations, seed, entrance)
        clients = Clients(
            self._workload,
            entrance,
            origin_s=self._origin_s,
            horizon_s=scenario.horizon_s,
            on_record=self._sink.request,
            cpu=client_cpu,
        )
        batches = self._batch_clients = self._make_batch_clients(client_link)
        sampling = asyncio.create_task(
            self._sample_stations(clients, batches), name="background:sampling"
        )
        if batches is None:
            await clients.play(scenario.drain_s)
        else:
            until_s = self._origin_s + scenario.horizon_s + scenario.drain_s
            await asyncio.gather(clients.play(scenario.drain_s), batches.play(until_s))
        ended_s = loop.time() - self._origin_s
        sampling.cancel()
        await asyncio.gather(sampling, return_exceptions=True)
        self._take_samples()
        if self._batch_work is not None:
            await self._batch_work.service.aclose()
        await self._system.aclose()
        if batches is None:
            return SimulationSummary(clients.sent, clients.ended, ended_s)
        return SimulationSummary(
            clients.sent + batches.sent, clients.ended + batches.ended, ended_s
        )

    def _servers(self) -> dict[str, Server]:
        """What outages can befall."""
        servers: dict[str, Server | None] = {
            "redis_outage": self._caches.server,
            "database_outage": self._database,
            "broker_outage": None if self._batch_work is None else self._batch_work.broker,
        }
        return {kind: server for kind, server in servers.items() if server is not None}

    def _accounting(self) -> Accounting | None:
        """Ledger and budgets as live; a ledger in a database is one behind a modelled server and a pool of that size."""
        scenario, spec = self._scenario, self._scenario.deployment.database
        if spec.ledger == "none":
            return None
        if spec.ledger == "memory":
            self._ledger = MemoryLedger()
        else:
            self._database = DatabaseServer(
                scenario.database, seed=scenario.seed, one_at_a_time=spec.ledger == "sqlite"
            )
            # SQLite takes one transaction at a time, whoever asks.
            size = 1 if spec.ledger == "sqlite" else spec.max_size
            pool = VirtualPool(
                self._database,
                size,
                min_size=spec.min_size,
                behind_pgbouncer=spec.behind_pgbouncer,
                acquire_timeout_s=spec.acquire_timeout_s,
                statement_timeout_s=spec.statement_timeout_s,
            )
            self._ledger = VirtualLedger(self._database, pool)
        return build_accounting(
            self._ledger,
            spec,
            source="gateway",
            wall_clock=asyncio.get_running_loop().time,
            on_event=self._event,
        )

    def _make_batch_clients(self, link: Link) -> BatchClients | None:
        """The submitters of the workload's batches; None where there are none."""
        if not self._workload.batches:
            return None
        assert self._batch_work is not None, "Scenario asks for a queue where there are batches"
        assert self._database is not None
        return BatchClients(
            self._workload.batches,
            self._batch_work.service,
            link,
            self._database.ledger,
            origin_s=self._origin_s,
            on_record=self._sink.request,
            on_event=self._event,
        )

    def _batch_recorded(self, key: str, call: Call) -> None:
        if self._batch_clients is not None:
            self._batch_clients.recorded(key, call)

    def _make_instance(self, instance_id: str) -> tuple[Instance, VirtualCpu]:
        scenario = self._scenario
        cpu = VirtualCpu(instance_id, scenario.cpu.instance, self._host)
        llm = RemotePort(self._endpoint, self._endpoint_link)
        return build_instance(instance_id, scenario.deployment, llm, cpu, seed=scenario.seed), cpu

    def _begin(self, now_s: float) -> None:
        """The run starts now: the initial fleet is up."""
        self._origin_s = now_s
        early, self._early_events = self._early_events or [], None
        for event in early:
            self._event(event)

    def _event(self, event: SystemEvent) -> None:
        if self._early_events is not None:
            self._early_events.append(event)
        else:
            self._sink.event(msgspec.structs.replace(event, t_s=event.t_s - self._origin_s))

    async def _sample_stations(self, clients: Clients, batches: BatchClients | None) -> None:
        loop = asyncio.get_running_loop()
        interval_s = self._scenario.sample_interval_s
        tick = 0
        while True:
            tick += 1
            await asyncio.sleep(self._origin_s + tick * interval_s - loop.time())
            self._take_samples()
            if self._on_progress is not None:
                ended = clients.ended + (0 if batches is None else batches.ended)
                self._on_progress(loop.time() - self._origin_s, ended)

    def _take_samples(self) -> None:
        now_s = asyncio.get_running_loop().time()
        record, origin_s = self._sink.station, self._origin_s
        if self._stations is not None:
            for sample in self._stations.samples(origin_s):
                record(sample)
        record(self._gateway_cpu.sample(now_s, origin_s))
        for running in self._provider.running():
            self._sample_instance(running)
        fleet = self._system.fleet.sample()
        record(msgspec.structs.replace(fleet, t_s=fleet.t_s - origin_s))
        record(self._endpoint.meter.sample(origin_s=origin_s))
        for sample in self._caches.samples(now_s, origin_s):
            record(sample)
        if self._ledger is not None:
            for sample in self._ledger.samples(origin_s=origin_s):
                record(sample)
        if self._batch_work is not None:
            for sample in self._batch_work.samples(origin_s=origin_s):
                record(sample)

    def _sample_instance(self, running: VirtualInstance) -> None:
        self._sink.station(running.instance.sample(origin_s=self._origin_s))
        now_s = asyncio.get_running_loop().time()
        self._sink.station(running.cpu.sample(now_s, self._origin_s))
        if running.batches is not None:
            for sample in running.batches.samples(origin_s=self._origin_s):
                self._sink.station(sample)


class _EndpointStation:
    """The endpoint with a meter of the calls that it holds."""

    def __init__(self, endpoint: MessagesPort) -> None:
        self._endpoint = endpoint
        self.meter = StationMeter("endpoint", "endpoint", float("inf"))

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        meter = self.meter
        meter.advance()
        meter.arrivals += 1
        meter.busy += 1
        try:
            return await self._endpoint.complete(call, emit)
        finally:
            meter.advance()
            meter.completions += 1
            meter.busy -= 1

    async def aclose(self) -> None:
        """The endpoint outlives every instance that calls it."""
