"""What a verdict advises must help: the change that it names is simulated beside the run that it judges."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports.bottleneck import Verdict, judge
from reports.run import Run
from reports.summary import summarise
from tests.reports.simulated import simulated

LESS_TIME: dict[str, object] = {"horizon_s": 120, "drain_s": 40}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A closed system whose slots are full all the time, so that every request waits for one."""
    return simulated(tmp_path_factory.mktemp("workers") / "run", "workers", LESS_TIME)


def assert_names_slots(verdict: Verdict) -> None:
    assert verdict.limiting == "slots"
    assert "`instance slots` is 9" in verdict.headline  # in percent busy
    assert "Nothing of yours" not in verdict.headline
    assert "instances will not help" not in verdict.action
    assert verdict.confidence == "high"


def test_slots_that_everybody_waits_for_are_named_though_no_promise_is_broken(workers: Run) -> None:
    verdict = judge(workers)
    assert_names_slots(verdict)
    assert "Every promise is kept" in verdict.headline


def test_goodput_is_a_part_of_the_throughput(workers: Run) -> None:
    summary = summarise(workers)
    assert 0 < summary["goodput_per_s"] <= summary["throughput_per_s"]


@pytest.mark.parametrize(
    "change",
    [
        {"deployment.instances.concurrency": 16},
        {"deployment.instances.initial": 8, "deployment.autoscaler.max_instances": 8},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_change_that_it_names_raises_the_throughput_and_halves_the_latency(
    workers: Run, change: dict[str, object], tmp_path: Path
) -> None:
    assert next(iter(change)).removeprefix("deployment.") in judge(workers).action
    before = summarise(workers)
    after = summarise(simulated(tmp_path / "run", "workers", {**LESS_TIME, **change}))
    assert after["throughput_per_s"] > 1.5 * before["throughput_per_s"]
    assert after["latency"]["latency_intended_p50_s"] < 0.6 * before["latency"]["latency_intended_p50_s"]  # fmt: skip


def test_a_promise_that_a_wait_of_everybody_breaks_is_kept_by_the_change_that_it_names(
    tmp_path: Path,
) -> None:
    few = simulated(tmp_path / "few", "workers", {**LESS_TIME, "deployment.instances.initial": 2})
    verdict = judge(few)
    assert_names_slots(verdict)
    assert "promised was p95 of latency ≤ 20 s" in verdict.headline
    assert "`instances.initial`" in verdict.action
    more = simulated(tmp_path / "more", "workers", {**LESS_TIME, "deployment.instances.initial": 4})
    assert [o["met"] for o in summarise(few)["objectives"]] == [False]
    assert [o["met"] for o in summarise(more)["objectives"]] == [True]
