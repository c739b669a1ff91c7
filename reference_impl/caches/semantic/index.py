"""Nearest stored vectors by cosine similarity: exact by numpy while there are few, approximate by usearch beyond.

A product of 4,000 x 384 takes about a millisecond, on the event loop; an HNSW graph answers in less at any size, but needs
the package usearch, builds slower, and may miss a neighbour. Without usearch the search stays exact, whatever the size.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reference_impl.caches.semantic.embedder import Vector

__all__ = ["EXACT_UP_TO", "VectorIndex"]

EXACT_UP_TO: Final = 4000


class VectorIndex:
    """Unit vectors of one dimension by name; a vector of another dimension is refused, never mixed in."""

    def __init__(self, dimension: int, *, exact_up_to: int = EXACT_UP_TO) -> None:
        self.dimension = dimension
        self._exact_up_to = exact_up_to
        self._slots: dict[str, int] = {}
        self._names: list[str | None] = []
        self._free: list[int] = []
        self._vectors: npt.NDArray[np.float32] = np.zeros((64, dimension), np.float32)
        self._graph: Any = None

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    @property
    def exact(self) -> bool:
        return self._graph is None

    def add(self, name: str, vector: Vector) -> None:
        """Store `vector`, in place of what `name` had. Raises ValueError for another dimension."""
        if vector.shape != (self.dimension,):
            raise ValueError(
                f"a vector of shape {vector.shape} does not fit an index of dimension {self.dimension}"
            )
        self.discard(name)
        slot = self._free.pop() if self._free else len(self._names)
        if slot == len(self._names):
            self._names.append(None)
            if slot == len(self._vectors):
                self._vectors = np.concatenate([self._vectors, np.zeros_like(self._vectors)])
        self._names[slot] = name
        self._slots[name] = slot
        self._vectors[slot] = vector
        if self._graph is not None:
            self._graph.add(slot, vector)
        elif len(self._slots) > self._exact_up_to and importlib.util.find_spec("usearch"):
            self._build_graph()

    def discard(self, name: str) -> bool:
        """Forget `name`; returns whether it was there."""
        slot = self._slots.pop(name, None)
        if slot is None:
            return False
        self._names[slot] = None
        self._vectors[slot] = 0.0
        self._free.append(slot)
        if self._graph is not None:
            self._graph.remove(slot)
        return True

    def nearest(self, vector: Vector, count: int) -> list[tuple[str, float]]:
        """At most `count` names with their similarity in [-1, 1], most alike first."""
        if not self._slots:
            return []
        if self._graph is not None:
            found = self._graph.search(vector, count)
            slots = [int(slot) for slot in found.keys]
        else:
            similarities = self._vectors[: len(self._names)] @ vector
            slots = [int(slot) for slot in np.argsort(-similarities, kind="stable")[:count]]
        ranked = []
        for slot in slots:
            name = self._names[slot]
            if name is not None:
                ranked.append((name, float(self._vectors[slot] @ vector)))
        return ranked

    def _build_graph(self) -> None:
        from usearch.index import Index

        self._graph = Index(ndim=self.dimension, metric="ip", dtype="f32")
        slots = np.array(list(self._slots.values()))
        self._graph.add(slots, self._vectors[slots], threads=1)
