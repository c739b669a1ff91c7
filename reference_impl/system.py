"""The system put together from a DeploymentSpec: the same wiring on both clocks.

What differs between the worlds is handed in: who starts instances, whose CPU it is, where events go. Everything else, down
to which cache and which policy, is decided here once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from reference_impl.answer_cache import NO_BACKENDS, CacheBackends, build_cache
from reference_impl.autoscaler.autoscaler import AutoScaler
from reference_impl.autoscaler.control_loop import ScalingLoop
from reference_impl.balancer.load_balancer import LoadBalancer
from reference_impl.closing import close_all
from reference_impl.compute import Compute
from reference_impl.database.accounting import Accounting
from reference_impl.deployment import DeploymentSpec
from reference_impl.gateway import Gateway
from reference_impl.instances.fleet import Fleet
from reference_impl.instances.instance import Instance
from reference_impl.instances.port import InstanceProvider
from reference_impl.llm.port import MessagesPort
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.prices import PriceTable, load_prices
from reference_impl.processor import AsyncLLMProcessor
from reference_impl.telemetry import SystemEvent

__all__ = ["System", "build_instance"]


class System:
    """A gateway in front of a fleet, with its cache, balancer and autoscaler.

    Args:
        spec: what exists.
        provider: starts and stops instances.
        compute: the CPU of the gateway's process.
        seed: of the balancer's draws.
        on_event: told of scaling, of every instance's states and of the shared cache's breaker.
        origin_s: the run's start on the loop's clock; instants of events count from it.
        accounting: ledger and budgets, opened and closed with the system; None: none.
        cache_backends: what the cache needs beside its description; closed with the system, except the embedder.
    """

    def __init__(
        self,
        spec: DeploymentSpec,
        provider: InstanceProvider,
        compute: Compute,
        *,
        seed: int,
        on_event: Callable[[SystemEvent], None],
        origin_s: float = 0.0,
        accounting: Accounting | None = None,
        cache_backends: CacheBackends = NO_BACKENDS,
    ) -> None:
        self.spec = spec
        self.accounting = accounting
        self.balancer = LoadBalancer(spec.balancer.policy, seed=seed, choices=spec.balancer.choices)
        self.fleet = Fleet(provider, self.balancer, spec, on_event, origin_s=origin_s)
        self.cache, self.semantic = build_cache(
            spec.cache, cache_backends, seed=seed, on_event=on_event, origin_s=origin_s
        )
        self.gateway = Gateway(
            spec.gateway,
            self.balancer,
            self.fleet.ports,
            compute,
            cache=self.cache,
            semantic=self.semantic,
            accounting=accounting,
        )
        self.scaling: ScalingLoop | None = None
        if spec.autoscaler.enabled:
            self.scaling = ScalingLoop(
                AutoScaler.from_spec(spec.autoscaler),
                self.fleet,
                spec.autoscaler.interval_s,
                on_event,
            )

    async def start(self) -> None:
        """Open the ledger, boot the initial instances, then start scaling.

        Raises a DatabaseError, or what the first failed boot raised if no instance is ready.
        """
        if self.accounting is not None:
            await self.accounting.start(self.spec.database.budgets_usd)
        await self.fleet.start(self.spec.instances.initial)
        if self.scaling is not None:
            self.scaling.start()

    async def drain(self, limit_s: float) -> bool:
        """Wait, at most `limit_s`, until no request is in flight. True when none is left."""
        idle = self.gateway.idle()
        try:
            async with asyncio.timeout(limit_s):
                await idle
        except TimeoutError:
            return False
        return True

    async def aclose(self) -> None:
        """Close all, the ledger last. A step that fails keeps none of the others from being done."""
        parts = (self.scaling, self.fleet, self.semantic, self.cache, self.accounting)
        await close_all(*(part.aclose for part in parts if part is not None))


def build_instance(
    instance_id: str,
    spec: DeploymentSpec,
    llm: MessagesPort,
    compute: Compute,
    *,
    seed: int,
    prices: PriceTable | None = None,
) -> Instance:
    """One instance over the endpoint's port: slots, processor, retries, costs (`prices`: None takes the shipped table)."""
    processor = AsyncLLMProcessor(
        port=llm,
        retry=spec.retry,
        concurrency=spec.instances.concurrency,
        uniform=hashed_uniform(seed),
        price=(prices or load_prices()).price_usd,
    )
    return Instance(
        instance_id,
        processor,
        compute=compute,
        concurrency=spec.instances.concurrency,
        queue_limit=spec.instances.queue_limit,
        metrics_window_s=max(spec.autoscaler.interval_s, spec.instances.heartbeat_s),
    )
