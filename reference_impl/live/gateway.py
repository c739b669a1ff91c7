"""The process of the gateway: the Messages API over `System`, with instances in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reference_impl.compute import InlineCompute
from reference_impl.errors import ServiceError
from reference_impl.instances.boot import boot_time_s
from reference_impl.instances.local_process import LocalProcessProvider, service_command
from reference_impl.live.config import ConfigError, ProcessConfig
from reference_impl.live.process_cpu import ProcessCpuStation
from reference_impl.live.run_log import RunLog
from reference_impl.live.serving import announce, serving, stop_on_signals
from reference_impl.llm.aiohttp_transport import AiohttpTransport
from reference_impl.llm.http import HttpMessages
from reference_impl.llm.port import MessagesPort
from reference_impl.metrics import ServiceMetrics
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.service import MessagesEndpoint, gateway_app, request_ids
from reference_impl.system import System
from reference_impl.telemetry import StationSample

__all__ = ["run_gateway"]


async def run_gateway(config: ProcessConfig) -> None:
    """Start the fleet, serve until SIGTERM, drain, stop the fleet. Raises ConfigError when nothing can be started."""
    stop = stop_on_signals()
    spec = config.deployment
    token = secrets.token_urlsafe(32)
    run_log = RunLog(config.run_dir, "gateway", "gateway")
    with _instance_config_file() as instance_config:
        luck = hashed_uniform(config.seed)
        provider = LocalProcessProvider(
            service_command(instance_config),
            _port_to_instance,
            lambda instance_id: boot_time_s(spec.instances, instance_id, luck),
            capacity=spec.instances.concurrency,
            heartbeat_s=spec.instances.heartbeat_s,
        )
        system = System(
            spec,
            provider,
            InlineCompute(),
            seed=config.seed,
            on_event=run_log.event,
        )
        metrics = ServiceMetrics(
            {
                "twinload_gateway_in_flight": (
                    "Requests held.",
                    lambda: system.gateway.statistics().in_flight,
                ),
                "twinload_instances_ready": ("Ready instances.", lambda: system.fleet.counts.ready),
            }
        )
        messages = MessagesEndpoint(
            system.gateway, metrics, request_ids(), config.tenants, on_done=run_log.trace
        )
        ready = False
        app = gateway_app(
            messages,
            metrics,
            lambda: ready and system.fleet.counts.ready > 0,
            on_heartbeat=provider.heartbeat,
            control_token=token,
        )
        try:
            async with serving(app, config.port) as url:
                _write_instance_config(instance_config, config, url, token)
                await _start(system, stop)
                if stop.is_set():
                    return
                ready = True
                cpu = ProcessCpuStation("gateway cpu")

                def stations() -> list[StationSample]:
                    return [cpu.sample(), system.fleet.sample()]

                sampling = asyncio.create_task(
                    run_log.sample_every(config.sample_interval_s, stations),
                    name="background:sampling",
                )
                announce(url)
                await stop.wait()
                ready = False
                await system.drain(spec.instances.drain_s)
                sampling.cancel()
                run_log.stations(stations())
        finally:
            await system.aclose()
            run_log.close()


def _port_to_instance(url: str) -> MessagesPort:
    return HttpMessages(AiohttpTransport(url), forward_tags=True, trust_outcome=True)


async def _start(system: System, stop: asyncio.Event) -> None:
    """Boot the fleet, unless the process is told to stop before it is up."""
    starting = asyncio.create_task(system.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return
    try:
        starting.result()
    except ServiceError as error:
        raise ConfigError(f"no instance became ready: {error.message}") from error


@contextlib.contextmanager
def _instance_config_file() -> Iterator[Path]:
    """A file that only this user can read: it will hold the control token."""
    handle, name = tempfile.mkstemp(prefix="twinload-instance-", suffix=".json")
    os.close(handle)
    path = Path(name)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _write_instance_config(path: Path, config: ProcessConfig, url: str, token: str) -> None:
    instance = config.model_copy(
        update={"port": 0, "tenants": {}, "control_url": url, "control_token": token}
    )
    path.write_text(instance.model_dump_json())
