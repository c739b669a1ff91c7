"""Whether the number of requests in the system grows for as long as they arrive: a load beyond capacity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from simulation.scenario.distributions import Floats

__all__ = ["Growth", "growth"]

_POINTS: Final = 200
# A queue near saturation wanders; one beyond it climbs. Of the arrivals, at least this fraction must pile up ...
_LEAST_SHARE: Final = 0.02
# ... along something like a straight line, by at least this many requests.
_LEAST_R_SQUARED: Final = 0.7
_LEAST_REQUESTS: Final = 10


@dataclass(frozen=True, slots=True)
class Growth:
    """Slope of the backlog over the second half of the arrivals; `significant`: not a queue's ordinary wandering."""

    per_s: float
    significant: bool


def growth(sent_s: Floats, done_s: Floats, horizon_s: float) -> Growth:
    """Growth from the instants at which requests were sent and ended (or the run, with them unfinished)."""
    if not len(sent_s):
        return Growth(0.0, significant=False)
    until_s = min(horizon_s, float(done_s.max()))
    at_s = np.linspace(until_s / 2, until_s, _POINTS, endpoint=False)
    arrived = np.searchsorted(np.sort(sent_s), at_s, side="right")
    left = np.searchsorted(np.sort(done_s), at_s, side="right")
    backlog = (arrived - left).astype(np.float64)
    spread = float(backlog.var())
    if until_s <= 0 or spread == 0:
        return Growth(0.0, significant=False)
    covariance = float(np.mean((at_s - at_s.mean()) * (backlog - backlog.mean())))
    slope = covariance / float(at_s.var())
    r_squared = covariance**2 / (float(at_s.var()) * spread)
    return Growth(
        slope,
        significant=(
            r_squared >= _LEAST_R_SQUARED
            and slope >= _LEAST_SHARE * len(sent_s) / until_s
            and slope * until_s / 2 >= _LEAST_REQUESTS
        ),
    )
