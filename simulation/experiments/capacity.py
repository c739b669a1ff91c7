"""`capacity`: the largest load, or the fewest instances, with which every promise is kept.

A search over one field of the scenario. Closed forms prune what cannot work and say where to begin; every candidate that
matters is simulated, with the same seeds, until its verdict is sure. A candidate *meets* the promises when, for each of
them, the upper confidence limit of its value's mean over replications is within the limit; the chance of being wrong is
shared out among promises and looks (Bonferroni). What stays unclear does not count as met.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import pandas as pd

from simulation.experiments.closed_form import ClosedForm
from simulation.experiments.errors import ExperimentError
from simulation.experiments.frames import frame_of
from simulation.experiments.job import DEFAULT_MAX_EVENTS, WarmUpRule, make_job
from simulation.experiments.measuring import Row, number_of, slo_column
from simulation.experiments.points import field_value, seeds
from simulation.experiments.runner import JobRunner
from simulation.scenario.errors import ScenarioError
from simulation.scenario.schema import SLO, Scenario
from simulation.scenario.spec import override
from simulation.statistics import mean_interval

__all__ = ["Capacity", "Trial", "capacity"]

# Replications after which a candidate is judged; the first verdict that is sure ends it.
LOOKS: Final = (5, 10, 20, 40)
RATE: Final = "workload.arrivals.rate_per_s"
INSTANCES: Final = "deployment.instances.initial"

Goal = Literal["largest", "fewest"]
Verdict = Literal["meets", "fails", "unclear", "pruned"]


@dataclass(frozen=True)
class Trial:
    """One candidate: its verdict, why, and after how many runs (0: a closed form ruled it out).

    `tightest`: the share of its limit that the worst promise takes; infinite beyond capacity.
    """

    value: float
    verdict: Verdict
    reason: str
    replications: int
    tightest: float


@dataclass
class Capacity:
    """The answer: `value` is the best that was shown to meet every promise, `beyond` the nearest that was not shown to.

    `trials` in the order in which they were made; `runs` one row a run.
    """

    path: str
    goal: Goal
    confidence: float
    value: float
    beyond: float | None
    trials: list[Trial]
    runs: pd.DataFrame = field(repr=False)

    @property
    def verdict(self) -> str:
        """One sentence."""
        which = "largest" if self.goal == "largest" else "smallest"
        text = (
            f"{self.path} = {self.value:g} is the {which} found that keeps every promise "
            f"({self.confidence:.0%} confidence)"
        )
        if self.beyond is None:
            return f"{text}; the search's bound was reached"
        trial = next(t for t in reversed(self.trials) if t.value == self.beyond)
        return f"{text}; {self.beyond:g}: {trial.reason}"


def capacity(
    scenario: Scenario,
    runner: JobRunner,
    *,
    path: str = RATE,
    goal: Goal = "largest",
    between: tuple[float, float] | None = None,
    precision: float = 0.02,
    confidence: float = 0.95,
    warm_up: WarmUpRule = 0.0,
    max_events: int = DEFAULT_MAX_EVENTS,
    wall_clock_limit_s: float | None = None,
) -> Capacity:
    """Search the number at `path`, of which more load (`largest`) or fewer machines (`fewest`) makes promises harder to keep.

    Args:
        between: lowest and highest value to consider; without it, from the scenario's own value outwards.
        precision: relative width at which the search of a fraction ends; whole numbers are found exactly.
        confidence: of the verdict on each candidate.

    Raises ScenarioError for an unknown field, ExperimentError where there is no promise, no number at `path`, or no value
    that keeps the promises.
    """
    if not scenario.slos:
        raise ExperimentError(
            f"{scenario.name}: has no slos; say what is promised, for example --set "
            "'slos=[{name: p95, metric: latency, quantile: 0.95, limit_s: 5}]'"
        )
    now = field_value(scenario, path)
    if isinstance(now, bool) or not isinstance(now, (int, float)):
        raise ExperimentError(f"{path}: is no number that could be searched, but {now!r}")
    if path == INSTANCES and scenario.deployment.autoscaler.enabled:
        raise ExperimentError(
            f"{path}: the autoscaler changes the fleet; set deployment.autoscaler.enabled=false, "
            "or search deployment.autoscaler.max_instances"
        )
    if between is not None and not 0 < between[0] < between[1]:
        raise ExperimentError(f"{path}: search between two rising numbers above 0, found {between}")
    options = _Options(warm_up, max_events, wall_clock_limit_s)
    bench = _Bench(scenario, runner, path, isinstance(now, int), confidence, options)
    search = _Search(bench, goal, between)
    best, beyond = search.run(_first_guess(bench, goal, float(now)), precision)
    return Capacity(
        path, goal, confidence, best, beyond, list(bench.trials.values()), bench.frame()
    )


def _first_guess(bench: _Bench, goal: Goal, now: float) -> float:
    """Where a closed form would look; the scenario's own value where there is none."""
    if goal == "largest" and bench.path == RATE:
        guess = ClosedForm(bench.scenario).guess_rate()
        return guess if 0 < guess < math.inf else now
    if goal == "fewest" and bench.whole:
        count = 1
        while count < 1_000_000 and not bench.hopeful(count):
            count = count + 1 if count < 32 else math.ceil(count * 1.1)
        return count if count < 1_000_000 else now
    return now


@dataclass(frozen=True)
class _Options:
    warm_up: WarmUpRule
    max_events: int
    wall_clock_limit_s: float | None


class _Bench:
    """Tries candidates, each once, and keeps what was found."""

    def __init__(
        self,
        scenario: Scenario,
        runner: JobRunner,
        path: str,
        whole: bool,
        confidence: float,
        options: _Options,
    ) -> None:
        self.scenario = scenario
        self.path = path
        self.whole = whole
        self.trials: dict[float, Trial] = {}
        self._runner = runner
        self._options = options
        # One-sided, for every promise at every look.
        self._error = (1 - confidence) / (len(scenario.slos) * len(LOOKS))
        self._labels: list[dict[str, object]] = []
        self._rows: list[Row] = []

    def variant(self, value: float) -> Scenario:
        return override(self.scenario, {self.path: int(value) if self.whole else value})

    def hopeful(self, value: float) -> bool:
        """Whether a closed form would try it; what is no scenario (a bound below another) is not worth trying."""
        try:
            return ClosedForm(self.variant(value)).hopeful
        except ScenarioError:
            return False

    def default_bounds(self, guess: float) -> tuple[float, float]:
        """Nobody means a thousandth of what stands there, or a thousand times as much."""
        if self.whole:
            return 1.0, max(100.0, 100 * guess)
        # A load of less than 20 requests a run says nothing.
        least = 20 / self.scenario.horizon_s if self.path == RATE else 0.0
        return min(guess, max(guess / 1000, least)), guess * 1000

    def frame(self) -> pd.DataFrame:
        return frame_of(self._labels, self._rows)

    def try_(self, value: float) -> Trial:
        if value not in self.trials:
            self.trials[value] = self._try(value)
        return self.trials[value]

    def _try(self, value: float) -> Trial:
        try:
            variant = self.variant(value)
        except ScenarioError as error:
            return Trial(value, "pruned", str(error), 0, math.inf)
        if (certain := ClosedForm(variant).hopeless) is not None:
            return Trial(value, "pruned", certain, 0, math.inf)
        rows: list[Row] = []
        for look in LOOKS:
            shared = seeds(variant, look - len(rows), first=len(rows))
            jobs = [
                make_job(
                    variant,
                    seed=seed,
                    warm_up=self._options.warm_up,
                    max_events=self._options.max_events,
                    wall_clock_limit_s=self._options.wall_clock_limit_s,
                )
                for seed in shared
            ]
            new = self._runner.run(jobs)
            rows += new
            self._rows += new
            self._labels += [{self.path: value, "seed": seed} for seed in shared]
            verdict, reason, ratio = _judge(rows, variant.slos, self._error)
            if verdict != "unclear":
                break
        return Trial(value, verdict, reason, len(rows), ratio)


def _judge(rows: list[Row], slos: tuple[SLO, ...], error: float) -> tuple[Verdict, str, float]:
    """The verdict on the runs so far, its reason, and how much of its limit the tightest promise uses."""
    growing = [row for row in rows if row["status"] == "unstable"]
    if 2 * len(growing) > len(rows):
        per_s = float(np.mean([number_of(row, "backlog_growth_per_s") for row in growing]))
        reason = f"beyond capacity: the backlog grows at {per_s:.3g} requests/s"
        return "fails", reason, math.inf
    if any(row["status"] == "limit" for row in rows):
        return "fails", f"a run was cut short: {rows[-1]['note']}", math.inf
    found: list[tuple[float, Verdict, str]] = []
    for slo in slos:
        sample = [row[slo_column(slo)] for row in rows]
        limit, unit = (slo.limit_s, " s") if slo.limit_s is not None else (slo.limit or 0.0, "")
        if any(value is None for value in sample):
            found.append((math.inf, "fails", f"{slo.name}: there are runs without an answer"))
            continue
        interval = mean_interval([float(value or 0.0) for value in sample], 1 - 2 * error)
        reason = f"{slo.name}: {interval.estimate:.4g}{unit}, promised {limit:g}{unit}"
        verdict: Verdict = "unclear"
        if interval.high <= limit:
            verdict = "meets"
        elif interval.low > limit:
            verdict = "fails"
        else:
            reason += f" (between {interval.low:.4g} and {interval.high:.4g})"
        found.append((_ratio(interval.estimate, limit), verdict, reason))
    ratio, _, reason = max(found, key=lambda promise: promise[0])
    verdicts = [verdict for _, verdict, _ in found]
    if "fails" in verdicts:
        return "fails", next(text for _, verdict, text in found if verdict == "fails"), ratio
    if "unclear" in verdicts:
        return "unclear", next(text for _, verdict, text in found if verdict == "unclear"), ratio
    return "meets", reason, ratio


def _ratio(value: float, limit: float) -> float:
    if limit > 0:
        return value / limit
    return 0.0 if value <= 0 else math.inf


class _Search:
    """Brackets outwards from a guess, then halves. "Easier" is a smaller load or a larger fleet."""

    def __init__(self, bench: _Bench, goal: Goal, between: tuple[float, float] | None) -> None:
        self._bench = bench
        self._harder = 1 if goal == "largest" else -1
        self._bounds = between

    def run(self, guess: float, precision: float) -> tuple[float, float | None]:
        """The hardest value that meets, and an adjacent one that was not shown to (None at the search's bound)."""
        if self._bounds is None:
            self._bounds = self._bench.default_bounds(guess)
        value = self._within(guess)
        if self._meets(value):
            good, bad = self._climb(value)
        else:
            good, bad = self._retreat(value)
        while bad is not None and not self._close(good, bad, precision):
            middle = math.sqrt(good * bad)
            if self._bench.whole:
                low, high = sorted((good, bad))
                middle = float(min(max(round(middle), low + 1), high - 1))
            if self._meets(middle):
                good = middle
            else:
                bad = middle
        return good, bad

    def _climb(self, value: float) -> tuple[float, float | None]:
        """From one that meets to the first harder one that does not."""
        factor = 1.2
        while (harder := self._step(value, factor * self._harder)) != value:
            if not self._meets(harder):
                return value, harder
            value, factor = harder, factor**2
        return value, None

    def _retreat(self, value: float) -> tuple[float, float]:
        """From one that does not meet to the first easier one that does."""
        factor = 1.2
        seen = [self._bench.try_(value)]
        while (easier := self._step(value, -factor * self._harder)) != value:
            if self._meets(easier):
                return easier, value
            value, factor = easier, factor**2
            seen.append(self._bench.try_(easier))
            if _same_floor(seen):
                break
        nearest = min(seen, key=lambda trial: trial.tightest)
        raise ExperimentError(
            f"{self._bench.path}: no value keeps every promise; at {nearest.value:g}, {nearest.reason}"
            + (", and going on changes nothing" if _same_floor(seen) else "")
        )

    def _step(self, value: float, factor: float) -> float:
        """Away by |factor|, up where it is positive, by one at least."""
        to = value * factor if factor > 0 else value / -factor
        if self._bench.whole:
            to = max(value + 1, round(to)) if factor > 0 else min(value - 1, round(to))
        return self._within(to)

    def _within(self, value: float) -> float:
        assert self._bounds is not None
        low, high = self._bounds
        value = min(max(value, low), high)
        return float(round(value)) if self._bench.whole else value

    def _meets(self, value: float) -> bool:
        return self._bench.try_(value).verdict == "meets"

    def _close(self, good: float, bad: float, precision: float) -> bool:
        if self._bench.whole:
            return abs(good - bad) <= 1
        return max(good, bad) / min(good, bad) - 1 <= precision


def _same_floor(trials: list[Trial]) -> bool:
    """Whether the last three candidates come equally far from keeping the tightest promise."""
    last = [trial.tightest for trial in trials[-3:]]
    return len(last) == 3 and math.isfinite(last[0]) and max(last) <= 1.01 * min(last)
