"""Distributions of times, sizes and counts, as a scenario file says them: `{kind: lognormal, median: 1.2, sigma: 0.45}`.

Every draw is by inversion: one uniform in, one value out (`quantile`). So a draw is monotone in its uniform, two scenarios
that differ in a parameter stay coupled, and a scalar draw by key and a vectorised column agree. A plain number stands for
a constant.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from simulation.scenario.distribution_base import AnyDistribution, Floats
from simulation.scenario.empirical import Empirical, Quantiles
from simulation.scenario.parametric import (
    Constant,
    Exponential,
    Gamma,
    Hyperexponential,
    LogNormal,
    Pareto,
    Uniform,
    Weibull,
)

__all__ = [
    "AnyDistribution",
    "Constant",
    "Distribution",
    "Empirical",
    "Exponential",
    "Floats",
    "Gamma",
    "Hyperexponential",
    "LogNormal",
    "Pareto",
    "Quantiles",
    "Uniform",
    "Weibull",
]


def _number_is_constant(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    if isinstance(value, str):  # YAML 1.1 reads `1e-3` as text
        try:
            return {"kind": "constant", "value": float(value)}
        except ValueError:
            return value
    return value


Distribution = Annotated[
    Annotated[
        Constant
        | Exponential
        | Uniform
        | LogNormal
        | Gamma
        | Hyperexponential
        | Weibull
        | Pareto
        | Empirical
        | Quantiles,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_number_is_constant),
]
