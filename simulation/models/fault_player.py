"""Plays a scenario's faults in virtual time: slow links, servers that are away. The endpoint has its own in its profile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from reference_impl.telemetry import SystemEvent
from simulation.models.network import Link
from simulation.scenario.faults import (
    BackendFault,
    FaultWindow,
    InstanceFault,
    LinkFault,
)
from simulation.scenario.random_streams import uniforms

__all__ = ["FaultPlayer", "Server"]


class Server(Protocol):
    """A model of a server that can be away."""

    def fail(self, outage: Literal["refusing", "hanging"]) -> None: ...

    def recover(self) -> None: ...


class Instances(Protocol):
    """What instance faults befall (`simulation.models.instance.VirtualProvider`)."""

    def ids(self) -> list[str]: ...

    def crash(self, instance_id: str, until_s: float) -> None: ...

    def hang(self, instance_id: str, until_s: float) -> None: ...

    def slow_down(self, instance_id: str, factor: float) -> None: ...


class FaultPlayer:
    """Begins and ends every window at its instant, and says so in an event of kind `fault`.

    Args:
        windows: what is to happen, with instants from the start of the run.
        links: by the names that faults use.
        origin_s: the start of the run on the loop's clock.
        instances: the fleet that instance faults befall.
        servers: what an outage of a kind befalls; a `Scenario` has no outages of others.
    """

    def __init__(
        self,
        windows: Sequence[FaultWindow],
        links: Mapping[str, Link],
        seed: int,
        on_event: Callable[[SystemEvent], None],
        *,
        origin_s: float,
        instances: Instances,
        servers: Mapping[str, Server],
    ) -> None:
        self._links = links
        self._seed = seed
        self._on_event = on_event
        self._instances = instances
        self._servers = servers
        self._away: Counter[str] = Counter()
        loop = asyncio.get_running_loop()
        for number, window in enumerate(windows):
            loop.call_at(origin_s + window.from_s, self._begin, number, window)

    def _begin(self, number: int, window: FaultWindow) -> None:
        loop = asyncio.get_running_loop()
        fault = window.fault
        if isinstance(fault, InstanceFault):
            self._befall(number, window, fault)
            return
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

    def _befall(self, number: int, window: FaultWindow, fault: InstanceFault) -> None:
        """An instance crashes, hangs or slows; nothing happens when the one that was named does not run."""
        loop = asyncio.get_running_loop()
        ids = self._instances.ids()
        if fault.instance != "any":
            ids = [instance_id for instance_id in ids if instance_id == fault.instance]
        if not ids:
            self._tell_of(fault.instance, fault.kind, "missed", 0.0)
            return
        drawn = uniforms(self._seed, "fault instance", number)[0]
        instance_id = ids[int(drawn * len(ids))]
        duration_s = window.until_s - window.from_s
        until_s = loop.time() + duration_s
        self._tell_of(instance_id, fault.kind, "began", 0.0)
        match fault.kind:
            case "instance_crash":
                self._instances.crash(instance_id, until_s)
            case "instance_hang":
                self._instances.hang(instance_id, until_s)
            case "instance_slow":
                self._instances.slow_down(instance_id, fault.factor)
        loop.call_later(duration_s, self._relieve, instance_id, fault)

    def _relieve(self, instance_id: str, fault: InstanceFault) -> None:
        if fault.kind == "instance_slow":
            self._instances.slow_down(instance_id, 1.0)
        self._tell_of(instance_id, fault.kind, "ended", 0.0)

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
        self._tell_of(subject, fault.kind, state, extra_s)

    def _tell_of(self, subject: str, kind: str, state: str, extra_s: float) -> None:
        self._on_event(
            SystemEvent(
                t_s=asyncio.get_running_loop().time(),
                kind="fault",
                subject=subject,
                detail={"fault": kind, "state": state, "extra_s": extra_s},
            )
        )
