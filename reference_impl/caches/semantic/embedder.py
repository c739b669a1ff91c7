"""The port to whatever turns text into vectors: a model on a thread, a service, a model of one in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Embedder", "EmbedderUnavailable", "Vector"]

# Shape (dimension,), float32, of length 1: the inner product of two is the cosine of their angle.
Vector = npt.NDArray[np.float32]


class EmbedderUnavailable(Exception):
    """The embedder cannot work: its package is missing, or its model is not what it should be."""


class Embedder(Protocol):
    """Texts to unit vectors whose inner product tells how alike the texts are."""

    @property
    def model_id(self) -> str:
        """Names the model and its version: vectors of different models are not comparable."""
        ...

    @property
    def dimension(self) -> int: ...

    async def embed(self, texts: Sequence[str]) -> Sequence[Vector | None]:
        """One vector a text, in order; None for a text longer than the model reads, whose vector would ignore its end.

        Never blocks the event loop. Raises EmbedderUnavailable.
        """
        ...
