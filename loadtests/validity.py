"""Whether a live run may be believed: did the injectors send what was asked for, when it was asked for?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from loadtests.collect import Collected
from simulation.scenario.schema import Scenario

__all__ = ["lag_limit_s", "validity"]

# The share of a promise that the client's own queueing may use up (measured: beyond it a report shows the client).
LAG_SHARE: Final = 0.05
# Where nothing was promised: the same share of a second.
DEFAULT_LIMIT_S: Final = 1.0


def lag_limit_s(scenario: Scenario) -> float:
    """The dispatch lag (p99) beyond which a run is not valid: 5% of the strictest SLO on latency or first token."""
    limits = [
        slo.limit_s
        for slo in scenario.slos
        if slo.metric in ("latency", "ttft") and slo.limit_s is not None
    ]
    return LAG_SHARE * min(limits, default=DEFAULT_LIMIT_S)


def validity(
    scenario: Scenario, collected: Collected
) -> tuple[Mapping[str, float | int | str | bool | None], tuple[str, ...]]:
    """The manifest's named checks, and one line for people per check that failed."""
    limit_s = lag_limit_s(scenario)
    lag_s = collected.lag_p99_s
    notes = []
    if lag_s > limit_s:
        notes.append(
            f"not valid: the injector's dispatch lag (p99 {lag_s * 1e3:.1f} ms) exceeds "
            f"{limit_s * 1e3:.1f} ms, {LAG_SHARE:.0%} of the strictest SLO; use more workers or a lower rate"
        )
    late_s = collected.mock_late_p99_s
    if late_s > limit_s:
        notes.append(
            f"not valid: the mock was saturated, its answers came {late_s * 1e3:.1f} ms (p99) later than drawn "
            f"(limit {limit_s * 1e3:.1f} ms); give it a core of its own, or lower the rate"
        )
    if collected.overflow:
        notes.append(
            f"not valid: {collected.overflow} requests waited for a place in flight; raise max_in_flight"
        )
    if collected.missing:
        notes.append(f"not valid: {collected.missing} arrivals are missing from the records")
    checks: dict[str, float | int | str | bool | None] = {
        "valid": not notes,
        "dispatch_lag_p99_s": None if math.isnan(lag_s) else lag_s,
        "dispatch_lag_limit_s": limit_s,
        "mock_late_p99_s": None if math.isnan(late_s) else late_s,
        "overflow": collected.overflow,
        "missing_arrivals": collected.missing,
        "untraced": collected.untraced,
    }
    return checks, tuple(notes)
