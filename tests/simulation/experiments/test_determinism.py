"""Invariant 7 over the whole feature set: same inputs, same records, wherever and in whatever order runs are made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.experiments.job import make_job, run_job
from simulation.experiments.runner import JobRunner
from simulation.experiments.workers import LocalWorkers
from tests.simulation.experiments.features import FEATURES, digest, scenario
from tests.simulation.runs import play

ROOT = Path(__file__).resolve().parents[3]


def in_a_process(hash_seed: str) -> dict[str, str]:
    found = subprocess.run(
        [sys.executable, "-m", "tests.simulation.experiments.features"],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    digests: dict[str, str] = json.loads(found.stdout)
    return digests


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    return in_a_process("1")


def test_two_processes_with_other_hash_seeds_make_the_same_records(
    elsewhere: dict[str, str],
) -> None:
    assert in_a_process("2") == elsewhere


def test_other_runs_before_it_and_perturbed_allocations_change_no_record(
    elsewhere: dict[str, str],
) -> None:
    """Here every run comes after those that follow it there, with a heap full of holes."""
    for feature in reversed(FEATURES):
        clutter = [bytearray(n % 977 + 1) for n in range(30_000)]
        del clutter[::3]
        assert digest(feature) == elsewhere[feature], feature


def test_one_and_several_workers_make_the_same_rows() -> None:
    jobs = [make_job(scenario(feature)) for feature in FEATURES]
    with JobRunner(LocalWorkers(2)) as runner:
        assert runner.run(jobs) == [run_job(job) for job in jobs]


def test_the_features_are_really_used() -> None:
    rows = {feature: run_job(make_job(scenario(feature))) for feature in FEATURES}
    assert all(int(row["requests"] or 0) > 50 for row in rows.values())
    failing = (
        "faults of endpoint and links",
        "impatient clients, two choices, exponential boots, chunks",
    )
    assert all(float(rows[feature]["error_rate"] or 0) > 0 for feature in failing)
    assert float(rows["every component"]["cache_hit_ratio"] or 0) > 0
    assert float(rows["bursts, rate limits, retries"]["attempts_mean"] or 0) > 1
    for feature in ("faults of endpoint and links", "a shared cache that goes away"):
        assert "fault" in {event.kind for event in play(scenario(feature)).events}
