"""What every distribution can do: its mean and variance, and draws by inversion."""

from __future__ import annotations

from typing import Annotated, Final

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AnyDistribution", "Floats", "NonNegative", "Positive"]

Floats = npt.NDArray[np.float64]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

_SMALLEST_UNIFORM: Final = 2.0**-54


class AnyDistribution(BaseModel):
    """A non-negative distribution: `mean`, `variance`, and draws by inversion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def mean(self) -> float:
        """Expected value."""
        raise NotImplementedError

    def variance(self) -> float:
        """Variance; may be infinite."""
        raise NotImplementedError

    def quantile(self, u: float) -> float:
        """The value that a fraction `u` (0 < u < 1) of draws does not exceed."""
        raise NotImplementedError

    def quantiles(self, u: Floats) -> Floats:
        """`quantile` of every element of `u`, same shape."""
        raise NotImplementedError

    def sample(self, generator: np.random.Generator, n: int) -> Floats:
        """`n` independent draws, one uniform of `generator` each."""
        return self.quantiles(np.maximum(generator.random(n), _SMALLEST_UNIFORM))
