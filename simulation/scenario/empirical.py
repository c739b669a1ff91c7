"""Distributions from data: measured values, or published percentiles."""

from __future__ import annotations

import math
from bisect import bisect_left
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from simulation.scenario.distribution_base import AnyDistribution, Floats, NonNegative

__all__ = ["Empirical", "Quantiles"]


class Empirical(AnyDistribution):
    """One of the measured `values`, each as likely as its weight (equal without `weights`)."""

    kind: Literal["empirical"] = "empirical"
    values: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    weights: tuple[NonNegative, ...] | None = None

    @model_validator(mode="after")
    def _weights_fit(self) -> Empirical:
        if self.weights is not None:
            if len(self.weights) != len(self.values):
                raise ValueError(f"{len(self.values)} values but {len(self.weights)} weights")
            if math.fsum(self.weights) <= 0:
                raise ValueError("weights add up to 0")
        return self

    @cached_property
    def _steps(self) -> tuple[list[float], list[float]]:
        """Sorted values and the distribution function at each."""
        weights = self.weights or (1.0,) * len(self.values)
        pairs = sorted((v, w) for v, w in zip(self.values, weights, strict=True) if w > 0)
        total = math.fsum(w for _, w in pairs)
        cumulative = [c / total for c in accumulate(w for _, w in pairs)]
        cumulative[-1] = 1.0
        return [v for v, _ in pairs], cumulative

    def mean(self) -> float:
        return self._moment(1)

    def _moment(self, k: int) -> float:
        weights = self.weights or (1.0,) * len(self.values)
        total = math.fsum(weights)
        return math.fsum(w * v**k for v, w in zip(self.values, weights, strict=True)) / total

    def variance(self) -> float:
        return max(0.0, self._moment(2) - self._moment(1) ** 2)

    def quantile(self, u: float) -> float:
        values, cumulative = self._steps
        return values[bisect_left(cumulative, u)]

    def quantiles(self, u: Floats) -> Floats:
        values, cumulative = self._steps
        return np.array(values)[np.searchsorted(cumulative, u, side="left")]


class Quantiles(AnyDistribution):
    """Published percentiles, straight lines between them: `points: [[0, 0.4], [0.5, 1.2], [0.95, 1.9], [1, 4]]`.

    Probabilities rise from 0 to 1, values do not fall.
    """

    kind: Literal["quantiles"] = "quantiles"
    points: Annotated[
        tuple[tuple[Annotated[float, Field(ge=0, le=1)], NonNegative], ...], Field(min_length=2)
    ]

    @model_validator(mode="after")
    def _rising(self) -> Quantiles:
        probabilities = [p for p, _ in self.points]
        values = [v for _, v in self.points]
        if probabilities[0] != 0 or probabilities[-1] != 1:
            raise ValueError(
                f"probabilities run from {probabilities[0]:g} to {probabilities[-1]:g}; "
                "give the smallest value at 0 and the largest at 1"
            )
        if any(a >= b for a, b in pairwise(probabilities)):
            raise ValueError("probabilities do not rise from point to point")
        if any(a > b for a, b in pairwise(values)):
            raise ValueError("values fall from one point to the next")
        return self

    @cached_property
    def _columns(self) -> tuple[list[float], list[float]]:
        return [p for p, _ in self.points], [v for _, v in self.points]

    def _moment(self, k: int) -> float:
        # Integral of a linear piece's k-th power over its probability: mean of v^k between two ends.
        total = 0.0
        for (p, a), (q, b) in pairwise(self.points):
            power = (a + b) / 2 if k == 1 else (a * a + a * b + b * b) / 3
            total += (q - p) * power
        return total

    def mean(self) -> float:
        return self._moment(1)

    def variance(self) -> float:
        return max(0.0, self._moment(2) - self._moment(1) ** 2)

    def quantile(self, u: float) -> float:
        probabilities, values = self._columns
        i = bisect_left(probabilities, u, lo=1)
        p, q = probabilities[i - 1], probabilities[i]
        return values[i - 1] + (values[i] - values[i - 1]) * (u - p) / (q - p)

    def quantiles(self, u: Floats) -> Floats:
        return np.interp(u, *self._columns)
