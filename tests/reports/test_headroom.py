"""The headroom: one window and one population for the busy time, the answers and the capacity."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from reports.headroom import Headroom, headroom_of, in_words, pools_of
from reports.run import Run
from tests.reports.simulated import simulated


def headroom(run: Run) -> Headroom:
    found = headroom_of(pools_of(run), run)
    assert found is not None
    return found


def with_slots_full(run: Run, from_s: float, until_s: float) -> Run:
    """The run with every slot busy for a while."""
    stations = run.stations.copy()
    full = (stations["kind"] == "slots") & stations["t_s"].between(from_s, until_s)
    stations.loc[full, ["busy_s", "in_service"]] = 8.0
    return dataclasses.replace(run, stations=stations)


def test_it_is_of_the_busiest_moment_and_not_of_the_mean(roomy: Run) -> None:
    quiet = headroom(roomy)
    burst = with_slots_full(roomy, 100, 109)
    busy = headroom(burst)
    assert quiet.factor > 1.5
    assert busy.factor == pytest.approx(1.0)
    assert busy.bound_per_s / busy.throughput_per_s > 3  # what the mean alone would say


def test_a_pool_that_was_full_before_it_grew_is_told_so(queueing: Run) -> None:
    # 8 slots for the first minute, all of them busy; then 16.
    stations = queueing.stations.copy()
    later = (stations["kind"] == "slots") & (stations["t_s"] > 61)
    stations.loc[later, ["busy_s", "in_service"]] = 3.0
    grown = dataclasses.replace(queueing, stations=stations)
    found = headroom(grown)
    assert 1.5 < found.factor <= 2
    assert "at times it had less and was full" in in_words(found)


def test_the_drain_counts_neither_as_time_nor_as_work(roomy: Run) -> None:
    before = headroom(roomy)
    slots = roomy.stations[roomy.stations["kind"] == "slots"]
    end_s = float(roomy.stations["t_s"].max())
    drain = slots.assign(t_s=slots["t_s"] + end_s, busy_s=8.0, in_service=8.0, queue_length=50.0)
    stations = roomy.stations.loc[[*roomy.stations.index, *drain.index]].reset_index(drop=True)
    stations.iloc[-len(drain) :] = drain
    longer = dataclasses.replace(roomy, stations=stations)
    assert pools_of(longer)["queue_peak"].to_dict()["instance slots"] < 1
    after = headroom(longer)
    assert after.bound_per_s == pytest.approx(before.bound_per_s, rel=0.01)
    assert after.throughput_per_s == before.throughput_per_s


def test_work_of_batches_is_in_the_demand_and_in_the_throughput(tmp_path: Path) -> None:
    short = {"horizon_s": 300, "drain_s": 900, "workload.batches.0.requests": 1200}
    run = simulated(tmp_path / "run", "overnight_batch", short)
    found = headroom(run)
    assert run.batches["done_s"].max() > 400, "the batch outlasts the arrivals"
    # Utilisation law, over the 300 s: throughput ÷ bound is the mean utilisation of the pool.
    mean = pools_of(run)["utilisation"].to_dict()[found.pool]
    assert found.throughput_per_s / found.bound_per_s == pytest.approx(mean, rel=0.03)
    assert 1 <= found.factor <= 1 / mean
