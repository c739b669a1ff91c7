"""The twin table: one live and one virtual run of the same requests, side by side, with the uncertainty of the gap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from reports.fleet import largest_fleet
from reports.metrics import QUANTILES, QuantileMetric, hit_ratio, quantile_of, throughput_per_s
from reports.objectives import goodput_per_s
from reports.run import Run, load_run
from simulation.statistics import block_bootstrap_quantiles, block_weights

__all__ = ["COLUMNS", "Match", "match_runs", "twin_table"]

COLUMNS: Final = (
    "key",
    "metric",
    "unit",
    "live",
    "virtual",
    "difference",
    "difference_low",
    "difference_high",
    "relative",
)
CONFIDENCE: Final = 0.95
# Stretches of the run that are resampled: enough for an interval, long enough to hold the memory of a queue.
_BLOCKS: Final = 20
_RESAMPLES: Final = 1000
# With fewer observations than this beyond a quantile an interval of it would be a guess.
_BEYOND: Final = 10


@dataclass(frozen=True, slots=True)
class Match:
    """How far two runs may be compared. `paired`: the same requests by id, so the intervals are of paired differences.

    `warnings`: sentences that must stand beside the table. `replayed`: the second run's arrivals are the first's sends.
    """

    paired: bool
    replayed: bool
    warnings: tuple[str, ...]


def match_runs(live: Run, virtual: Run) -> Match:
    """Compare what the two runs were asked to do."""
    warnings: list[str] = []
    a, b = live.requests, virtual.requests
    wanted = ["request_id", "input_tokens", "intended_s", "sent_s"]
    joined = a[wanted].merge(b[wanted], on="request_id", suffixes=("", "_virtual"))
    replayed = _within(joined["sent_s"] - joined["intended_s_virtual"])
    paired = live.manifest.workload_sha256 == virtual.manifest.workload_sha256 or (
        _same_tokens(joined)
        and (replayed or _within(joined["intended_s"] - joined["intended_s_virtual"]))
    )
    if not paired:
        warnings.append(
            f"The two runs are of different workloads ({len(a):,} and {len(b):,} requests): "
            "the differences below say nothing about the twin."
        )
    elif len(joined) < max(len(a), len(b)):
        warnings.append(
            f"Of {max(len(a), len(b)):,} requests only {len(joined):,} are in both runs; the rest counts in one alone."
        )
    warnings += [
        f"The {run.world} run {run.name} was cut short."
        for run in (live, virtual)
        if not run.complete
    ]
    if live.world == virtual.world:
        warnings.append(
            f"Both runs are {live.world}: this compares two runs, not a system with its twin."
        )
    commits = {run.manifest.commit for run in (live, virtual)} - {""}
    if len(commits) > 1:
        warnings.append("The two runs are of different commits: the twin ran other code.")
    deployments = live.scenario.get("deployment"), virtual.scenario.get("deployment")
    if deployments[0] != deployments[1]:
        warnings.append("The two runs are of different deployments.")
    return Match(paired, replayed, tuple(warnings))


# Instants that differ by less are the same instant, read by two clocks.
_SAME_INSTANT_S: Final = 1e-3


def _within(shift: pd.Series[float]) -> bool:
    return bool(len(shift)) and float(shift.abs().quantile(0.99)) < _SAME_INSTANT_S


def _same_tokens(joined: pd.DataFrame) -> bool:
    # A request that was refused early may have no token count on either side.
    known = (joined["input_tokens"] > 0) & (joined["input_tokens_virtual"] > 0)
    same = ~known | (joined["input_tokens"] == joined["input_tokens_virtual"])
    return bool(len(same)) and bool(same.mean() >= 0.99)


def twin_table(live: Run | Path, virtual: Run | Path, seed: int = 0) -> pd.DataFrame:
    """One row a figure of merit, columns `COLUMNS`; seconds, requests/s, fractions, counts and dollars.

    `difference` is virtual minus live, `relative` that over live. `difference_low/high`: 95% interval by resampling 20
    stretches of the run, the same ones in both when the requests are the same; NaN where fewer than 10 observations lie
    beyond the quantile, and for counts, whose difference is exact for these two runs. Equal `seed`, equal table.
    """
    live, virtual = (r if isinstance(r, Run) else load_run(r) for r in (live, virtual))
    paired = match_runs(live, virtual).paired
    generator = np.random.default_rng(seed)
    weights = block_weights(_BLOCKS, _RESAMPLES, generator)
    other = weights if paired else block_weights(_BLOCKS, _RESAMPLES, generator)
    plain = [_plain(run) for run in (live, virtual)]
    rows = [
        _row(key, label, unit, value, plain[1][key][2], None)
        for key, (label, unit, value) in plain[0].items()
    ]
    for metric in QUANTILES:
        a, b = (quantile_of(run.requests, metric) for run in (live, virtual))
        interval = _interval(metric, live, virtual, weights, other)
        rows.append(_row(metric.key, metric.label, "s", a, b, interval))
    order = _ORDER | {
        row["key"]: i + len(_ORDER) for i, row in enumerate(rows) if row["key"] not in _ORDER
    }
    rows.sort(key=lambda row: order[row["key"]])
    return pd.DataFrame(rows, columns=list(COLUMNS))


# Throughput first, as one reads it; the rest follows in the order in which it is computed.
_ORDER: Final[dict[object, int]] = {
    key: i
    for i, key in enumerate(
        [
            "requests",
            "throughput_per_s",
            "goodput_per_s",
            *(m.key for m in QUANTILES),
            "cache_hit_ratio",
            "failed_fraction",
            "retries",
            "largest_instances",
            "cost_usd",
        ]
    )
}


def _plain(run: Run) -> dict[str, tuple[str, str, float]]:
    frame = run.requests
    return {
        "requests": ("Requests", "", float(len(frame))),
        "throughput_per_s": (
            "Throughput (answered)",
            "/s",
            throughput_per_s(frame),
        ),
        "goodput_per_s": ("Goodput", "/s", goodput_per_s(frame, run.slos)),
        "cache_hit_ratio": ("Cache hit ratio", "fraction", hit_ratio(frame)),
        "failed_fraction": ("Not answered", "fraction", float((~run.ended["ok"]).mean())),
        "retries": ("Retries", "", float((frame["attempts"] - 1).clip(lower=0).sum())),
        "largest_instances": (
            "Largest number of instances",
            "",
            largest_fleet(run.stations, frame),
        ),
        "cost_usd": ("Cost", "usd", float(frame["cost_usd"].sum())),
    }


def _row(
    key: str,
    label: str,
    unit: str,
    live: float,
    virtual: float,
    interval: tuple[float, float] | None,
) -> dict[str, object]:
    difference = virtual - live
    unchanged = 0.0 if difference == 0 else math.nan
    relative = difference / live if live else unchanged
    low, high = interval or (math.nan, math.nan)
    values = (key, label, unit, live, virtual, difference, low, high, relative)
    return dict(zip(COLUMNS, values, strict=True))


def _interval(
    metric: QuantileMetric,
    live: Run,
    virtual: Run,
    weights: npt.NDArray[np.float64],
    other: npt.NDArray[np.float64],
) -> tuple[float, float] | None:
    draws = []
    fewest = min(int(run.requests[metric.column].count()) for run in (live, virtual))
    if fewest * min(metric.p, 1 - metric.p) < _BEYOND:
        return None
    last = max(int(run.requests["request_id"].max()) for run in (live, virtual))
    for run, drawn in ((live, weights), (virtual, other)):
        values = run.requests[metric.column]
        kept = values.notna().to_numpy()
        # Blocks are stretches of request ids, so block i holds the same requests in both runs.
        block = run.requests["request_id"].to_numpy(dtype=np.int64) * _BLOCKS // (last + 1)
        sample = values.to_numpy(dtype=np.float64)[kept]
        draws.append(block_bootstrap_quantiles(sample, block[kept], drawn, [metric.p])[:, 0])
    difference = draws[1] - draws[0]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(difference, [tail, 1 - tail])
    return float(low), float(high)
