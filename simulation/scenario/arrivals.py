"""The instants of open arrivals: `instants(spec, seed, horizon_s)` -> seconds in [0, horizon), ascending.

Every process is a transformation of one column of uniforms, so a longer horizon only adds arrivals, and changing a rate
stretches the same luck (common random numbers). Non-homogeneous processes change time: unit-rate arrivals s are mapped
through the inverse of the cumulative rate (Çinlar, "Introduction to Stochastic Processes", 1975).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from simulation.scenario.arrival_spec import (
    BatchArrivals,
    ConstantArrivals,
    DiurnalArrivals,
    GammaArrivals,
    MmppArrivals,
    OpenArrivals,
    PiecewiseArrivals,
    PoissonArrivals,
    RateSegment,
    RenewalArrivals,
)
from simulation.scenario.distributions import AnyDistribution, Exponential, Floats, Gamma
from simulation.scenario.errors import WorkloadError
from simulation.scenario.random_streams import generator

__all__ = ["MAX_REQUESTS", "instants"]

MAX_REQUESTS = 50_000_000
_UNIT_EXPONENTIAL = Exponential(mean=1)


def instants(spec: OpenArrivals, seed: int, horizon_s: float) -> Floats:
    """Arrival instants before the horizon; raises WorkloadError beyond `MAX_REQUESTS`."""
    match spec:
        case ConstantArrivals(rate_per_s=rate):
            _check_count(rate * horizon_s)
            times = np.arange(1, math.floor(rate * horizon_s) + 1) / rate
        case PoissonArrivals(rate_per_s=rate):
            times = _unit_poisson(seed, rate * horizon_s) / rate
        case GammaArrivals(rate_per_s=rate, cv=cv):
            times = _renewal(Gamma(mean=1 / rate, cv=cv), seed, horizon_s)
        case RenewalArrivals(gap_s=gap):
            times = _renewal(gap, seed, horizon_s)
        case BatchArrivals():
            times = _batches(spec, seed, horizon_s)
        case PiecewiseArrivals():
            times = _piecewise(spec, seed, horizon_s)
        case DiurnalArrivals():
            times = _diurnal(spec, seed, horizon_s)
        case MmppArrivals():
            times = _mmpp(spec, seed, horizon_s)
    return times[times < horizon_s]


def _check_count(expected: float) -> None:
    if expected > MAX_REQUESTS:
        raise WorkloadError(
            f"workload.arrivals: about {expected:.3g} requests; at most {MAX_REQUESTS:,} compile: "
            "lower the rate or the horizon"
        )


def _partial_sums(gap: AnyDistribution, seed: int, purpose: str, until: float) -> Floats:
    """Sums of independent gaps up to the first that passes `until`."""
    mean = gap.mean()
    spread = math.sqrt(gap.variance()) if math.isfinite(gap.variance()) else mean
    expected = until / mean
    _check_count(expected)
    n = int(expected + 8 * (1 + spread / mean) * math.sqrt(expected + 1)) + 16
    while True:
        sums = np.cumsum(gap.sample(generator(seed, purpose), n))
        if sums[-1] > until:
            return sums
        _check_count(n)
        n *= 2


def _unit_poisson(seed: int, until: float) -> Floats:
    """A Poisson process of rate 1 on [0, until]."""
    sums = _partial_sums(_UNIT_EXPONENTIAL, seed, "arrivals", until)
    return sums[: np.searchsorted(sums, until, side="right")]


def _renewal(gap: AnyDistribution, seed: int, horizon_s: float) -> Floats:
    return _partial_sums(gap, seed, "arrivals", horizon_s)


def _batches(spec: BatchArrivals, seed: int, horizon_s: float) -> Floats:
    _check_count(spec.rate_per_s * horizon_s)
    batch_rate = spec.rate_per_s / spec.batch_size.mean()
    starts = _unit_poisson(seed, batch_rate * horizon_s) / batch_rate
    sizes = spec.batch_size.sample(generator(seed, "batch size"), len(starts))
    return np.repeat(starts, np.maximum(np.rint(sizes), 1).astype(np.int64))


def _reached_at(
    segments: list[RateSegment], starts: Floats, masses: Floats, mass: Floats
) -> Floats:
    """The time at which the cumulative rate reaches each element of `mass` (`masses` at the segments' `starts`)."""
    index = np.clip(np.searchsorted(masses, mass, side="left") - 1, 0, len(segments) - 1)
    first = np.array([s.rate_per_s for s in segments])[index]
    last = np.array(
        [s.rate_per_s if s.to_rate_per_s is None else s.to_rate_per_s for s in segments]
    )[index]
    slope = (last - first) / np.array([s.duration_s for s in segments])[index]
    rest = mass - masses[index]
    # Root of slope/2 x^2 + first x - rest = 0 in the form that does not cancel for a small slope.
    root = first + np.sqrt(np.maximum(first * first + 2 * slope * rest, 0))
    inside = np.divide(2 * rest, root, out=np.zeros_like(rest), where=root > 0)
    return np.asarray(starts[index] + inside, dtype=np.float64)


def _piecewise(spec: PiecewiseArrivals, seed: int, horizon_s: float) -> Floats:
    segments = _segments_until(spec, horizon_s)
    durations = np.array([s.duration_s for s in segments])
    ends = np.array(
        [s.rate_per_s if s.to_rate_per_s is None else s.to_rate_per_s for s in segments]
    )
    means = (np.array([s.rate_per_s for s in segments]) + ends) / 2
    starts = np.concatenate(([0.0], np.cumsum(durations)))
    masses = np.concatenate(([0.0], np.cumsum(durations * means)))
    total = float(masses[-1])
    _check_count(total)
    if total == 0:
        return np.empty(0)
    units = np.arange(1.0, math.floor(total) + 1) if spec.regular else _unit_poisson(seed, total)
    return _reached_at(segments, starts, masses, units)


def _segments_until(spec: PiecewiseArrivals, horizon_s: float) -> list[RateSegment]:
    """The segments, repeated or with the last rate held, so that they cover the horizon."""
    segments = list(spec.segments)
    cycle_s = math.fsum(s.duration_s for s in segments)
    if cycle_s >= horizon_s:
        return segments
    if spec.repeat:
        return segments * math.ceil(horizon_s / cycle_s)
    last = segments[-1]
    held = last.rate_per_s if last.to_rate_per_s is None else last.to_rate_per_s
    return [*segments, RateSegment(duration_s=horizon_s - cycle_s, rate_per_s=held)]


def _diurnal(spec: DiurnalArrivals, seed: int, horizon_s: float) -> Floats:
    omega = 2 * math.pi / spec.period_s
    swing = spec.amplitude / omega
    phase = omega * spec.peak_at_s

    def cumulative(t: Floats) -> Floats:
        wave = np.sin(omega * t - phase) + math.sin(phase)
        return np.asarray(spec.rate_per_s * (t + swing * wave), dtype=np.float64)

    total = float(cumulative(np.array([horizon_s]))[0])
    return _bisect(cumulative, _unit_poisson(seed, total), horizon_s)


def _bisect(increasing: Callable[[Floats], Floats], targets: Floats, high: float) -> Floats:
    """x in [0, high] with increasing(x) = target, to the last bit that matters (60 halvings)."""
    low = np.zeros(len(targets))
    top = np.full(len(targets), high)
    for _ in range(60):
        middle = (low + top) / 2
        below = increasing(middle) < targets
        low = np.where(below, middle, low)
        top = np.where(below, top, middle)
    return np.asarray((low + top) / 2, dtype=np.float64)


def _mmpp(spec: MmppArrivals, seed: int, horizon_s: float) -> Floats:
    """Draw the path of the chain, then arrivals at its piecewise constant rate."""
    draws = generator(seed, "arrival states")
    segments: list[RateSegment] = []
    state, t_s = 0, 0.0
    while t_s < horizon_s:
        if len(segments) > MAX_REQUESTS // 10:
            raise WorkloadError(
                "workload.arrivals.states: too many changes of state; raise mean_s or lower the horizon"
            )
        here = spec.states[state]
        # A segment must last; a uniform of exactly 0 would give one that does not.
        stay_s = max(-here.mean_s * math.log1p(-draws.random()), 1e-9)
        segments.append(RateSegment(duration_s=stay_s, rate_per_s=here.rate_per_s))
        t_s += stay_s
        luck = draws.random()
        if spec.transitions is None:
            state = (state + 1) % len(spec.states)
        else:
            cumulative = np.cumsum(spec.transitions[state])
            state = int(np.searchsorted(cumulative / cumulative[-1], luck, side="right"))
    return _piecewise(PiecewiseArrivals.model_construct(segments=tuple(segments)), seed, horizon_s)
