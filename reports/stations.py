"""Utilisation, queues and the operational laws, by station and by pool of like stations.

Laws (Denning and Buzen 1978): utilisation U = B/(T·c), service demand of a resource D = B/C (busy time per request
that the *system* completed; equal to U·c/X), and the bound that follows, X <= c/D.
"""

from __future__ import annotations

import math
import re
from typing import Final

import numpy as np
import pandas as pd

__all__ = ["HOST", "bin_width_s", "pool_of", "pool_table", "pooled_series", "with_host"]

# `instance-3 slots` and `instance-a1f slots` are members of the pool `instance slots`.
_MEMBER: Final = re.compile(r"[-_#][0-9a-f]*\d[0-9a-f]*\b", re.IGNORECASE)
# About as many points as a figure of a page's width shows.
_POINTS: Final = 120


def pool_of(station: str) -> str:
    """The name of a station without the number of its member."""
    return _MEMBER.sub("", station).strip()


def bin_width_s(stations: pd.DataFrame) -> float:
    """Width of the bins of a series: at least two sampling intervals, since live processes sample out of step."""
    if stations.empty:
        return 1.0
    interval = float(stations["interval_s"].median())
    return max(2 * interval, float(stations["t_s"].max()) / _POINTS)


HOST: Final = "host cpu"


def with_host(stations: pd.DataFrame, cores: int | None) -> pd.DataFrame:
    """`stations` with one more, `host cpu`: all processes' CPU together, on the cores that they share.

    A process uses at most one core, so its own station never shows that the host is full. Without `cores`, or with a
    single process, nothing is added.
    """
    cpu = stations[stations["kind"] == "cpu"]
    if not cores or cpu["station"].nunique() < 2:
        return stations
    width = bin_width_s(cpu)
    of_bin = np.ceil(cpu["t_s"] / width - 1e-9).clip(lower=1)
    spans = cpu["interval_s"]
    totals = (
        cpu.assign(waited=cpu["queue_length"] * spans)
        .groupby(of_bin)[["arrivals", "completions", "busy_s", "waited"]]
        .sum()
    )
    host = pd.DataFrame(
        {
            "t_s": totals.index * width,
            "interval_s": width,
            "station": HOST,
            "kind": "cpu",
            "arrivals": totals["arrivals"],
            "completions": totals["completions"],
            "busy_s": totals["busy_s"],
            "queue_length": totals["waited"] / width,
            "in_service": totals["busy_s"] / width,
            "capacity": float(cores),
        }
    )
    return pd.concat([stations, host[list(stations.columns)]], ignore_index=True)


def pooled_series(stations: pd.DataFrame) -> pd.DataFrame:
    """Time series of each pool: columns pool, kind, t_s (middle of the bin), utilisation, queue, in_service, busy, capacity.

    Within a bin a station's samples are averaged by their length, then the stations of a pool are added up. A pool
    without a bound has utilisation NaN.
    """
    columns = ["pool", "kind", "t_s", "utilisation", "queue", "in_service", "busy", "capacity"]
    used = stations[stations["interval_s"] > 0]
    if used.empty:
        return pd.DataFrame(columns=columns).astype(dict.fromkeys(columns[2:], float))
    width = bin_width_s(used)
    span = used["interval_s"]
    bins = np.floor((used["t_s"] - span / 2) / width).astype(np.int64)
    keyed = pd.DataFrame(
        {
            "pool": used["station"].map(pool_of),
            "kind": used["kind"],
            "station": used["station"],
            "bin": bins,
            "span": span,
            "busy": used["busy_s"],
            "queue": used["queue_length"] * span,
            "in_service": used["in_service"] * span,
            "capacity": used["capacity"] * span,
        }
    )
    keys = ["pool", "kind", "bin"]
    by_station = keyed.groupby([*keys, "station"], sort=True).sum()
    levels = by_station[["busy", "queue", "in_service", "capacity"]].div(by_station["span"], axis=0)
    # A member that exists for a part of a bin counts for that part.
    longest = by_station["span"].groupby(level=keys).transform("max")
    presence = by_station["span"] / longest
    pools = levels.mul(presence, axis=0).groupby(level=keys).sum().reset_index()
    pools["t_s"] = (pools["bin"] + 0.5) * width
    bounded = np.isfinite(pools["capacity"]) & (pools["capacity"] > 0)
    pools["utilisation"] = (pools["busy"] / pools["capacity"].where(bounded)).astype(float)
    return pools[columns]


def pool_table(stations: pd.DataFrame, completed: int) -> pd.DataFrame:
    """One row a pool, index its name, in order of peak utilisation.

    Columns: kind, members, capacity (peak), utilisation (of the run), utilisation_p95, utilisation_peak (over time), queue (mean),
    queue_peak, busy_peak (servers at once, mean over a bin), wait_s (mean, by Little's law from queue and arrivals), demand_s (D, per completed request), bound_per_s
    (the throughput at which the peak capacity is used up; inf for an unbounded pool). `completed`: requests that the
    system answered.
    """
    servers = stations[stations["interval_s"] > 0]
    series = pooled_series(servers)
    rows: list[dict[str, object]] = []
    for (pool, kind), members in servers.groupby([servers["station"].map(pool_of), "kind"]):
        over_time = series[(series["pool"] == pool) & (series["kind"] == kind)]
        busy = float(members["busy_s"].sum())
        offered = float((members["capacity"] * members["interval_s"]).sum())
        waited = float((members["queue_length"] * members["interval_s"]).sum())
        arrivals = int(members["arrivals"].sum())
        capacity = float(over_time["capacity"].max())
        demand = busy / completed if completed else math.nan
        peaks = over_time["utilisation"].dropna()
        rows.append(
            {
                "pool": pool,
                "kind": kind,
                "members": int(members["station"].nunique()),
                "capacity": capacity,
                "utilisation": busy / offered if 0 < offered < math.inf else math.nan,
                "utilisation_p95": float(peaks.quantile(0.95)) if len(peaks) else math.nan,
                "utilisation_peak": float(peaks.max()) if len(peaks) else math.nan,
                "queue": float(over_time["queue"].mean()),
                "queue_peak": float(over_time["queue"].max()),
                "busy_peak": float(over_time["busy"].max()),
                "wait_s": waited / arrivals if arrivals else math.nan,
                "demand_s": demand,
                "bound_per_s": capacity / demand if demand > 0 else math.inf,
            }
        )
    columns = [
        "pool",
        "kind",
        "members",
        "capacity",
        "utilisation",
        "utilisation_p95",
        "utilisation_peak",
        "queue",
        "queue_peak",
        "busy_peak",
        "wait_s",
        "demand_s",
        "bound_per_s",
    ]
    table = pd.DataFrame(rows, columns=columns).set_index("pool")
    # An empty table would be of objects, which no comparison takes.
    table = table.astype(dict.fromkeys(columns[2:], float))
    return table.sort_values("utilisation_p95", ascending=False, na_position="last")
