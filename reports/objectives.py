"""The promises of a scenario (`simulation.scenario.schema.SLO`), and how far a run kept them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd

from reports.metrics import answered_in_time, throughput_per_s, window_s
from simulation.scenario.schema import SLO
from simulation.statistics import quantile

__all__ = ["Attainment", "attainments", "goodput_per_s", "lag_allowance_s", "met_all"]

# The column of the derived frame that an objective's metric bounds.
COLUMNS: Final[Mapping[str, str]] = {"latency": "latency_s", "ttft": "ttft_s", "tpot": "tpot_s"}


@dataclass(frozen=True, slots=True)
class Attainment:
    """One promise against one run.

    Attributes:
        slo: the promise. value: the quantile of the answered requests in seconds, the error rate, or the time of the slowest
            result of a batch (NaN: one is missing).
        limit: what it may be at most. fraction: requests that were answered and kept it, of all that arrived.
    """

    slo: SLO
    value: float
    limit: float
    fraction: float

    @property
    def met(self) -> bool:
        """No answer, no kept promise."""
        return self.value <= self.limit

    @property
    def promise(self) -> str:
        """In words: `p95 of latency ≤ 6 s`."""
        if self.slo.metric == "batch":
            return f"batches done within {self.limit:g} s"
        if self.slo.quantile is None:
            return f"error rate ≤ {self.limit:.2%}"
        return f"p{self.slo.quantile * 100:g} of {self.slo.metric} ≤ {self.limit:g} s"


def attainments(
    frame: pd.DataFrame, slos: Sequence[SLO], batches: pd.DataFrame | None = None
) -> list[Attainment]:
    """How far each promise was kept, in the scenario's order. Frames are derived (`reports.metrics.derive`).

    `batches`: the requests of message batches; None leaves promises on them out.
    """
    found = []
    for slo in slos:
        if slo.metric == "batch":
            if batches is not None:
                found.append(_of_batches(batches, slo))
        elif slo.quantile is None or slo.limit_s is None:
            rate = float((~frame["ok"]).mean()) if len(frame) else math.nan
            found.append(Attainment(slo, rate, slo.limit or 0.0, 1 - rate))
        else:
            values = frame[COLUMNS[slo.metric]].dropna().to_numpy()
            kept = float(_kept(frame, slo).mean()) if len(frame) else math.nan
            found.append(Attainment(slo, quantile(values, slo.quantile), slo.limit_s, kept))
    return found


def _of_batches(batches: pd.DataFrame, slo: SLO) -> Attainment:
    limit_s = slo.limit_s or 0.0
    took_s = (batches["done_s"] - batches["intended_s"]).where(batches["finished"], math.inf)
    slowest_s = float(took_s.max()) if len(batches) else 0.0
    in_time = float((took_s <= limit_s).mean()) if len(batches) else 1.0
    return Attainment(slo, slowest_s if math.isfinite(slowest_s) else math.nan, limit_s, in_time)


def _kept(frame: pd.DataFrame, slo: SLO) -> pd.Series[bool]:
    if slo.metric not in COLUMNS:
        return frame["ok"]
    # An answer without the measure (one token, a cache hit) cannot violate it.
    return frame["ok"] & ~(frame[COLUMNS[slo.metric]] > slo.limit_s)


def met_all(frame: pd.DataFrame, slos: Sequence[SLO]) -> pd.Series[bool]:
    """Per request: answered, and within the limit of every promise."""
    good = frame["ok"].copy()
    for slo in slos:
        good &= _kept(frame, slo)
    return good


def goodput_per_s(frame: pd.DataFrame, slos: Sequence[SLO]) -> float:
    """Requests answered within the window that met *all* promises ÷ the window: a part of the throughput; NaN as that."""
    until_s = window_s(frame)
    good = met_all(frame, slos) & answered_in_time(frame, until_s)
    return float(good.sum()) / until_s if not math.isnan(throughput_per_s(frame)) else math.nan


def lag_allowance_s(slos: Sequence[SLO]) -> float | None:
    """The tightest bound on an answer or its first token: what the load generator's lag is judged by; None without."""
    return min(
        (s.limit_s for s in slos if s.limit_s and s.metric in ("latency", "ttft")), default=None
    )
