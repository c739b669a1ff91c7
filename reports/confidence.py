"""How surely a verdict holds, and the sentences that say why."""

from __future__ import annotations

import math
from typing import Final, Literal

import pandas as pd

from reports.stages import SlowDelay
from reports.suspects import Candidate, Saturation
from reports.wording import amount, percent

__all__ = [
    "Confidence",
    "confidence_in_saturation",
    "confidence_of",
    "counted",
    "reasons_for",
    "reasons_of_saturation",
]

Confidence = Literal["high", "medium", "low"]
# The same part on top in this share of resampled runs is no accident.
_STABLE: Final = 0.95
# So many slow requests are needed for their mean to say much.
ENOUGH: Final = 20
# This part of a slow request in the line of a saturated pool: the requests tell of the same wait as the stations.
_TOLD: Final = 0.1


def confidence_of(slow: SlowDelay, top: Candidate) -> Confidence:
    """Of a verdict by delay: stable under resampling, confirmed by the stations, and of enough requests."""
    stable = slow.top_stability >= _STABLE
    if stable and top.corroborated and slow.requests >= ENOUGH:
        return "high"
    if slow.requests >= ENOUGH and (stable or top.corroborated) and top.corroborated is not False:
        return "medium"
    return "low"


def reasons_for(slow: SlowDelay, top: Candidate, pools: pd.DataFrame) -> tuple[str, ...]:
    """What a verdict by delay stands on."""
    stable = f"the same part comes out on top in {percent(slow.top_stability)} of resampled runs"
    if slow.top_stability < _STABLE:
        stable += f", below the {percent(_STABLE)} that make a verdict sure"
    if top.corroborated is None:
        seen = f"no station of {top.resource.name} was sampled that could confirm it"
    elif top.key == "endpoint":
        busiest = pools["utilisation_p95"].max()
        longest = pools["queue_peak"].max()
        none = "none of your stations is" if top.corroborated else "but your own stations are"
        seen = f"{none} in the way: busiest {_busy(busiest)}, longest line {_line(longest)}"
    else:
        verb = "confirms it" if top.corroborated else "does not confirm it"
        seen = f"`{top.pool}` {verb}: {_busy(top.utilisation_p95)}, up to {_line(top.queue_peak)}"
    return counted(slow), stable, seen


def confidence_in_saturation(slow: SlowDelay, full: Candidate) -> Confidence:
    """Of a verdict by saturation: high if the requests tell of the wait that the stations saw."""
    return "high" if full.share >= _TOLD and slow.requests >= ENOUGH else "medium"


def reasons_of_saturation(
    slow: SlowDelay, full: Candidate, saturation: Saturation
) -> tuple[str, ...]:
    """What a verdict by saturation stands on."""
    typical_s = sum(slow.typical[p] for p in full.resource.parts)
    return (
        counted(slow),
        f"`{saturation.pool}` is {saturation.in_words}: it sets the throughput",
        f"everybody waits for it: a typical request {amount(typical_s, 's')}, a slow one {amount(full.slow_s, 's')}",
    )


def counted(slow: SlowDelay) -> str:
    """How many requests are slow, from where on, and whether they are too few to be sure of anything."""
    what = "slow to their first token" if slow.until == "first_token" else "slow"
    few = "" if slow.requests >= ENOUGH else f"; to be sure takes at least {ENOUGH}: run longer"
    return f"{slow.requests:,} requests are {what}: above p{slow.quantile * 100:.0f}, {amount(slow.threshold_s, 's')}{few}"


def _busy(utilisation: float) -> str:
    return (
        f"{percent(utilisation)} busy (p95 over time)" if math.isfinite(utilisation) else "unknown"
    )


def _line(queue: float) -> str:
    return f"{amount(queue, '')} waiting" if queue >= 1 else "less than one waiting"
