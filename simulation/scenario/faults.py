"""What goes wrong during a run, on a schedule (`at_s`) or by luck (`rate_per_hour`, Poisson, by the scenario's seed)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from reference_impl.deployment import Spec
from simulation.scenario.distributions import Distribution
from simulation.scenario.endpoint import FaultKind, FaultSpec
from simulation.scenario.random_streams import generator

__all__ = [
    "BackendFault",
    "EndpointFault",
    "Fault",
    "FaultWindow",
    "InstanceFault",
    "LinkFault",
    "endpoint_faults",
    "fault_windows",
]

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Timing(Spec):
    """When: once at `at_s`, or again and again at `rate_per_hour`; each time for `duration_s`."""

    at_s: Seconds | None = None
    rate_per_hour: Annotated[float, Field(gt=0, le=36_000)] | None = None
    duration_s: PositiveSeconds = 10.0

    @model_validator(mode="after")
    def _one_of_both(self) -> Timing:
        if (self.at_s is None) == (self.rate_per_hour is None):
            raise ValueError("give exactly one of at_s and rate_per_hour")
        return self


class InstanceFault(Timing):
    """An instance crashes (loses its calls at once), hangs (answers nothing), or slows (its CPU work takes `factor` times).

    `instance`: the id of one, or `any` (drawn by the seed among those that run). `duration_s` of a crash is the time
    until its provider may start it again.
    """

    kind: Literal["instance_crash", "instance_hang", "instance_slow"]
    instance: str = "any"
    factor: Annotated[float, Field(ge=1, le=10_000)] = 10.0


class EndpointFault(Timing):
    """A share `probability` of the attempts gets this status, a broken stream, or an answer `factor` times as slow."""

    kind: Literal[
        "endpoint_429", "endpoint_529", "endpoint_500", "endpoint_stream_break", "endpoint_slow"
    ]
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    retry_after_s: Seconds | None = None
    factor: Annotated[float, Field(ge=1, le=10_000)] = 10.0


class BackendFault(Timing):
    """Redis, the broker or the database is away: it refuses connections, or (`hanging`) leaves everything unanswered.

    A Redis that refuses was killed, and comes back without its data.
    """

    kind: Literal["redis_outage", "broker_outage", "database_outage"]
    outage: Literal["refusing", "hanging"] = "refusing"


class LinkFault(Timing):
    """Messages over one link take `extra_s` longer."""

    kind: Literal["link_latency"]
    link: Literal["client_gateway", "gateway_instance", "instance_endpoint"]
    extra_s: Distribution


Fault = Annotated[
    InstanceFault | EndpointFault | BackendFault | LinkFault, Field(discriminator="kind")
]


class FaultWindow(Spec):
    """One occurrence: `fault` from `from_s` to `until_s`; `index` is its place in the scenario's list."""

    from_s: float
    until_s: float
    index: int
    fault: Fault


def fault_windows(
    faults: tuple[Fault, ...], seed: int, horizon_s: float
) -> tuple[FaultWindow, ...]:
    """Every occurrence that begins before the horizon, in order of time; the same for the same seed."""
    windows: list[FaultWindow] = []
    for index, fault in enumerate(faults):
        if fault.at_s is not None:
            starts = [fault.at_s]
        else:
            assert fault.rate_per_hour is not None
            rate_per_s = fault.rate_per_hour / 3600
            draws = generator(seed, f"fault/{index}/{fault.kind}")
            starts = []
            t_s = 0.0
            while (t_s := t_s - math.log1p(-draws.random()) / rate_per_s) < horizon_s:
                starts.append(t_s)
        windows.extend(
            FaultWindow(from_s=t, until_s=t + fault.duration_s, index=index, fault=fault)
            for t in starts
            if t < horizon_s
        )
    return tuple(sorted(windows, key=lambda w: (w.from_s, w.index)))


_AT_THE_ENDPOINT: Final[dict[str, FaultKind]] = {
    "endpoint_429": "429",
    "endpoint_529": "529",
    "endpoint_500": "500",
    "endpoint_stream_break": "drop_stream",
    "endpoint_slow": "slow",
}


def endpoint_faults(windows: Iterable[FaultWindow], speedup: float) -> tuple[FaultSpec, ...]:
    """The occurrences that befall the endpoint, as a profile of that speedup says them.

    So the mock server and the endpoint in virtual time play the same faults. Both count from their first request.
    """
    return tuple(
        FaultSpec(
            kind=_AT_THE_ENDPOINT[window.fault.kind],
            probability=window.fault.probability,
            from_s=window.from_s * speedup,
            until_s=window.until_s * speedup,
            retry_after_s=window.fault.retry_after_s,
            factor=window.fault.factor,
        )
        for window in windows
        if isinstance(window.fault, EndpointFault)
    )
