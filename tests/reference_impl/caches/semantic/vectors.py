"""An embedder whose vectors a test writes down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from reference_impl.caches.semantic.embedder import EmbedderUnavailable, Vector


class WrittenEmbedder:
    """Angles in degrees by text; the cosine of their difference is the similarity. Unknown texts have no vector."""

    def __init__(
        self, degrees: Mapping[str, float], *, model_id: str = "written", dimension: int = 2
    ) -> None:
        self.model_id = model_id
        self.dimension = dimension
        self.degrees = degrees
        self.batches: list[list[str]] = []
        self.available = True

    async def embed(self, texts: Sequence[str]) -> Sequence[Vector | None]:
        if not self.available:
            raise EmbedderUnavailable("no model here")
        self.batches.append(list(texts))
        return [self._vector(text) for text in texts]

    def _vector(self, text: str) -> Vector | None:
        if text not in self.degrees:
            return None
        angle = math.radians(self.degrees[text])
        vector = np.zeros(self.dimension, np.float32)
        vector[0], vector[1] = math.cos(angle), math.sin(angle)
        return vector
