"""The virtual world with its bytes: services, HTTP framing, heartbeats and run logs, over a modelled network.

`world.py` hands calls from hop to hop as objects, which is fast. Here every hop is an HTTP exchange between the very
applications that live processes serve, on the same clock and under the same declared CPU. Both must tell the same story;
tests hold them together; message batches are played in `world.py` alone. The run folder that comes out is a live one's: traces, samples and events by process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from reference_impl.gateway_service import GatewayService
from reference_impl.instance_service import InstanceService
from reference_impl.instances.boot import boot_time_s
from reference_impl.instances.heartbeat import Usage
from reference_impl.instances.supervised import ReadyLine, SupervisedProvider
from reference_impl.llm.http import HttpMessages
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import Call, Completion, Emit
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.process_config import ProcessConfig
from reference_impl.telemetry import RequestRecord
from reference_impl.telemetry.cpu_station import CpuStation
from simulation.kernel import run
from simulation.models.clients import Clients
from simulation.models.cpu import Host, VirtualCpu
from simulation.models.http_network import AsgiApp, AsgiTransport
from simulation.models.instance import CpuUsage
from simulation.models.network import Link
from simulation.models.virtual_caches import VirtualCaches
from simulation.scenario.prompts import request_body
from simulation.scenario.schema import Scenario
from simulation.scenario.workload import CompiledWorkload

__all__ = ["simulate_wire"]


def simulate_wire(
    scenario: Scenario,
    workload: CompiledWorkload,
    endpoint_app: Callable[[], AsgiApp],
    folder: Path,
    on_record: Callable[[RequestRecord], None],
    *,
    connection_key: str | None = None,
) -> None:
    """Play `workload`; the processes' logs go to `folder`, what the clients see to `on_record` (no stages).

    `endpoint_app` builds the endpoint's application on the virtual loop (the mock's, for instance); `connection_key`: see
    `AsgiTransport`.
    """
    world = _WireWorld(scenario, workload, endpoint_app, folder, on_record, connection_key)
    run(world.main())


class _WireWorld:
    def __init__(
        self,
        scenario: Scenario,
        workload: CompiledWorkload,
        endpoint_app: Callable[[], AsgiApp],
        folder: Path,
        on_record: Callable[[RequestRecord], None],
        connection_key: str | None,
    ) -> None:
        self._scenario = scenario
        self._workload = workload
        self._endpoint_app = endpoint_app
        self._folder = folder
        self._on_record = on_record
        self._connection_key = connection_key
        self._instances: dict[str, _VirtualProcess] = {}

    async def main(self) -> None:
        scenario = self._scenario
        network, spec, seed = scenario.network, scenario.deployment, scenario.seed
        self._host = Host(spec.cores)
        self._endpoint = self._endpoint_app()
        self._endpoint_link = Link("instance-endpoint", network.instance_endpoint_s, seed)
        self._instance_link = Link("gateway-instance", network.gateway_instance_s, seed)
        luck = hashed_uniform(seed)
        provider = SupervisedProvider(
            self._spawn,
            self._port_to_instance,
            lambda instance_id: boot_time_s(spec.instances, instance_id, luck),
            capacity=spec.instances.concurrency,
            heartbeat_s=spec.instances.heartbeat_s,
        )
        self._config = ProcessConfig(
            deployment=spec,
            upstream_url="http://endpoint",
            run_dir=self._folder,
            seed=seed,
            forward_tags=True,
            tenants={f"key of {tenant}": tenant for tenant in self._workload.tenants},
            sample_interval_s=scenario.sample_interval_s,
            control_url="http://gateway",
            control_token="virtual",  # noqa: S106 - nobody outside this process can use it
        )
        cpu = VirtualCpu("gateway", scenario.cpu.gateway, self._host)
        self._gateway = GatewayService(
            self._config,
            provider,
            cpu,
            cpu_sample=_station("gateway cpu", cpu).sample,
            cache_backends=VirtualCaches(scenario, self._workload, self._host).backends,
        )
        await self._gateway.start()
        entrance = AsgiTransport(
            self._gateway.app, Link("client-gateway", network.client_gateway_s, seed)
        )
        clients = Clients(
            self._workload,
            _BodyPort(self._workload, entrance),
            origin_s=asyncio.get_running_loop().time(),
            horizon_s=scenario.horizon_s,
            on_record=self._on_record,
        )
        await clients.play(scenario.drain_s)
        await self._gateway.drain()
        await entrance.aclose()
        await self._gateway.aclose()

    async def _spawn(self, instance_id: str) -> _VirtualProcess:
        scenario = self._scenario
        cpu = VirtualCpu(instance_id, scenario.cpu.instance, self._host)
        usage = CpuUsage(cpu)
        process = _VirtualProcess(instance_id)
        process.service = InstanceService(
            instance_id,
            self._config,
            HttpMessages(
                AsgiTransport(self._endpoint, self._endpoint_link, self._connection_key),
                api_key="virtual",
                forward_tags=True,
            ),
            cpu,
            cpu_sample=_station(f"{instance_id} cpu", cpu).sample,
            usage=lambda: Usage(cpu=usage.since_last(), memory=0.0),
            control=AsgiTransport(self._gateway.app, self._instance_link),
            on_orphaned=process.orphaned,
        )
        process.service.start()
        self._instances[process.url] = process
        return process

    def _port_to_instance(self, url: str) -> MessagesPort:
        service = self._instances[url].service
        return HttpMessages(
            AsgiTransport(service.app, self._instance_link), forward_tags=True, trust_outcome=True
        )


def _station(name: str, cpu: VirtualCpu) -> CpuStation:
    loop = asyncio.get_running_loop()
    return CpuStation(name, lambda: cpu.busy_s(loop.time()))


class _VirtualProcess:
    """An instance's process, as its provider sees it (`reference_impl.instances.supervised.Child`)."""

    service: InstanceService

    def __init__(self, instance_id: str) -> None:
        self.url = f"http://{instance_id}"
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def ready(self, limit_s: float) -> ReadyLine:  # noqa: ARG002 - it is ready at once
        return ReadyLine(ready=self.url)

    async def stop(self, limit_s: float) -> None:
        """SIGTERM: drain, write down, go; what is not done after `limit_s` is cut off."""
        self.ended.cancel()
        try:
            async with asyncio.timeout(limit_s):
                await self.service.drain()
        except TimeoutError:
            pass  # the kill: calls in flight see their connection close
        await self.service.aclose()

    def orphaned(self) -> None:
        if not self.ended.done():
            self.ended.set_result("orphaned")


class _BodyPort:
    """Sends each call with the body and the key that a live injector would send."""

    def __init__(self, workload: CompiledWorkload, entrance: AsgiTransport) -> None:
        self._workload = workload
        self._ports = {
            tenant: HttpMessages(
                entrance, api_key=f"key of {tenant}", forward_tags=True, trust_outcome=True
            )
            for tenant in workload.tenants
        }

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        call.body = request_body(self._workload, call.request_id)
        return await self._ports[call.tenant].complete(call, emit)

    async def aclose(self) -> None:
        """The transport is the world's."""
