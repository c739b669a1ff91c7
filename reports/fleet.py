"""How many instances there were, and what the autoscaler did."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reference_impl.telemetry.records import SystemEvent

__all__ = ["instance_counts", "instance_seconds", "largest_fleet", "scaling_events"]


def instance_counts(stations: pd.DataFrame) -> pd.Series[float]:
    """Instances over time (index: t_s), from the `fleet` station, or from the instances that reported slots."""
    fleet = stations[stations["kind"] == "fleet"]
    if not fleet.empty:
        return fleet.groupby("t_s")["capacity"].max().astype(float)
    slots = stations[stations["kind"] == "slots"]
    return slots.groupby("t_s")["station"].nunique().astype(float)


def largest_fleet(stations: pd.DataFrame, requests: pd.DataFrame) -> int:
    """The largest number of instances at a sample; without samples, the instances that answered."""
    counts = instance_counts(stations)
    if len(counts):
        return int(counts.max())
    return int(requests.loc[requests["instance"] != "", "instance"].nunique())


def instance_seconds(stations: pd.DataFrame) -> float:
    """Instance time paid for: the count, held until the next sample, integrated; 0 without samples."""
    counts = instance_counts(stations)
    if counts.empty:
        return 0.0
    spans = counts.index.to_series().diff().fillna(counts.index[0])
    return float((counts * spans).sum())


def scaling_events(events: Sequence[SystemEvent]) -> list[SystemEvent]:
    """The decisions of the autoscaler, in order of time."""
    return sorted((e for e in events if e.kind == "scaling"), key=lambda e: e.t_s)
