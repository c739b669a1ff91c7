"""Plays a scenario's faults in virtual time: slow links, servers that are away. The endpoint has its own in its profile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, Protocol

from reference_impl.telemetry import SystemEvent
from simulation.models.network import Link
from simulation.scenario.errors import ScenarioError
from simulation.scenario.faults import BackendFault, EndpointFault, FaultWindow, LinkFault
from simulation.scenario.random_streams import uniforms

__all__ = ["FaultPlayer", "Server"]

# What a deployment without the server would have to say.
_NEEDS: Final = {
    "redis_outage": "there is no Redis to be away; set deployment.cache.shared to redis",
    "database_outage": "there is no database to be away; set deployment.database.ledger to postgres or sqlite",
}


class Server(Protocol):
    """A model of a server that can be away."""

    def fail(self, outage: Literal["refusing", "hanging"]) -> None: ...

    def recover(self) -> None: ...


class FaultPlayer:
    """Begins and ends every window at its instant, and says so in an event of kind `fault`.

    Args:
        windows: what is to happen, with instants from the start of the run.
        links: by the names that faults use.
        origin_s: the start of the run on the loop's clock.
        servers: what an outage of a kind befalls; the deployment has no others.

    Raises:
        ScenarioError: a fault that nothing in this world can play: better no run than one that leaves it out.
    """

    def __init__(
        self,
        windows: Sequence[FaultWindow],
        links: Mapping[str, Link],
        seed: int,
        on_event: Callable[[SystemEvent], None],
        *,
        origin_s: float,
        servers: Mapping[str, Server],
    ) -> None:
        self._links = links
        self._seed = seed
        self._on_event = on_event
        self._servers = servers
        self._away: Counter[str] = Counter()
        loop = asyncio.get_running_loop()
        for number, window in enumerate(windows):
            kind = window.fault.kind
            if kind in _NEEDS and kind not in servers:
                raise ScenarioError(f"faults.{window.index}: {_NEEDS[kind]}")
            if kind not in servers and not isinstance(window.fault, (EndpointFault, LinkFault)):
                raise ScenarioError(
                    f"faults.{window.index}: {kind} cannot be played in virtual time yet; "
                    f"the kinds that can are endpoint_*, {', '.join(_NEEDS)} and link_latency"
                )
            loop.call_at(origin_s + window.from_s, self._begin, number, window)

    def _begin(self, number: int, window: FaultWindow) -> None:
        loop = asyncio.get_running_loop()
        fault = window.fault
        link: Link | None = None
        extra_s = 0.0
        if isinstance(fault, LinkFault):
            link = self._links[fault.link]
            extra_s = fault.extra_s.quantile(uniforms(self._seed, "fault latency", number)[0])
            link.extra_s += extra_s
        elif isinstance(fault, BackendFault):
            self._away[fault.kind] += 1
            self._servers[fault.kind].fail(fault.outage)
        self._tell(window, "began", extra_s)
        loop.call_later(window.until_s - window.from_s, self._end, window, link, extra_s)

    def _end(self, window: FaultWindow, link: Link | None, extra_s: float) -> None:
        if link is not None:
            link.extra_s -= extra_s
        elif isinstance(window.fault, BackendFault):
            kind = window.fault.kind
            self._away[kind] -= 1
            if not self._away[kind]:
                self._servers[kind].recover()
        self._tell(window, "ended", extra_s)

    def _tell(self, window: FaultWindow, state: str, extra_s: float) -> None:
        fault = window.fault
        match fault:
            case LinkFault():
                subject: str = fault.link
            case BackendFault():
                subject = fault.kind.removesuffix("_outage")
            case _:
                subject = "endpoint"
        self._on_event(
            SystemEvent(
                t_s=asyncio.get_running_loop().time(),
                kind="fault",
                subject=subject,
                detail={"fault": fault.kind, "state": state, "extra_s": extra_s},
            )
        )
