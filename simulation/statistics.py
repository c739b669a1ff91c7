"""What may be said from a sample, and how surely: intervals, warm-up, paired comparison, when to stop.

Pure functions on arrays. Two kinds of sample must never be mixed up: *replications* are independent (Student's t, order
statistics); successive values of *one run* are not, because a queue remembers. For one run use `batch_means` or
`block_bootstrap_quantiles`, which resample whole stretches of it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special  # scipy.stats has the same, and takes half a second to import

__all__ = [
    "BatchMeans",
    "Interval",
    "PairedDifference",
    "Precision",
    "WarmUp",
    "batch_means",
    "block_bootstrap_quantiles",
    "block_weights",
    "compare_paired",
    "compare_pairs",
    "holm",
    "mean_interval",
    "mser5",
    "quantile",
    "quantile_interval",
    "relative_precision",
    "time_weighted_mean",
]

Floats = npt.NDArray[np.float64]
# Candidate values that a bootstrapped quantile may take; the step in probability is 1/4096, far inside any interval.
_GRID_POINTS = 4096


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval; `low` or `high` is infinite where the sample cannot bound it."""

    estimate: float
    low: float
    high: float
    confidence: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class BatchMeans:
    """Interval of a run's mean from the means of its batches.

    `lag1_correlation` of the batch means should be near 0; above about 0.3 the batches are too short and the interval is
    too narrow.
    """

    interval: Interval
    means: tuple[float, ...]
    lag1_correlation: float


@dataclass(frozen=True, slots=True)
class WarmUp:
    """`truncate` leading observations to drop. Not `settled`: the optimum lies at half of the run, so run longer."""

    truncate: int
    settled: bool


@dataclass(frozen=True, slots=True)
class Precision:
    """State of a sequential stopping rule; `replications_needed` is an estimate of the total, from the variance so far."""

    reached: bool
    interval: Interval
    relative_half_width: float
    replications_needed: int


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Alternative minus baseline over common random numbers.

    `interval` holds simultaneously for the whole family (Bonferroni); `p_value` is adjusted by Holm. `settled` says
    whether the two may be ranked; if not, `replications_needed` would settle a difference of the size seen.
    """

    name: str
    interval: Interval
    p_value: float
    settled: bool
    replications_needed: int


def _floats(sample: npt.ArrayLike, at_least: int, what: str) -> Floats:
    values = np.asarray(sample, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{what} takes one dimension, found {values.ndim}")
    if values.size < at_least:
        raise ValueError(f"{what} needs at least {at_least} values, found {values.size}")
    if not np.isfinite(values).all():
        raise ValueError(f"{what} takes finite values only; drop or count the others first")
    return values


def _t_quantile(confidence: float, n: int) -> float:
    """Of Student's t for `n` values: what a two-sided interval takes times the standard error."""
    return float(special.stdtrit(n - 1, (1 + confidence) / 2))


def _check_fraction(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, found {value}")


def quantile(sample: npt.ArrayLike, p: float) -> float:
    """Quantile `p` (0..1) of `sample`, linear between order statistics (type 7, as numpy and pandas); NaN if empty."""
    values = np.asarray(sample, dtype=np.float64)
    return float(np.quantile(values, p)) if values.size else math.nan


def quantile_interval(sample: npt.ArrayLike, p: float, confidence: float = 0.95) -> Interval:
    """Distribution-free interval of quantile `p` from order statistics of *independent* values.

    The ranks come from Binomial(n, p) (Conover, Practical Nonparametric Statistics, 3.2), each side with at most half of
    the error. A side that no order statistic can bound is infinite: 10 replications say nothing above their p99.
    """
    values = np.sort(_floats(sample, 1, "a quantile interval"))
    _check_fraction(p, "the quantile")
    _check_fraction(confidence, "the confidence")
    n, tail = values.size, (1 - confidence) / 2
    at_most = special.bdtr(np.arange(n + 1, dtype=np.float64), n, p)  # P(Binomial(n, p) <= k)
    # P(X_(r) > q) = P(Binomial <= r-1): the largest rank r for which this is at most `tail` bounds from below.
    low_rank = int(np.searchsorted(at_most, tail, side="right"))
    # P(X_(s) < q) <= P(Binomial >= s): the smallest rank s for which this is at most `tail` bounds from above.
    high_rank = int(np.searchsorted(at_most, 1 - tail, side="left")) + 1
    low = float(values[low_rank - 1]) if low_rank >= 1 else -math.inf
    high = float(values[high_rank - 1]) if high_rank <= n else math.inf
    return Interval(quantile(values, p), low, high, confidence)


def mean_interval(sample: npt.ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent replications (at least 2)."""
    values = _floats(sample, 2, "a mean interval")
    _check_fraction(confidence, "the confidence")
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(values.size)
    half = _t_quantile(confidence, values.size) * error
    return Interval(mean, mean - half, mean + half, confidence)


def batch_means(series: npt.ArrayLike, batches: int = 20, confidence: float = 0.95) -> BatchMeans:
    """Interval of the mean of one run's successive values, from `batches` means of equal length.

    A remainder is dropped from the start, where a warm-up would be. 10 to 30 batches are usual (Schmeiser 1982).
    """
    if batches < 2:
        raise ValueError(f"batch means need at least 2 batches, found {batches}")
    values = _floats(series, 2 * batches, "batch means")
    length = values.size // batches
    means = values[values.size - length * batches :].reshape(batches, length).mean(axis=1)
    centred = means - means.mean()
    spread = float(centred @ centred)
    lag1 = float(centred[:-1] @ centred[1:]) / spread if spread > 0 else 0.0
    return BatchMeans(mean_interval(means, confidence), tuple(means.tolist()), lag1)


def mser5(series: npt.ArrayLike) -> WarmUp:
    """How much of the start of `series` to drop: MSER-5 (White, Cobb and Spratt 2000).

    Over batches of 5, the k <= n/2 that minimises sum((y - mean)^2) / (n-k)^2 of what is left. An optimum at the bound
    means that the run never settled. Fewer than 10 batches (50 values) say nothing: not settled.
    """
    values = _floats(series, 0, "MSER-5")
    n = values.size // 5
    if n < 10:
        return WarmUp(0, settled=False)
    means = values[: 5 * n].reshape(n, 5).mean(axis=1)
    # Shifted by the mean: the sums of squares below would lose all digits on a series far from 0.
    means = means - means.mean()
    left = np.arange(n, n - n // 2 - 1, -1)
    tail_sum = np.cumsum(means[::-1])[::-1][: left.size]
    tail_squares = np.cumsum(means[::-1] ** 2)[::-1][: left.size]
    score = np.maximum(tail_squares - tail_sum**2 / left, 0.0) / left.astype(np.float64) ** 2
    best = int(np.argmin(score))
    return WarmUp(5 * best, settled=best < n // 2)


def relative_precision(
    sample: npt.ArrayLike, gamma: float, confidence: float = 0.95, minimum: int = 10
) -> Precision:
    """Whether the mean of the replications so far is known within a relative error `gamma`.

    Stops when half-width / |mean| <= gamma / (1 + gamma) (Law, Simulation Modeling and Analysis, 9.4.1: the estimate
    stands in for the true mean), never before `minimum` replications.
    """
    _check_fraction(gamma, "gamma")
    interval = mean_interval(sample, confidence)
    n = np.asarray(sample).size
    target = gamma / (1 + gamma)
    if interval.half_width == 0:
        ratio = 0.0
    elif interval.estimate == 0:
        ratio = math.inf
    else:
        ratio = interval.half_width / abs(interval.estimate)
    reached = n >= minimum and ratio <= target
    needed = n
    if not reached:
        more = n * (ratio / target) ** 2
        needed = max(minimum, math.ceil(more)) if math.isfinite(more) else 2**31
    return Precision(reached, interval, ratio, needed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given (Holm 1979); they control the family-wise error."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


def compare_paired(
    baseline: npt.ArrayLike,
    alternatives: Mapping[str, npt.ArrayLike],
    confidence: float = 0.95,
) -> list[PairedDifference]:
    """Each alternative minus the baseline, replication by replication (row i of all shares its random numbers)."""
    _check_fraction(confidence, "the confidence")
    base = _floats(baseline, 2, "a paired comparison")
    differences: list[tuple[str, Floats]] = []
    for name, sample in alternatives.items():
        values = _floats(sample, 2, "a paired comparison")
        if values.size != base.size:
            raise ValueError(
                f"{name} has {values.size} replications, the baseline {base.size}: they must be the same ones"
            )
        differences.append((name, values - base))
    return _judge(differences, confidence)


def compare_pairs(
    samples: Mapping[str, npt.ArrayLike], confidence: float = 0.95
) -> dict[tuple[str, str], PairedDifference]:
    """Every two of `samples`, the second minus the first, as one family; keys and names in the order given."""
    _check_fraction(confidence, "the confidence")
    names = list(samples)
    values = {name: _floats(samples[name], 2, "a paired comparison") for name in names}
    sizes = {name: v.size for name, v in values.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"replications differ in number: {sizes}; they must be the same ones")
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    judged = _judge([(f"{b} - {a}", values[b] - values[a]) for a, b in pairs], confidence)
    return dict(zip(pairs, judged, strict=True))


def _judge(differences: Sequence[tuple[str, Floats]], confidence: float) -> list[PairedDifference]:
    """The differences of one family: intervals by Bonferroni, p-values by Holm."""
    each = 1 - (1 - confidence) / max(1, len(differences))
    adjusted = holm([_paired_p_value(d) for _, d in differences])
    return [
        PairedDifference(
            name,
            mean_interval(d, each),
            p,
            settled=p <= 1 - confidence,
            replications_needed=_to_settle(d, each),
        )
        for (name, d), p in zip(differences, adjusted, strict=True)
    ]


def _paired_p_value(differences: Floats) -> float:
    mean = float(differences.mean())
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * special.stdtr(differences.size - 1, -abs(mean) / error))


def _to_settle(differences: Floats, confidence: float) -> int:
    """Replications at which a difference of this mean and spread would just exclude 0."""
    mean, spread = abs(float(differences.mean())), float(differences.std(ddof=1))
    if spread == 0:
        return differences.size

    def excludes_zero(n: int) -> bool:
        return _t_quantile(confidence, n) * spread < mean * math.sqrt(n)

    # The half-width falls with n: double until it is small enough, then halve the stretch.
    enough = 2
    while not excludes_zero(enough):
        enough *= 2
        if enough >= 2**31:
            return 2**31
    return bisect_left(
        range(enough), True, lo=enough // 2, key=lambda n: n >= 2 and excludes_zero(n)
    )


def time_weighted_mean(instants_s: npt.ArrayLike, values: npt.ArrayLike, end_s: float) -> float:
    """Mean over time of a step function that takes `values[i]` from `instants_s[i]` on, up to `end_s`."""
    at = _floats(instants_s, 1, "a time-weighted mean")
    steps = _floats(values, 1, "a time-weighted mean")
    if at.size != steps.size:
        raise ValueError(f"{at.size} instants for {steps.size} values")
    spans = np.diff(np.append(at, end_s))
    if (spans < 0).any():
        raise ValueError("the instants must not go backwards, nor beyond the end")
    total = float(spans.sum())
    return float(steps @ spans) / total if total > 0 else float(steps[-1])


def block_weights(blocks: int, resamples: int, generator: np.random.Generator) -> Floats:
    """How often each block occurs in each bootstrap resample: shape (resamples, blocks), rows add up to `blocks`."""
    return generator.multinomial(blocks, np.full(blocks, 1 / blocks), resamples).astype(np.float64)


def block_bootstrap_quantiles(
    sample: npt.ArrayLike, block_of: npt.ArrayLike, weights: Floats, p: Sequence[float]
) -> Floats:
    """Quantiles `p` of each resample of whole blocks: shape (resamples, len(p)), NaN where a resample is empty.

    `block_of[i]` is the block (0..blocks-1) of `sample[i]`: a stretch of the run, long against the memory of its queues
    (Künsch 1989, blocks not overlapping). Handing the same `weights` to two runs of one workload pairs them, so the
    difference of the results is an interval of the difference. Cost: one sort and a (resamples x blocks) product.
    """
    values = _floats(sample, 1, "a block bootstrap")
    block = np.asarray(block_of, dtype=np.int64)
    blocks = weights.shape[1]
    grid = np.unique(values)
    if grid.size > _GRID_POINTS:
        levels = np.linspace(0, 1, _GRID_POINTS)
        grid = np.unique(np.quantile(values, levels, method="inverted_cdf"))
    cell = np.searchsorted(grid, values)
    counts = np.zeros((blocks, grid.size))
    np.add.at(counts, (block, cell), 1.0)
    cumulative = weights @ np.cumsum(counts, axis=1)
    totals = cumulative[:, -1]
    result = np.full((weights.shape[0], len(p)), math.nan)
    for column, level in enumerate(p):
        # The first grid value at or below which a fraction `level` of the resample lies.
        reached = cumulative >= (level * totals)[:, None] - 1e-9
        result[:, column] = np.where(totals > 0, grid[np.argmax(reached, axis=1)], math.nan)
    return result
