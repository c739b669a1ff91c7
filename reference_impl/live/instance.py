"""The process of one instance: `InstanceService` on a port."""

from __future__ import annotations

import os

from reference_impl.compute import InlineCompute
from reference_impl.instance_service import InstanceService
from reference_impl.instances.process_usage import cpu_used_s, process_usage
from reference_impl.live.serving import announce, serving, stop_on_signals
from reference_impl.live.stores import batch_consumer
from reference_impl.llm.aiohttp_transport import AiohttpTransport
from reference_impl.llm.http import HttpMessages
from reference_impl.process_config import ProcessConfig, usable_folders
from reference_impl.telemetry.cpu_station import CpuStation

__all__ = ["run_instance"]


async def run_instance(config: ProcessConfig, instance_id: str) -> None:
    """Serve until SIGTERM, or until the gateway is gone, then drain. Raises ConfigError when it cannot be made."""
    stop = stop_on_signals()
    llm = HttpMessages(
        AiohttpTransport(config.upstream_url),
        api_key=os.environ.get("ANTHROPIC_API_KEY", ""),
        forward_tags=config.forward_tags,
    )
    with usable_folders():
        service = InstanceService(
            instance_id,
            config,
            llm,
            InlineCompute(),
            cpu_sample=CpuStation(f"{instance_id} cpu", cpu_used_s).sample,
            usage=process_usage(),
            control=AiohttpTransport(config.control_url) if config.control_url else None,
            on_orphaned=stop.set,
            batches=batch_consumer(config, instance_id),
        )
    try:
        async with serving(service.app, config.port) as url:
            service.start()
            announce(url)
            await stop.wait()
            await service.drain()
    finally:
        await service.aclose()
