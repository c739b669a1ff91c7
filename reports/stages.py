"""Where the time of a request goes, and above all the time of a *slow* one.

A mean over all requests hides the queue that only the slow ones stood in, so the decomposition is by latency quantile.
The endpoint's own time is taken out of the two stages that contain it: what is left there was lost on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from reference_impl.telemetry.records import STAGES
from reports.metrics import SERVED
from reports.wording import DASH
from simulation.statistics import block_weights

__all__ = ["BANDS", "PARTS", "PART_LABELS", "SlowDelay", "Until", "by_band", "parts", "slow_delay"]

Until = Literal["done", "first_token"]
_LLM_STAGES: Final = ("llm_first_token_s", "llm_stream_s")
# The stages, with the two that contain the endpoint split into the endpoint's own time and the rest.
PARTS: Final[tuple[str, ...]] = (
    *(s for s in STAGES if s not in _LLM_STAGES and s != "other_s"),
    "endpoint_s",
    "upstream_path_s",
    "other_s",
)
PART_LABELS: Final[Mapping[str, str]] = {
    "lag_s": "load generator's lag",
    "admission_s": "admission",
    "cache_s": "cache look-up or shared wait",
    "balance_s": "choosing an instance",
    "queue_wait_s": "task queue",
    "instance_wait_s": "waiting for a slot",
    "retry_wait_s": "waiting to retry",
    "failed_attempts_s": "failed attempts",
    "database_s": "database",
    "endpoint_s": "LLM endpoint's own time",
    "upstream_path_s": "way to and from the endpoint",
    "other_s": "rest: network, CPU, event loops",
}
# Bands of latency, as quantiles; the last ones are where promises are broken.
BANDS: Final = ((0.0, 0.5), (0.5, 0.75), (0.75, 0.9), (0.9, 0.95), (0.95, 0.99), (0.99, 1.0))


def parts(frame: pd.DataFrame, until: Until = "done") -> pd.DataFrame:
    """Seconds by part (columns `PARTS`) of the requests that were worked on; rows add up to the whole.

    `until`: the last byte (done - intended), or the first token (of requests that have one). Up to the first token the
    endpoint's own time and the way there are not told apart, and the rest is what no stage before it explains.
    """
    served = frame[frame["outcome"].isin(SERVED)]
    if until == "first_token":
        served = served[served["first_token_s"].notna()]
        whole = served["first_token_s"] - served["intended_s"]
        before = [s for s in STAGES if s not in ("llm_stream_s", "database_s", "other_s")]
        rest = (whole - served[before].sum(axis=1)).clip(lower=0)
        table = served.assign(
            endpoint_s=served["llm_first_token_s"],
            upstream_path_s=0.0,
            database_s=0.0,
            other_s=rest,
        )
        return table[list(PARTS)]
    llm = served["llm_first_token_s"] + served["llm_stream_s"]
    own = np.minimum(served["endpoint_s"], llm)
    table = served.assign(endpoint_s=own, upstream_path_s=llm - own)
    return table[list(PARTS)]


def by_band(table: pd.DataFrame) -> pd.DataFrame:
    """Mean seconds by part for each band of latency: index `p0–p50`, ..., columns `PARTS` and `requests`.

    A band with no request in it is left out.
    """
    total = table.sum(axis=1).to_numpy()
    order = np.argsort(total, kind="stable")
    rows: dict[str, pd.Series[float]] = {}
    for low, high in BANDS:
        chosen = order[int(np.ceil(low * total.size)) : int(np.ceil(high * total.size))]
        if chosen.size:
            row = table.iloc[chosen].mean()
            row["requests"] = chosen.size
            rows[f"p{low * 100:.0f}{DASH}p{high * 100:.0f}"] = row
    return pd.DataFrame.from_dict(rows, orient="index", columns=[*PARTS, "requests"])


@dataclass(frozen=True, slots=True)
class SlowDelay:
    """The slow requests (latency above `quantile`) against the typical ones (below the median).

    Attributes:
        until: whether the latency is to the last byte or to the first token.
        threshold_s: latency above which a request is slow. requests: how many there are.
        latency_s: their mean latency. seconds: their mean by part. typical: that of the typical requests.
        excess: by part, what the slow spend beyond an unhindered typical request, as a fraction of the whole excess (parts
            below 0 as 0). Of the endpoint's own time that is what exceeds the typical; of every other part it is all, since a
            wait that everybody has is no less a wait.
        top_stability: fraction of bootstrap resamples (whole stretches of the run) in which the same part is on top.
    """

    until: Until
    quantile: float
    threshold_s: float
    requests: int
    latency_s: float
    seconds: Mapping[str, float]
    typical: Mapping[str, float]
    excess: Mapping[str, float]
    top_stability: float


_BLOCKS: Final = 20
# What a typical request would spend with nobody in its way: the endpoint's own time, and nothing else.
_UNHINDERED: Final = np.array([part == "endpoint_s" for part in PARTS], dtype=np.float64)


def slow_delay(
    frame: pd.DataFrame, generator: np.random.Generator, until: Until = "done"
) -> SlowDelay | None:
    """Decompose the delay of slow requests; None when fewer than 20 requests were worked on.

    `frame` is derived, in order of arrival; `until` as in `parts`. Slow means above p95, of short runs p90 or p75, so that at least a
    handful is averaged.
    """
    table = parts(frame, until)
    n = len(table)
    if n < 20:
        return None
    level = 0.95 if n >= 400 else 0.9 if n >= 100 else 0.75
    values = table.to_numpy(dtype=np.float64)
    total = values.sum(axis=1)
    threshold = float(np.quantile(total, level))
    slow, typical = total >= threshold, total <= np.median(total)
    mean_slow, mean_typical = values[slow].mean(axis=0), values[typical].mean(axis=0)
    excess = _shares(mean_slow - _UNHINDERED * mean_typical)
    return SlowDelay(
        until=until,
        quantile=level,
        threshold_s=threshold,
        requests=int(slow.sum()),
        latency_s=float(total[slow].mean()),
        seconds=dict(zip(PARTS, mean_slow.tolist(), strict=True)),
        typical=dict(zip(PARTS, mean_typical.tolist(), strict=True)),
        excess=dict(zip(PARTS, excess.tolist(), strict=True)),
        top_stability=_stability(values, slow, typical, int(np.argmax(excess)), generator),
    )


def _shares(excess: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    positive = np.maximum(excess, 0.0)
    whole = float(positive.sum())
    return positive / whole if whole > 0 else positive


def _stability(
    values: npt.NDArray[np.float64],
    slow: npt.NDArray[np.bool_],
    typical: npt.NDArray[np.bool_],
    top: int,
    generator: np.random.Generator,
    resamples: int = 400,
) -> float:
    block = np.arange(len(values)) * _BLOCKS // len(values)
    weights = block_weights(_BLOCKS, resamples, generator)

    def means(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        sums = np.zeros((_BLOCKS, values.shape[1]))
        np.add.at(sums, block[chosen], values[chosen])
        counts = np.bincount(block[chosen], minlength=_BLOCKS)
        per_request: npt.NDArray[np.float64] = (weights @ sums) / np.maximum(weights @ counts, 1.0)[
            :, None
        ]
        return per_request

    excess = means(slow) - _UNHINDERED * means(typical)
    return float((np.argmax(excess, axis=1) == top).mean())
