"""`compare`: variants of a scenario under the same requests and the same luck, ranked as far as the runs allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import pandas as pd

from simulation.experiments.errors import ExperimentError
from simulation.experiments.frames import frame_of
from simulation.experiments.job import DEFAULT_MAX_EVENTS, WarmUpRule, make_job
from simulation.experiments.measuring import HIGHER_IS_BETTER, check_metric, number_of
from simulation.experiments.points import seeds, variants
from simulation.experiments.runner import JobRunner
from simulation.scenario.schema import Scenario
from simulation.statistics import PairedDifference, compare_pairs

__all__ = ["Comparison", "compare", "higher_is_better"]

# Of the larger mean: a difference below this share is within what any model of a system is wrong by.
NEGLIGIBLE: Final = 1e-3


@dataclass(frozen=True)
class Comparison:
    """Variants compared by one metric.

    Attributes:
        runs: one row a run, with `variant` and `seed`.
        means: the metric's mean by variant, best first.
        pairs: for every two variants in the order given, the second minus the first.
    """

    metric: str
    confidence: float
    runs: pd.DataFrame
    means: dict[str, float]
    pairs: dict[tuple[str, str], PairedDifference]

    def between(self, one: str, other: str) -> PairedDifference:
        """The comparison of two variants, in the order in which it was made."""
        return self.pairs[(one, other) if (one, other) in self.pairs else (other, one)]

    def is_negligible(self, one: str, other: str) -> bool:
        """Whether no difference that the runs allow is worth a thought, settled or not."""
        interval = self.between(one, other).interval
        size = max(abs(self.means[one]), abs(self.means[other]))
        return max(abs(interval.low), abs(interval.high)) <= NEGLIGIBLE * size

    @property
    def ranking(self) -> list[str] | None:
        """Variants best first; None where any two cannot be told apart."""
        settled = all(pair.settled for pair in self.pairs.values())
        return list(self.means) if settled else None

    @property
    def verdict(self) -> list[str]:
        """What may be said, a sentence for each two variants that stand next to each other, best first."""
        order = list(self.means)
        sentences = []
        for better, worse in pairwise(order):
            pair = self.between(better, worse)
            ends = sorted(abs(end) for end in (pair.interval.low, pair.interval.high))
            if self.is_negligible(better, worse) and ends[1] > 0:
                sentences.append(
                    f"{better} and {worse} make no difference that matters: {self.metric} differs by at most {ends[1]:.2g} "
                    f"of {self.means[worse]:.4g}"
                )
            elif pair.settled:
                sentences.append(
                    f"{better} is better than {worse}: {self.metric} by {ends[0]:.4g} to {ends[1]:.4g}"
                )
            elif pair.interval.low == pair.interval.high == 0:
                sentences.append(f"{better} and {worse} have the same {self.metric} in every run")
            else:
                sentences.append(
                    f"{better} and {worse} cannot be ranked: their difference in {self.metric} "
                    f"[{pair.interval.low:+.4g}, {pair.interval.high:+.4g}] may be 0; "
                    f"about {pair.replications_needed:,} replications would settle one of the size seen"
                )
        return sentences


def compare(
    scenario: Scenario,
    alternatives: Mapping[str, Mapping[str, object]],
    runner: JobRunner,
    *,
    metric: str = "latency_mean_s",
    replications: int = 10,
    confidence: float = 0.95,
    warm_up: WarmUpRule = 0.0,
    max_events: int = DEFAULT_MAX_EVENTS,
    wall_clock_limit_s: float | None = None,
) -> Comparison:
    """Run each variant (a name, and overrides of `scenario`) with the same seeds, and compare every two.

    Intervals hold together (Bonferroni), p-values are Holm's. Raises ScenarioError for a variant that is no scenario,
    ExperimentError for fewer than two, or a metric that is not a number in some run.
    """
    check_metric(scenario, metric)
    if len(alternatives) < 2:
        raise ExperimentError(f"compare needs at least two variants, found {len(alternatives)}")
    if replications < 2:
        raise ExperimentError(f"compare needs at least 2 replications, found {replications}")
    if warm_up == "mser5":
        raise ExperimentError(
            "compare needs one warm-up for all variants, in seconds: else they differ in what they measure"
        )
    made = variants(scenario, map(dict, alternatives.values()))
    shared = seeds(scenario, replications)
    labels = [{"variant": name, "seed": seed} for name in alternatives for seed in shared]
    jobs = [
        make_job(
            variant,
            seed=seed,
            warm_up=warm_up,
            max_events=max_events,
            wall_clock_limit_s=wall_clock_limit_s,
        )
        for variant in made
        for seed in shared
    ]
    rows = runner.run(jobs)
    samples = {
        name: np.array([number_of(row, metric) for row in rows[i * replications :][:replications]])
        for i, name in enumerate(alternatives)
    }
    means = {name: float(sample.mean()) for name, sample in samples.items()}
    best_first = sorted(means, key=lambda name: means[name], reverse=higher_is_better(metric))
    return Comparison(
        metric=metric,
        confidence=confidence,
        runs=frame_of(labels, rows),
        means={name: means[name] for name in best_first},
        pairs=compare_pairs(samples, confidence),
    )


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is good; of times, errors and money less is."""
    return metric in HIGHER_IS_BETTER or metric.startswith("attained:")
