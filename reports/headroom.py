"""How far the load may grow: bounds by the operational laws (Denning and Buzen 1978), a limit and not a forecast."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from reports.metrics import answered_in_time, window_s
from reports.run import Run
from reports.stations import pool_table
from reports.suspects import BUSY
from reports.wording import TIMES, amount, percent

__all__ = ["Headroom", "headroom_of", "in_words", "pools_of", "tightest"]

# Below this factor a pool has no room left: a busier hour, or a slower endpoint, fills it.
_ENOUGH: Final = 1.1
# Busy servers ÷ capacity over a bin, beyond which nothing was free.
_FULL: Final = 0.99


@dataclass(frozen=True, slots=True)
class Headroom:
    """Bound of the throughput by the operational laws, of all answers, those of batches too.

    Attributes:
        pool: the first to be used up. bound_per_s: the throughput at which its largest capacity is.
        throughput_per_s: of this run. peak_per_s: what the pool's busiest moment (a bin of its series) would be, for long.
        was_full: whether it was used up at some moment, at the capacity that it had then.
    """

    pool: str
    throughput_per_s: float
    peak_per_s: float
    bound_per_s: float
    was_full: bool

    @property
    def factor(self) -> float:
        """By how much the load may grow, as it is distributed over time, until the busiest moment uses up the pool."""
        return self.bound_per_s / self.peak_per_s


def _until_s(run: Run) -> float:
    """The end of the window: the last arrival; of a run of batches alone, their last result."""
    if len(run.requests):
        return window_s(run.requests)
    return float(run.batches["done_s"].max()) if len(run.batches) else math.nan


def pools_of(run: Run) -> pd.DataFrame:
    """The pools of stations (`pool_table`) while requests arrived: busy time and answers of one window."""
    until_s = _until_s(run)
    middle_s = run.servers["t_s"] - run.servers["interval_s"] / 2
    answered = answered_in_time(run.worked_on, until_s)
    return pool_table(run.servers[middle_s <= until_s], int(answered.sum()))


def headroom_of(pools: pd.DataFrame, run: Run) -> Headroom | None:
    """The pool whose busiest moment leaves the least of its largest capacity; None if no pool has a bound."""
    bounded = pools[np.isfinite(pools["bound_per_s"]) & (pools["busy_peak"] > 0)]
    if bounded.empty:
        return None
    first = bounded.loc[(bounded["capacity"] / bounded["busy_peak"]).idxmin()]
    until_s = _until_s(run)
    return Headroom(
        pool=str(first.name),
        throughput_per_s=float(answered_in_time(run.worked_on, until_s).sum()) / until_s,
        # Utilisation law: throughput = busy servers ÷ demand.
        peak_per_s=float(first["busy_peak"] / first["demand_s"]),
        bound_per_s=float(first["bound_per_s"]),
        was_full=bool(first["utilisation_peak"] >= _FULL),
    )


def in_words(headroom: Headroom | None) -> str:
    """One sentence, for the end of an action."""
    if headroom is None:
        return "No station has a bound, so the headroom is unknown."
    full = (
        "; at times it had less and was full"
        if headroom.was_full and headroom.factor > _ENOUGH
        else ""
    )
    return (
        f"By the operational laws the largest capacity seen of `{headroom.pool}` is used up at "
        f"{amount(headroom.bound_per_s, '')} requests/s, {headroom.factor:.1f}{TIMES} the busiest moment of this run "
        f"({amount(headroom.peak_per_s, '')}; mean {amount(headroom.throughput_per_s, '')}){full}."
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
