"""Plays a scenario's faults in virtual time: slow links here; what befalls the endpoint is in its profile already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from reference_impl.telemetry import SystemEvent
from simulation.models.network import Link
from simulation.scenario.errors import ScenarioError
from simulation.scenario.faults import EndpointFault, FaultWindow, LinkFault
from simulation.scenario.random_streams import uniforms

__all__ = ["FaultPlayer"]


class FaultPlayer:
    """Begins and ends every window at its instant, and says so in an event of kind `fault`.

    Args:
        windows: what is to happen, with instants from the start of the run.
        links: by the names that faults use.
        origin_s: the start of the run on the loop's clock.

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
    ) -> None:
        self._links = links
        self._seed = seed
        self._on_event = on_event
        loop = asyncio.get_running_loop()
        for number, window in enumerate(windows):
            if not isinstance(window.fault, (EndpointFault, LinkFault)):
                raise ScenarioError(
                    f"faults.{window.index}: {window.fault.kind} cannot be played in virtual time yet; "
                    "the kinds that can are endpoint_* and link_latency"
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
        self._tell(window, "began", extra_s)
        loop.call_later(window.until_s - window.from_s, self._end, window, link, extra_s)

    def _end(self, window: FaultWindow, link: Link | None, extra_s: float) -> None:
        if link is not None:
            link.extra_s -= extra_s
        self._tell(window, "ended", extra_s)

    def _tell(self, window: FaultWindow, state: str, extra_s: float) -> None:
        fault = window.fault
        subject = fault.link if isinstance(fault, LinkFault) else "endpoint"
        self._on_event(
            SystemEvent(
                t_s=asyncio.get_running_loop().time(),
                kind="fault",
                subject=subject,
                detail={"fault": fault.kind, "state": state, "extra_s": extra_s},
            )
        )
