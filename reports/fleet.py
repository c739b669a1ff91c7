"""How many instances there were, and what the autoscaler did."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from reference_impl.telemetry.records import SystemEvent

__all__ = ["instance_counts", "instance_seconds", "largest_fleet", "scaling_events"]


def instance_counts(stations: pd.DataFrame) -> pd.Series[float]:
    """Instances ready over time (index: t_s): capacity of the `fleet` station, or the instances that reported slots."""
    fleet = stations[stations["kind"] == "fleet"]
    if not fleet.empty:
        return fleet.groupby("t_s")["capacity"].max().astype(float)
    slots = stations[stations["kind"] == "slots"]
    return slots.groupby("t_s")["station"].nunique().astype(float)


def largest_fleet(stations: pd.DataFrame, requests: pd.DataFrame) -> float:
    """The largest number of instances at a sample; without samples, the instances that answered; NaN if none is known."""
    counts = instance_counts(stations)
    if len(counts):
        return float(counts.max())
    return float(requests.loc[requests["instance"] != "", "instance"].nunique()) or math.nan


def instance_seconds(stations: pd.DataFrame) -> float:
    """Instance time paid for: ready, draining (the fleet's in service) and booting (its queue); 0 without samples."""
    fleet = stations[stations["kind"] == "fleet"]
    return float(((fleet["in_service"] + fleet["queue_length"]) * fleet["interval_s"]).sum())


def scaling_events(events: Sequence[SystemEvent]) -> list[SystemEvent]:
    """The decisions of the autoscaler, in order of time."""
    return sorted((e for e in events if e.kind == "scaling"), key=lambda e: e.t_s)
