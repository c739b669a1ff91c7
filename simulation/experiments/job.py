"""One simulation as a job: a pure function of a small picklable description, to run in any process.

An experiment is a list of jobs. A job's key names everything that its row depends on, so a result that is there is never
computed twice, and the row is the same in whichever process, and after however many attempts, it was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from simulation.experiments.errors import ExperimentError
from simulation.experiments.measuring import MeasuringSink, Row
from simulation.kernel.errors import LimitExceeded
from simulation.scenario.arrival_spec import TraceArrivals
from simulation.scenario.errors import ScenarioError
from simulation.scenario.schema import Scenario
from simulation.scenario.workload import compile_workload
from simulation.world import simulate

__all__ = ["DEFAULT_MAX_EVENTS", "Job", "WarmUpRule", "make_job", "run_job"]

# Some two hours of CPU; a run of a million requests takes a tenth of it.
DEFAULT_MAX_EVENTS: Final = 500_000_000

WarmUpRule = float | Literal["mser5"]


class Job(msgspec.Struct, frozen=True):
    """A run to make.

    Attributes:
        scenario_json: the whole scenario, its seed included.
        warm_up: seconds from the start that are not measured, or "mser5" to find them from the run itself.
        trace_sha256: of the trace's file, where there is one ("" otherwise).
        max_events, wall_clock_limit_s: limits of the run. Reaching one is a result, not an error.
    """

    scenario_json: str
    warm_up: WarmUpRule = 0.0
    trace_sha256: str = ""
    max_events: int = DEFAULT_MAX_EVENTS
    wall_clock_limit_s: float | None = None

    @property
    def key(self) -> str:
        """Hex sha256 of all that the row depends on; the wall clock is no part of it."""
        parts = (self.scenario_json, self.warm_up, self.trace_sha256, self.max_events)
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


def make_job(
    scenario: Scenario,
    *,
    seed: int | None = None,
    warm_up: WarmUpRule = 0.0,
    max_events: int = DEFAULT_MAX_EVENTS,
    wall_clock_limit_s: float | None = None,
) -> Job:
    """The job of `scenario`, with another seed if one is given. Raises ScenarioError for a trace that cannot be read.

    Raises ExperimentError where the warm-up leaves nothing to measure.
    """
    if not isinstance(warm_up, str) and warm_up >= scenario.horizon_s:
        raise ExperimentError(
            f"--warm-up {warm_up:g}: leaves nothing to measure of {scenario.horizon_s:g} s; "
            "make it shorter, or the runs longer (--set horizon_s=...)"
        )
    if seed is not None:
        scenario = scenario.model_copy(update={"seed": seed})
    arrivals = scenario.workload.arrivals
    trace_sha256 = ""
    if isinstance(arrivals, TraceArrivals):
        try:
            trace_sha256 = hashlib.sha256(Path(arrivals.path).read_bytes()).hexdigest()
        except OSError as error:
            raise ScenarioError(f"workload.arrivals.path: {error}") from None
    return Job(
        scenario_json=scenario.model_dump_json(),
        warm_up=warm_up,
        trace_sha256=trace_sha256,
        max_events=max_events,
        wall_clock_limit_s=wall_clock_limit_s,
    )


def run_job(job: Job, wall_clock: Callable[[], float] | None = None) -> Row:
    """Simulate in memory and return the row of results (`MeasuringSink.row`).

    A run beyond a limit, or whose backlog grows, says so in its `status` and `note`. `wall_clock`, for example
    time.monotonic, is needed for the job's wall-clock limit only. Raises ScenarioError (the workload cannot be compiled)
    and what `simulate` raises, limits aside.
    """
    scenario = Scenario.model_validate_json(job.scenario_json)
    workload = compile_workload(scenario)
    sink = MeasuringSink(scenario)
    limit = ""
    try:
        simulate(
            scenario,
            workload,
            sink,
            max_events=job.max_events,
            wall_clock_limit_s=job.wall_clock_limit_s if wall_clock is not None else None,
            wall_clock=wall_clock,
        )
    except LimitExceeded as error:
        limit = str(error)
    return sink.row(job.warm_up, limit)
