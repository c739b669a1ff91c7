"""Jobs that misbehave, and a program to interrupt: `python -m tests.simulation.experiments.tools FOLDER [resume]`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from simulation.experiments.job import Job, run_job
from simulation.experiments.journal import Journal
from simulation.experiments.measuring import Row
from simulation.experiments.points import Point, grid
from simulation.experiments.runner import JobRunner, Progress
from simulation.experiments.sweep import sweep
from simulation.experiments.workers import LocalWorkers
from simulation.scenario.schema import Scenario
from simulation.scenario.spec import load_scenario

# Where `die_once` notes that it has died, and the seed that is its victim.
MARKER = "TWINLOAD_TEST_MARKER"
VICTIM_SEED = 3

Clock = Callable[[], float] | None


def small(**overrides: object) -> Scenario:
    """A queue of some 60 requests."""
    changes = {name.replace("__", "."): value for name, value in overrides.items()}
    return load_scenario("mm1", {"horizon_s": 100, **changes})


def rates(count: int) -> list[Point]:
    """Points of a sweep over loads from 0.1 to 0.9."""
    return grid({"workload.arrivals.rate_per_s": [0.1 + 0.8 * i / count for i in range(count)]})


def die_once(job: Job, clock: Clock) -> Row:
    """As `run_job`, but the first to simulate the victim's seed takes its process down."""
    marker = Path(os.environ[MARKER])
    if msgspec.json.decode(job.scenario_json)["seed"] == VICTIM_SEED and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job, clock)


def die_always(job: Job, clock: Clock) -> Row:
    """As `run_job`, but whoever simulates the victim's seed dies."""
    if msgspec.json.decode(job.scenario_json)["seed"] == VICTIM_SEED:
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(job, clock)


def main(folder: Path, *, resume: bool) -> None:
    """A sweep of 40 points on two workers that prints a line for every finished run, and leaves its frame in the folder.

    The first time it stops to wait when five runs are finished, so that whoever interrupts it is in time.
    """

    def tell(progress: Progress) -> None:
        sys.stdout.write(f"{progress.done} {progress.found}\n")
        sys.stdout.flush()
        if not resume and progress.done == 5:
            sys.stdin.read()

    with (
        Journal(folder, {}, resume=resume) as journal,
        JobRunner(LocalWorkers(2), journal, on_progress=tell) as runner,
    ):
        frame = sweep(small(horizon_s=500), rates(40), runner)
    frame.to_parquet(folder / "frame.parquet")


if __name__ == "__main__":
    main(Path(sys.argv[1]), resume=len(sys.argv) > 2)
