"""How far the load may grow: bounds by the operational laws (Denning and Buzen 1978), a limit and not a forecast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from reports.run import Run
from reports.suspects import BUSY
from reports.wording import TIMES, amount, percent

__all__ = ["Headroom", "headroom_of", "in_words", "tightest"]

# Below this factor a pool has no room left: a busier hour, or a slower endpoint, fills it.
_ENOUGH: Final = 1.1


@dataclass(frozen=True, slots=True)
class Headroom:
    """Bound of the throughput by the operational laws: `pool` is used up at `bound_per_s`, `factor` times today's."""

    pool: str
    throughput_per_s: float
    bound_per_s: float

    @property
    def factor(self) -> float:
        return self.bound_per_s / self.throughput_per_s if self.throughput_per_s > 0 else math.inf


def headroom_of(pools: pd.DataFrame, run: Run) -> Headroom | None:
    """The first pool to be used up, taking the throughput as completions over the sampled time."""
    bounded = pools[np.isfinite(pools["bound_per_s"])]
    if bounded.empty:
        return None
    span = float(run.stations["t_s"].max())
    throughput = float(run.worked_on["ok"].sum()) / span if span > 0 else 0.0
    pool = bounded["bound_per_s"].idxmin()
    return Headroom(str(pool), throughput, float(bounded["bound_per_s"].min()))


def in_words(headroom: Headroom | None) -> str:
    if headroom is None:
        return "No station has a bound, so the headroom is unknown."
    return (
        f"By the operational laws `{headroom.pool}` is used up at {amount(headroom.bound_per_s, '')} requests/s, "
        f"{headroom.factor:.1f}{TIMES} this run's {amount(headroom.throughput_per_s, '')} (at the largest capacity seen)."
    )


def tightest(headroom: Headroom | None, pools: pd.DataFrame) -> tuple[str, str] | None:
    """The pool that leaves no room for more load, and how that shows; None if every pool has room."""
    if headroom is not None and headroom.factor < _ENOUGH:
        return headroom.pool, "is nearly used up"
    lines = pools[(pools["utilisation_p95"] >= BUSY) & (pools["queue_peak"] >= 1)]
    if lines.empty:
        return None
    busiest = lines.iloc[0]
    return (
        str(lines.index[0]),
        f"was {percent(busiest['utilisation_p95'])} busy (p95) with up to {amount(busiest['queue_peak'], '')} waiting",
    )
