"""Distributions with a formula. Source of all of them: Johnson, Kotz, Balakrishnan, "Continuous Univariate Distributions",
2nd ed., 1994; others are named where they are used.
"""

from __future__ import annotations

import math
from functools import cached_property
from statistics import NormalDist
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import ConfigDict, Field, model_validator

from simulation.scenario.distribution_base import AnyDistribution, Floats, NonNegative, Positive

__all__ = [
    "Constant",
    "Exponential",
    "Gamma",
    "Hyperexponential",
    "LogNormal",
    "Pareto",
    "Uniform",
    "Weibull",
]

_STANDARD_NORMAL: Final = NormalDist()
_Z95: Final = _STANDARD_NORMAL.inv_cdf(0.95)


class Constant(AnyDistribution):
    """Always `value`."""

    kind: Literal["constant"] = "constant"
    value: NonNegative

    def mean(self) -> float:
        return self.value

    def variance(self) -> float:
        return 0.0

    def quantile(self, u: float) -> float:  # noqa: ARG002 - a constant ignores luck
        return self.value

    def quantiles(self, u: Floats) -> Floats:
        return np.full(np.shape(u), self.value)


class Exponential(AnyDistribution):
    """Memoryless with mean `mean_value` (written `mean`)."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)
    kind: Literal["exponential"] = "exponential"
    mean_value: Positive = Field(alias="mean")

    def mean(self) -> float:
        return self.mean_value

    def variance(self) -> float:
        return self.mean_value**2

    def quantile(self, u: float) -> float:
        return -self.mean_value * math.log1p(-u)

    def quantiles(self, u: Floats) -> Floats:
        return -self.mean_value * np.log1p(-u)


class Uniform(AnyDistribution):
    """Uniform between `low` and `high`."""

    kind: Literal["uniform"] = "uniform"
    low: NonNegative
    high: NonNegative

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is greater than high ({self.high})")
        return self

    def mean(self) -> float:
        return (self.low + self.high) / 2

    def variance(self) -> float:
        return (self.high - self.low) ** 2 / 12

    def quantile(self, u: float) -> float:
        return self.low + (self.high - self.low) * u

    def quantiles(self, u: Floats) -> Floats:
        return self.low + (self.high - self.low) * u


class LogNormal(AnyDistribution):
    """exp of a normal: `median` and `sigma` (standard deviation of the logarithm).

    Also accepted: `median` with `p95` (sigma = ln(p95/median)/1.645), `mean` with `cv` (standard deviation / mean), `mean`
    with `sigma`.
    """

    kind: Literal["lognormal"] = "lognormal"
    median: Positive
    sigma: NonNegative

    @model_validator(mode="before")
    @classmethod
    def _other_spellings(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        given = {k: v for k, v in data.items() if k != "kind"}
        numbers = {k: float(v) for k, v in given.items() if isinstance(v, (int, float))}
        if numbers.keys() != given.keys() or any(v <= 0 for v in numbers.values()):
            return data  # the fields' own checks say what is wrong
        if given.keys() == {"median", "p95"}:
            if numbers["p95"] < numbers["median"]:
                raise ValueError(
                    f"p95 ({numbers['p95']}) is less than the median ({numbers['median']})"
                )
            sigma = math.log(numbers["p95"] / numbers["median"]) / _Z95
            return {"kind": "lognormal", "median": numbers["median"], "sigma": sigma}
        if given.keys() == {"mean", "cv"}:
            sigma = math.sqrt(math.log1p(numbers["cv"] ** 2))
        elif given.keys() == {"mean", "sigma"}:
            sigma = numbers["sigma"]
        else:
            return data
        median = numbers["mean"] * math.exp(-(sigma**2) / 2)
        return {"kind": "lognormal", "median": median, "sigma": sigma}

    def mean(self) -> float:
        return self.median * math.exp(self.sigma**2 / 2)

    def variance(self) -> float:
        return self.mean() ** 2 * math.expm1(self.sigma**2)

    def quantile(self, u: float) -> float:
        return self.median * math.exp(self.sigma * _STANDARD_NORMAL.inv_cdf(u))

    def quantiles(self, u: Floats) -> Floats:
        from scipy.special import ndtri  # lazily: the mock server's start should not pay for it

        return np.asarray(self.median * np.exp(self.sigma * ndtri(u)), dtype=np.float64)


class Gamma(AnyDistribution):
    """Mean and coefficient of variation: cv = 1/sqrt(k) is Erlang-k, cv > 1 is bursty."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)
    kind: Literal["gamma"] = "gamma"
    mean_value: Positive = Field(alias="mean")
    cv: Positive

    def mean(self) -> float:
        return self.mean_value

    def variance(self) -> float:
        return (self.mean_value * self.cv) ** 2

    def quantile(self, u: float) -> float:
        from scipy.special import gammaincinv

        return float(self.mean_value * self.cv**2 * gammaincinv(self.cv**-2, u))

    def quantiles(self, u: Floats) -> Floats:
        from scipy.special import gammaincinv

        return np.asarray(
            self.mean_value * self.cv**2 * gammaincinv(self.cv**-2, u), dtype=np.float64
        )


class Hyperexponential(AnyDistribution):
    """Exponential with mean `means[i]` with probability `probabilities[i]`.

    Also accepted: `mean` with `cv` >= 1, the two-branch fit with balanced means (Whitt, "Approximating a point process by
    a renewal process", 1982).
    """

    kind: Literal["hyperexponential"] = "hyperexponential"
    probabilities: Annotated[tuple[Positive, ...], Field(min_length=1)]
    means: Annotated[tuple[Positive, ...], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _mean_and_cv(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.keys() - {"kind"} != {"mean", "cv"}:
            return data
        mean, cv = data["mean"], data["cv"]
        if not isinstance(mean, (int, float)) or not isinstance(cv, (int, float)):
            return data
        if mean <= 0 or cv < 1:
            raise ValueError(f"needs mean > 0 and cv >= 1, found mean {mean}, cv {cv}")
        p = (1 + math.sqrt((cv**2 - 1) / (cv**2 + 1))) / 2
        return {
            "kind": "hyperexponential",
            "probabilities": (p, 1 - p),
            "means": (mean / (2 * p), mean / (2 * (1 - p))),
        }

    @model_validator(mode="after")
    def _shapes_agree(self) -> Hyperexponential:
        if len(self.probabilities) != len(self.means):
            raise ValueError(f"{len(self.probabilities)} probabilities but {len(self.means)} means")
        if not math.isclose(math.fsum(self.probabilities), 1, rel_tol=1e-9):
            raise ValueError(f"probabilities add up to {math.fsum(self.probabilities):g}, not 1")
        return self

    def mean(self) -> float:
        return math.fsum(p * m for p, m in zip(self.probabilities, self.means, strict=True))

    def variance(self) -> float:
        second = math.fsum(
            2 * p * m * m for p, m in zip(self.probabilities, self.means, strict=True)
        )
        return second - self.mean() ** 2

    @cached_property
    def _tolerance(self) -> float:
        """What rounding of the logarithm is worth in x, at most: no step below it means anything."""
        return 2.0**-51 * max(self.means)

    def quantile(self, u: float) -> float:
        # ln P(X > x) is convex and falls, so Newton's iteration from the left rises to the root and never passes it.
        target = math.log1p(-u)
        x = 0.0
        for _ in range(200):
            weights = [
                p * math.exp(-x / m) for p, m in zip(self.probabilities, self.means, strict=True)
            ]
            survival = math.fsum(weights)
            slope = math.fsum(w / m for w, m in zip(weights, self.means, strict=True)) / survival
            step = (math.log(survival) - target) / slope
            x += step
            if step <= self._tolerance + 1e-13 * x:
                break
        return x

    def quantiles(self, u: Floats) -> Floats:
        p = np.array(self.probabilities)[:, None]
        rate = 1 / np.array(self.means)[:, None]
        flat = np.ravel(u)
        target = np.log1p(-flat)
        x = np.zeros(flat.shape)
        for _ in range(200):
            weights = p * np.exp(-rate * x)
            survival = weights.sum(axis=0)
            step = (np.log(survival) - target) * survival / (rate * weights).sum(axis=0)
            x += step
            if np.all(step <= self._tolerance + 1e-13 * x):
                break
        return x.reshape(np.shape(u))


class Weibull(AnyDistribution):
    """`scale` and `shape`; shape < 1 has a long tail. Also accepted: `mean` with `shape`."""

    kind: Literal["weibull"] = "weibull"
    scale: Positive
    shape: Annotated[float, Field(gt=0.05, le=100)]

    @model_validator(mode="before")
    @classmethod
    def _mean_and_shape(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.keys() - {"kind"} != {"mean", "shape"}:
            return data
        mean, shape = data["mean"], data["shape"]
        if not isinstance(mean, (int, float)) or not isinstance(shape, (int, float)) or shape <= 0:
            return data
        scale = mean / math.gamma(1 + 1 / shape)
        return {"kind": "weibull", "scale": scale, "shape": shape}

    def mean(self) -> float:
        return self.scale * math.gamma(1 + 1 / self.shape)

    def variance(self) -> float:
        return self.scale**2 * math.gamma(1 + 2 / self.shape) - self.mean() ** 2

    def quantile(self, u: float) -> float:
        return float(self.scale * (-math.log1p(-u)) ** (1 / self.shape))

    def quantiles(self, u: Floats) -> Floats:
        return np.asarray(self.scale * (-np.log1p(-u)) ** (1 / self.shape), dtype=np.float64)


class Pareto(AnyDistribution):
    """Power tail: P(X > x) = (minimum/x)^alpha, cut off at `maximum` if one is set (the truncated distribution).

    Without a maximum, alpha <= 1 has no mean and is refused.
    """

    kind: Literal["pareto"] = "pareto"
    minimum: Positive
    alpha: Positive
    maximum: Positive | None = None

    @model_validator(mode="after")
    def _has_a_mean(self) -> Pareto:
        if self.maximum is None and self.alpha <= 1:
            raise ValueError(
                f"pareto with alpha {self.alpha:g} has no mean: set alpha > 1, or a maximum"
            )
        if self.maximum is not None and self.maximum <= self.minimum:
            raise ValueError(
                f"maximum ({self.maximum:g}) is not greater than minimum ({self.minimum:g})"
            )
        return self

    @cached_property
    def _kept(self) -> float:
        """Probability that the untruncated variable stays below the maximum."""
        if self.maximum is None:
            return 1.0
        return float(1 - (self.minimum / self.maximum) ** self.alpha)

    def _moment(self, k: int) -> float:
        gap = self.alpha - k
        if self.maximum is None:
            return math.inf if gap <= 0 else float(self.alpha * self.minimum**k / gap)
        scale = self.alpha * self.minimum**self.alpha / self._kept
        if math.isclose(gap, 0, abs_tol=1e-12):
            return float(scale * math.log(self.maximum / self.minimum))
        return float(scale * (self.minimum**-gap - self.maximum**-gap) / gap)

    def mean(self) -> float:
        return self._moment(1)

    def variance(self) -> float:
        return self._moment(2) - self._moment(1) ** 2

    def quantile(self, u: float) -> float:
        return float(self.minimum * (1 - u * self._kept) ** (-1 / self.alpha))

    def quantiles(self, u: Floats) -> Floats:
        return np.asarray(
            self.minimum * (1 - u * self._kept) ** (-1 / self.alpha), dtype=np.float64
        )
