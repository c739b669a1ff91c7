"""What is measured of each request, and the figures of merit that every table of a report names alike.

Two origins are kept apart throughout: *from intended* is what a user waits (a late load generator included), *from sent*
is what the system took. Only the latter compares two worlds; the lag between them stands beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from simulation.statistics import quantile

__all__ = [
    "HITS",
    "QUANTILES",
    "SERVED",
    "QuantileMetric",
    "answered_in_time",
    "derive",
    "hit_ratio",
    "quantile_of",
    "throughput_per_s",
    "window_s",
]

# Answers without an upstream call of the request's own.
HITS: Final = ("l1", "l2", "semantic", "coalesced")
# Outcomes whose stages tell where the time went: the request was let in and somebody worked on it.
SERVED: Final = (
    "ok",
    "timeout",
    "stream_broken",
    "rate_limited",
    "overloaded",
    "server_error",
    "connection_error",
)


@dataclass(frozen=True, slots=True)
class QuantileMetric:
    """Quantile `p` of the column `column` of `derive`; NaN rows do not count."""

    key: str
    label: str
    column: str
    p: float


def _family(
    key: str, label: str, column: str, levels: tuple[int, ...]
) -> tuple[QuantileMetric, ...]:
    return tuple(
        QuantileMetric(f"{key}_p{level}_s", f"{label}, p{level}", column, level / 100)
        for level in levels
    )


QUANTILES: Final[tuple[QuantileMetric, ...]] = (
    *_family("latency_sent", "Latency from sent", "service_s", (50, 95, 99)),
    *_family("latency_intended", "Latency from intended", "latency_s", (50, 95, 99)),
    *_family("lag", "Dispatch lag", "lag_s", (50, 99)),
    *_family("ttft_sent", "TTFT from sent", "ttft_sent_s", (50, 95)),
    *_family("ttft_intended", "TTFT from intended", "ttft_s", (50, 95)),
    *_family("tpot", "TPOT", "tpot_s", (50, 95)),
    *_family("added", "Added time", "added_s", (50, 95)),
)

LEAST_STREAM_S: Final = 1e-3


def derive(requests: pd.DataFrame) -> pd.DataFrame:
    """`requests` in order of request id, with the measures of each request as further columns.

    `latency_s`, `ttft_s` from intended, `service_s`, `ttft_sent_s` from sent, `tpot_s` = (end - first token) / (output
    tokens - 1) of answers that were streamed from the endpoint, `added_s` = service - the endpoint's own time, for
    requests that made a call of their own. Latencies are of requests answered completely; the rest is NaN: an early
    refusal is not a fast answer. `ok`, `hit`, `finished`: flags.
    """
    frame = requests.sort_values("request_id", kind="stable", ignore_index=True)
    ok = frame["outcome"].eq("ok")
    hit = frame["cache"].isin(HITS)
    own_call = ok & ~hit
    done, first = frame["done_s"], frame["first_token_s"]
    # Records do not say whether an answer was streamed; live, one that was not still ends microseconds after it began.
    streamed = own_call & (frame["output_tokens"] > 1) & (done - first > LEAST_STREAM_S)
    return frame.assign(
        ok=ok,
        hit=hit,
        finished=frame["outcome"].ne("unfinished"),
        latency_s=(done - frame["intended_s"]).where(ok),
        service_s=(done - frame["sent_s"]).where(ok),
        ttft_s=(first - frame["intended_s"]).where(ok),
        ttft_sent_s=(first - frame["sent_s"]).where(ok),
        tpot_s=((done - first) / (frame["output_tokens"] - 1).clip(lower=1)).where(streamed),
        added_s=(done - frame["sent_s"] - frame["endpoint_s"]).where(
            own_call & (frame["endpoint_s"] > 0)
        ),
    )


def quantile_of(frame: pd.DataFrame, metric: QuantileMetric) -> float:
    """The metric of a derived frame in seconds; NaN if no request has it."""
    return quantile(frame[metric.column].dropna().to_numpy(dtype=np.float64), metric.p)


def hit_ratio(frame: pd.DataFrame) -> float:
    """Answers without an upstream call of their own ÷ requests that asked the cache; NaN if none did."""
    asked = frame["cache"].ne("off")
    return float(frame.loc[asked, "hit"].mean()) if asked.any() else math.nan


def window_s(frame: pd.DataFrame) -> float:
    """The time over which rates count: from the start of the run to the last intended arrival, in seconds.

    The drain after it is left out, since one long answer would halve the throughput of a short run.
    """
    if frame.empty:
        return math.nan
    last = float(frame["intended_s"].max())
    return last if last > 0 else max(float(frame["done_s"].max()), math.ulp(1.0))


def answered_in_time(frame: pd.DataFrame, until_s: float) -> pd.Series[bool]:
    """Per request of a derived frame: answered by `until_s`, the end of the window over which rates count."""
    return frame["ok"] & frame["done_s"].le(until_s)


def throughput_per_s(frame: pd.DataFrame) -> float:
    """Requests answered within the window ÷ the window; NaN where every answer came in the drain, so none tells a rate."""
    until_s = window_s(frame)
    answered = int(answered_in_time(frame, until_s).sum())
    return answered / until_s if answered or not frame["ok"].any() else math.nan
