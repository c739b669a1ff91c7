"""The process of the gateway: `GatewayService` on a port, with instances in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

from reference_impl.answer_cache import CacheBackends
from reference_impl.caches.connect import URL_VARIABLE, BadStoreUrl, store_of
from reference_impl.compute import InlineCompute
from reference_impl.database.errors import DatabaseError
from reference_impl.errors import ServiceError
from reference_impl.gateway_service import GatewayService
from reference_impl.instances.boot import boot_time_s
from reference_impl.instances.local_process import LocalProcessProvider, service_command
from reference_impl.instances.process_usage import cpu_used_s
from reference_impl.live.serving import announce, serving, stop_on_signals
from reference_impl.live.stores import batch_queue, ledger_store
from reference_impl.live.wall_clock import wall_clock_s
from reference_impl.llm.aiohttp_transport import AiohttpTransport
from reference_impl.llm.http import HttpMessages
from reference_impl.llm.port import MessagesPort
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.process_config import ConfigError, ProcessConfig, usable_folders
from reference_impl.queues.errors import QueueError
from reference_impl.telemetry.cpu_station import CpuStation

__all__ = ["run_gateway"]


async def run_gateway(config: ProcessConfig) -> None:
    """Start the fleet, serve until SIGTERM, drain, stop the fleet. Raises ConfigError when nothing can be started."""
    stop = stop_on_signals()
    instances = config.deployment.instances
    luck = hashed_uniform(config.seed)
    source = f"gateway-{secrets.token_hex(6)}"
    ledger = ledger_store(config)
    queue = batch_queue(config)
    cache_backends = await _cache_backends(config, source)
    config = config.model_copy(update={"control_token": secrets.token_urlsafe(32)})
    with _instance_config_file() as instance_config:
        provider = LocalProcessProvider(
            service_command(instance_config),
            _port_to_instance,
            lambda instance_id: boot_time_s(instances, instance_id, luck),
            capacity=instances.concurrency,
            heartbeat_s=instances.heartbeat_s,
        )
        with usable_folders():
            service = GatewayService(
                config,
                provider,
                InlineCompute(),
                cpu_sample=CpuStation("gateway cpu", cpu_used_s).sample,
                ledger=ledger,
                queue=queue,
                wall_clock=wall_clock_s,
                source=source,
                cache_backends=cache_backends,
            )
        try:
            async with serving(service.app, config.port) as url:
                told = {"port": 0, "tenants": {}, "control_url": url}
                instance_config.write_text(config.model_copy(update=told).model_dump_json())
                if not await _started(service, stop):
                    return
                announce(url)
                await stop.wait()
                await service.drain()
        finally:
            await service.aclose()


async def _cache_backends(config: ProcessConfig, process: str) -> CacheBackends:
    spec = config.deployment.cache
    try:
        store = store_of(spec, os.environ.get(URL_VARIABLE, ""))
    except BadStoreUrl as error:
        raise ConfigError(str(error)) from error
    if not (spec.enabled and spec.semantic.enabled):
        return CacheBackends(store, process)
    from reference_impl.caches.semantic.embedder import EmbedderUnavailable
    from reference_impl.caches.semantic.minilm import MiniLMEmbedder
    from reference_impl.semantic_answers import Semantics

    embedder = MiniLMEmbedder()
    try:
        await embedder.embed(["loaded before the first request needs it"])
    except EmbedderUnavailable as error:
        raise ConfigError(f"cache.semantic: {error}") from error
    return CacheBackends(store, process, Semantics(embedder))


def _port_to_instance(url: str) -> MessagesPort:
    return HttpMessages(AiohttpTransport(url), forward_tags=True, trust_outcome=True)


async def _started(service: GatewayService, stop: asyncio.Event) -> bool:
    """Boot the fleet; False when the process is told to stop before it is up."""
    starting = asyncio.create_task(service.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return False
    try:
        starting.result()
    except ServiceError as error:
        raise ConfigError(f"no instance became ready: {error.message}") from error
    except (DatabaseError, QueueError) as error:
        raise ConfigError(str(error)) from error
    return True


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
