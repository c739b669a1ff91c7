"""A virtual embedder: no text, but the groups of prompts that mean the same, and the measured errors of the real thing.

Prompts of one group lie near its centre as often as real paraphrases are found, and near another's as often as real near
misses are mistaken, so a semantic cache over it has the recall and the false-hit rate that `evaluate` measured. The gate
is part of that measurement: hand `accept_all` to the cache. Its cost is the `embed` step of the compute port.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from reference_impl.caches.semantic.embedder import Vector
from reference_impl.compute import Compute
from simulation.scenario.random_streams import generator, uniforms

__all__ = ["VirtualEmbedder", "accept_all"]

_LUCK = "semantic cache"


def accept_all(first: str, second: str) -> str:  # noqa: ARG001 - a gate's signature
    """The gate that finds no difference: its effect is in the measured rates already."""
    return ""


class VirtualEmbedder:
    """Implements `Embedder`.

    Args:
        group_of: the number of the group of prompts that mean the same, and a number of the prompt itself.
        groups: how many groups there are; a false hit lands in another of them.
        recall: share of pairs of one group that are to be found alike.
        false_hit_rate: share of prompts that are to be taken for one of another group.
        max_characters: longer texts have no vector, as with a model that would not read their end.
    """

    model_id = "virtual"

    def __init__(
        self,
        group_of: Callable[[str], tuple[int, int]],
        groups: int,
        *,
        recall: float,
        false_hit_rate: float,
        seed: int,
        compute: Compute,
        dimension: int = 64,
        max_characters: float = math.inf,
    ) -> None:
        if not (0 <= recall <= 1 and 0 <= false_hit_rate <= 1):
            raise ValueError(
                f"recall ({recall}) and false_hit_rate ({false_hit_rate}) must be fractions"
            )
        if groups < 1:
            raise ValueError(f"groups is {groups}: expected at least 1")
        self.dimension = dimension
        self._group_of = group_of
        self._groups = groups
        # Both of a pair must lie at the centre for the pair to be alike.
        self._at_centre = math.sqrt(recall)
        self._false_hit_rate = false_hit_rate
        self._seed = seed
        self._compute = compute
        self._max_characters = max_characters

    async def embed(self, texts: Sequence[str]) -> Sequence[Vector | None]:
        readable = [len(text) <= self._max_characters for text in texts]
        for text, is_readable in zip(texts, readable, strict=True):
            if is_readable:
                await self._compute.use("embed", len(text) / 1024)
        return [
            self._vector(*self._group_of(text)) if is_readable else None
            for text, is_readable in zip(texts, readable, strict=True)
        ]

    def _vector(self, group: int, prompt: int) -> Vector:
        mistaken, at_centre, other, *_ = uniforms(self._seed, _LUCK, prompt)
        if mistaken < self._false_hit_rate and self._groups > 1:
            elsewhere = (group + 1 + int(other * (self._groups - 1))) % self._groups
            return self._direction(f"group {elsewhere}")
        if at_centre < self._at_centre:
            return self._direction(f"group {group}")
        return self._direction(f"prompt {prompt}")

    def _direction(self, name: str) -> Vector:
        """A point of the unit sphere: in 64 dimensions two of them are alike by more than 0.6 less than once in 1e6."""
        vector = generator(self._seed, f"{_LUCK} {name}").standard_normal(self.dimension)
        unit: Vector = (vector / np.linalg.norm(vector)).astype(np.float32)
        return unit
