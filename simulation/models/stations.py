"""Extra stations on the way to the gateway: what a textbook system, or a user's own, has and the deployment has not."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence

from reference_impl.instances.meter import StationMeter
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import Call, Completion, Emit
from reference_impl.telemetry import StationSample
from simulation.scenario.random_streams import uniforms
from simulation.scenario.schema import StationSpec

__all__ = ["StationChain"]


class StationChain:
    """A `MessagesPort` that takes every call through its stations, in order, and then to `target`.

    A request's service times are drawn by (seed, station's name, request id), so they are the same under any policy.
    Their time is in the record's `other_s`. Must be made on the running loop.
    """

    def __init__(self, specs: Sequence[StationSpec], seed: int, target: MessagesPort) -> None:
        self._stations = [_Station(spec, seed) for spec in specs]
        self._target = target

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        for station in self._stations:
            await station.serve(call.request_id)
        return await self._target.complete(call, emit)

    def samples(self, origin_s: float) -> Iterator[StationSample]:
        """What each station did since the last sample."""
        for station in self._stations:
            yield station.meter.sample(origin_s=origin_s)

    async def aclose(self) -> None:
        await self._target.aclose()


class _Station:
    """First come first served at `servers`, or a delay without a queue."""

    def __init__(self, spec: StationSpec, seed: int) -> None:
        self.meter = StationMeter(spec.name, "station", spec.servers or math.inf)
        self._service_s = spec.service_s.quantile
        self._servers = None if spec.servers is None else asyncio.Semaphore(spec.servers)
        self._seed = seed
        self._purpose = f"station {spec.name}"

    async def serve(self, request_id: int) -> None:
        """Wait for a server, then for the service; a cancellation gives back what is held."""
        service_s = self._service_s(uniforms(self._seed, self._purpose, request_id)[0])
        meter = self.meter
        meter.advance()
        meter.arrivals += 1
        if self._servers is None:
            await self._hold(service_s)
            return
        meter.waiting += 1
        try:
            await self._servers.acquire()
        finally:
            meter.advance()
            meter.waiting -= 1
        try:
            await self._hold(service_s)
        finally:
            self._servers.release()

    async def _hold(self, service_s: float) -> None:
        meter = self.meter
        meter.busy += 1
        try:
            await asyncio.sleep(service_s)
            meter.completions += 1
        finally:
            meter.advance()
            meter.busy -= 1
