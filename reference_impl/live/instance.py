"""The process of one instance: the Messages API over `Instance`, with heartbeats to the gateway."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

import msgspec

from reference_impl.compute import InlineCompute
from reference_impl.errors import UpstreamFailed
from reference_impl.instances.heartbeat import HeartbeatSender
from reference_impl.instances.instance import Instance
from reference_impl.instances.port import InstanceMetrics
from reference_impl.instances.process_usage import process_usage
from reference_impl.live.config import ProcessConfig
from reference_impl.live.process_cpu import ProcessCpuStation
from reference_impl.live.run_log import RunLog
from reference_impl.live.serving import announce, serving, stop_on_signals
from reference_impl.llm.aiohttp_transport import AiohttpTransport
from reference_impl.llm.http import HttpMessages
from reference_impl.llm.transport import HttpTransport
from reference_impl.metrics import ServiceMetrics
from reference_impl.service import (
    CONTROL_TOKEN_HEADER,
    HEARTBEAT_PATH,
    MessagesEndpoint,
    instance_app,
    request_ids,
)
from reference_impl.system import build_instance

__all__ = ["run_instance"]


async def run_instance(config: ProcessConfig, instance_id: str) -> None:
    """Serve until SIGTERM, then drain for at most the deployment's `drain_s`."""
    stop = stop_on_signals()
    spec = config.deployment
    llm = HttpMessages(
        AiohttpTransport(config.upstream_url),
        api_key=os.environ.get("ANTHROPIC_API_KEY", ""),
        forward_tags=config.forward_tags,
    )
    instance = build_instance(instance_id, spec, llm, InlineCompute(), seed=config.seed)
    metrics = ServiceMetrics(
        {"twinload_instance_in_flight": ("Calls held.", lambda: instance.statistics().in_flight)}
    )
    run_log = RunLog(config.run_dir, "instance", instance_id)
    messages = MessagesEndpoint(instance, metrics, request_ids(), on_done=run_log.trace)
    app = instance_app(messages, metrics, lambda: not instance.statistics().draining)
    control = AiohttpTransport(config.control_url) if config.control_url else None
    try:
        async with serving(app, config.port) as url, asyncio.TaskGroup() as background:
            cpu = ProcessCpuStation(f"{instance_id} cpu")
            sampling = run_log.sample_every(
                config.sample_interval_s, lambda: [instance.sample(), cpu.sample()]
            )
            tasks = [background.create_task(sampling, name="background:sampling")]
            if control is not None:
                sender = _heartbeats(instance, control, config, on_orphaned=stop.set)
                tasks.append(background.create_task(sender.run(), name="background:heartbeat"))
            announce(url)
            await stop.wait()
            await instance.drain(spec.instances.drain_s)
            for task in tasks:
                task.cancel()
            run_log.stations([instance.sample(), cpu.sample()])
    finally:
        await instance.aclose()
        if control is not None:
            await control.aclose()
        run_log.close()


def _heartbeats(
    instance: Instance,
    control: HttpTransport,
    config: ProcessConfig,
    on_orphaned: Callable[[], None],
) -> HeartbeatSender:
    usage = process_usage()
    headers = {"content-type": "application/json", CONTROL_TOKEN_HEADER: config.control_token}

    def measure() -> InstanceMetrics:
        used = usage()
        return instance.metrics(cpu_usage=used.cpu, memory_usage=used.memory)

    async def post(report: InstanceMetrics) -> None:
        await control.post(HEARTBEAT_PATH, headers, msgspec.json.encode(report), _Acknowledgement())

    return HeartbeatSender(
        measure, post, config.deployment.instances.heartbeat_s, on_orphaned=on_orphaned
    )


class _Acknowledgement:
    """Receives the gateway's answer to a heartbeat, of which only the status counts."""

    def head(self, status: int, headers: Mapping[str, str]) -> None:  # noqa: ARG002 - a Receiver's signature
        if status >= 400:
            raise UpstreamFailed(f"the gateway refused a heartbeat: HTTP {status}")

    async def data(self, data: bytes) -> None:
        """There is none to speak of."""
