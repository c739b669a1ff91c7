"""Links of the virtual network: one-way latencies between the processes, and ports at their far ends."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from reference_impl.compute import NO_WAIT
from reference_impl.errors import ServiceError
from reference_impl.llm.port import MessagesPort
from reference_impl.messages import Call, Chunk, Completion, Emit, RequestTag
from simulation.kernel import running_loop
from simulation.scenario.distributions import AnyDistribution, Constant
from simulation.scenario.random_streams import uniforms

__all__ = ["Link", "RemotePort"]

REQUEST: Final = 0
FIRST_CHUNK: Final = 1
LAST_CHUNK: Final = 2
RESPONSE: Final = 3


class Link:
    """A connection with a drawn latency for every leg. `extra_s` is added while a fault makes the link slow.

    Must be made on the running loop.
    """

    def __init__(self, name: str, latency: AnyDistribution, seed: int) -> None:
        self._purpose = f"link {name}"
        self._latency = latency
        self._constant_s = latency.value if isinstance(latency, Constant) else None
        self._seed = seed
        self._loop = running_loop()
        self.extra_s = 0.0

    def latency_s(self, call: Call | RequestTag, leg: int) -> float:
        """One-way latency of a leg of a call: the same for the same seed, request and attempt, whatever else happens."""
        if self._constant_s is not None:
            return self._constant_s + self.extra_s
        u = uniforms(self._seed, self._purpose, call.request_id, call.attempt)[leg]
        return self._latency.quantile(u) + self.extra_s

    def cross(self, call: Call, leg: int) -> Awaitable[None]:
        """To be awaited at once: takes the latency of this leg."""
        latency_s = self.latency_s(call, leg)
        if latency_s <= 0.0:
            return NO_WAIT
        loop = self._loop
        return loop.until(loop.time() + latency_s)


class RemotePort:
    """A `MessagesPort` at the other end of a link: requests, chunks, answers and errors take its latency."""

    def __init__(self, target: MessagesPort, link: Link) -> None:
        self._target = target
        self._link = link

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        link = self._link
        await link.cross(call, REQUEST)
        try:
            if emit is None or not call.stream:
                completion = await self._target.complete(call)
                await link.cross(call, RESPONSE)
            else:
                completion = await self._target.complete(call, _Crossing(emit, link, call))
        except ServiceError:
            await link.cross(call, RESPONSE)
            raise
        return completion

    async def aclose(self) -> None:
        await self._target.aclose()


class _Crossing:
    """Chunks on their way back. The sender paces against absolute deadlines, so a late chunk delays no other."""

    __slots__ = ("_call", "_emit", "_leg", "_link")

    def __init__(self, emit: Emit, link: Link, call: Call) -> None:
        self._emit = emit
        self._link = link
        self._call = call
        self._leg = FIRST_CHUNK

    async def __call__(self, chunk: Chunk) -> None:
        await self._link.cross(self._call, self._leg)
        self._leg = LAST_CHUNK
        await self._emit(chunk)
