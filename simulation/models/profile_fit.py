"""Fitting an endpoint's profile to measured calls: (input tokens, output tokens, time to first token, duration).

Time to first token is the prefill of the prompt plus a wait that does not depend on it. The prefill's slope is the robust
Theil-Sen estimate (Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 1968). What is left, and the
rate of output tokens, are each fitted by the families below (maximum likelihood, scipy.stats) and judged by the
Kolmogorov-Smirnov distance; where no family comes close, the measured distribution itself is kept.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import stats

from simulation.scenario.distributions import (
    AnyDistribution,
    Constant,
    Empirical,
    Exponential,
    Gamma,
    LogNormal,
    Weibull,
)
from simulation.scenario.endpoint import EndpointProfile, ProviderService

__all__ = ["Fit", "FitError", "Measurement", "ProfileFit", "fit_profile", "read_measurements"]

Floats = npt.NDArray[np.float64]

# Beyond this distance between the distribution functions a family is not used: 5 points of probability.
_MAX_DISTANCE: Final = 0.05
_MIN_ROWS: Final = 20
# An empirical distribution keeps this many evenly spaced quantiles.
_KEPT_VALUES: Final = 500
_THEIL_SEN_ROWS: Final = 2_000

# A spread below this share of the mean is rounding.
_SAME: Final = 1e-6

_COLUMNS: Final = ("input_tokens", "output_tokens", "ttft_s", "duration_s")


class FitError(ValueError):
    """The measurements cannot be used: one line that says where and why."""


class Measurement(msgspec.Struct, frozen=True):
    """Columns of equal length: tokens and seconds of one call a row."""

    input_tokens: Floats
    output_tokens: Floats
    ttft_s: Floats
    duration_s: Floats


class Fit(msgspec.Struct, frozen=True):
    """How one quantity was fitted.

    `distance` is the Kolmogorov-Smirnov distance of the family chosen (of the best one, where none was), `distances` those
    of all; `p50_error` and `p95_error` are the relative errors of the median and the 95th percentile.
    """

    quantity: str
    family: str
    distance: float
    distances: dict[str, float]
    p50_error: float
    p95_error: float


class ProfileFit(msgspec.Struct, frozen=True):
    """A fitted profile, and how well it fits."""

    profile: EndpointProfile
    rows: int
    prefill_s_per_token: float
    fits: tuple[Fit, ...]

    def summary(self) -> str:
        """A few lines for people."""
        lines = [f"{self.rows} rows; prefill {self.prefill_s_per_token * 1e3:.4f} ms per token"]
        for fit in self.fits:
            kept = (
                " (no family fits: measured distribution kept)" if fit.family == "empirical" else ""
            )
            lines.append(
                f"{fit.quantity}: {fit.family}{kept}; KS distance {fit.distance:.3f}; "
                f"p50 {fit.p50_error:+.1%}, p95 {fit.p95_error:+.1%} from the measured"
            )
        return "\n".join(lines)


def fit_profile(path: str | Path, *, name: str = "") -> ProfileFit:
    """Fit a provider profile to a CSV or JSON Lines file with the columns of `Measurement`.

    Raises FitError for a file that cannot be read, lacks a column, or has fewer than 20 usable rows.
    """
    path = Path(path)
    measured = read_measurements(path)
    slope = _prefill_slope(measured.input_tokens, measured.ttft_s)
    waits = np.maximum(measured.ttft_s - slope * measured.input_tokens, 1e-6)
    generating = measured.output_tokens > 1
    spans = np.maximum(measured.duration_s - measured.ttft_s, 1e-6)
    rates = (measured.output_tokens[generating] - 1) / spans[generating]
    if rates.size < _MIN_ROWS:
        raise FitError(f"{path}: fewer than {_MIN_ROWS} rows with more than one output token")
    ttft, ttft_fit = _fit("time to first token", waits)
    rate, rate_fit = _fit("output tokens per second", rates)
    lengths, lengths_fit = _fit("output tokens", np.maximum(measured.output_tokens, 1.0))
    service = ProviderService.model_validate(
        {
            "ttft_s": ttft.model_dump(),
            "tokens_per_s": rate.model_dump(),
            "prefill_s_per_token": slope,
            "cached_prefill_s_per_token": slope / 10,
        }
    )
    profile = EndpointProfile.model_validate(
        {
            "name": name or path.stem,
            "synthetic": False,
            "source": f"fitted to {measured.ttft_s.size} measured calls of {path.name}",
            "service": service.model_dump(),
            "output_tokens": lengths.model_dump(),
        }
    )
    fits = (ttft_fit, rate_fit, lengths_fit)
    return ProfileFit(profile, int(measured.ttft_s.size), slope, fits)


def read_measurements(path: Path) -> Measurement:
    """Read the columns; rows that are not finite, or whose duration is shorter than their first token, are errors."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        wrong = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise FitError(f"{path}: {wrong}; expected CSV or JSON Lines") from error
    rows: Sequence[dict[str, Any]]
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(text.splitlines()))
    except (ValueError, csv.Error) as error:
        raise FitError(f"{path}: cannot be read: {error}") from error
    if len(rows) < _MIN_ROWS:
        raise FitError(f"{path}: {len(rows)} rows; at least {_MIN_ROWS} are needed")
    columns: dict[str, Floats] = {}
    for name in _COLUMNS:
        values = []
        for i, row in enumerate(rows, start=1):
            value = row.get(name) if isinstance(row, dict) else None
            try:
                number = float(value)  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                raise FitError(
                    f"{path}: row {i}: {name}: expected a number, found {value!r}"
                ) from error
            if not (np.isfinite(number) and number >= 0):
                raise FitError(f"{path}: row {i}: {name}: {number} is not a finite number >= 0")
            values.append(number)
        columns[name] = np.array(values)
    short = np.flatnonzero(columns["duration_s"] < columns["ttft_s"])
    if short.size:
        raise FitError(f"{path}: row {short[0] + 1}: duration_s is less than ttft_s")
    return Measurement(**columns)


def _prefill_slope(input_tokens: Floats, ttft_s: Floats) -> float:
    """Seconds per input token; 0 where the prompts do not differ, or longer ones are not slower."""
    if np.ptp(input_tokens) == 0:
        return 0.0
    step = max(1, input_tokens.size // _THEIL_SEN_ROWS)  # the estimate looks at all pairs
    slope = stats.theilslopes(ttft_s[::step], input_tokens[::step]).slope
    return max(0.0, float(slope))


def _lognormal(values: Floats) -> AnyDistribution:
    sigma, _, median = stats.lognorm.fit(values, floc=0)
    return LogNormal(median=float(median), sigma=float(sigma))


def _gamma(values: Floats) -> AnyDistribution:
    shape, _, scale = stats.gamma.fit(values, floc=0)
    return Gamma.model_validate({"mean": float(shape * scale), "cv": float(shape**-0.5)})


def _weibull(values: Floats) -> AnyDistribution:
    shape, _, scale = stats.weibull_min.fit(values, floc=0)
    return Weibull(scale=float(scale), shape=float(shape))


def _exponential(values: Floats) -> AnyDistribution:
    return Exponential.model_validate({"mean": float(values.mean())})


_FAMILIES: Final[dict[str, Callable[[Floats], AnyDistribution]]] = {
    "lognormal": _lognormal,
    "gamma": _gamma,
    "weibull": _weibull,
    "exponential": _exponential,
}


def _distance(values: Floats, candidate: AnyDistribution) -> float:
    """Kolmogorov-Smirnov distance, read off the inverse distribution function on a fine grid."""
    grid = (np.arange(4_000) + 0.5) / 4_000
    points = candidate.quantiles(grid)
    ordered = np.sort(values)
    below = np.searchsorted(ordered, points, side="left") / values.size
    upto = np.searchsorted(ordered, points, side="right") / values.size
    return float(np.max(np.maximum(grid - upto, below - grid)))


def _fit(quantity: str, values: Floats) -> tuple[AnyDistribution, Fit]:
    if float(values.std()) <= _SAME * float(
        values.mean()
    ):  # maximum likelihood has no answer to this
        constant = Constant(value=float(np.median(values)))
        return constant, Fit(quantity, "constant", 0.0, {}, 0.0, 0.0)
    candidates = {}
    for family, fit in _FAMILIES.items():
        try:
            candidates[family] = fit(values)
        except (ValueError, stats.FitError):
            continue  # scipy found no estimate, or one that the distribution refuses
    distances = {family: _distance(values, found) for family, found in candidates.items()}
    best = min(distances, key=lambda family: distances[family])
    chosen = candidates[best]
    family = best
    if distances[best] > _MAX_DISTANCE:
        grid = (np.arange(_KEPT_VALUES) + 0.5) / _KEPT_VALUES
        kept = np.quantile(values, grid) if values.size > _KEPT_VALUES else np.sort(values)
        chosen, family = Empirical(values=tuple(kept.tolist())), "empirical"

    def error(u: float) -> float:
        return chosen.quantile(u) / float(np.quantile(values, u)) - 1

    return chosen, Fit(quantity, family, distances[best], distances, error(0.5), error(0.95))
