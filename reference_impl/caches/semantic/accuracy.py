"""How right the semantic cache is on labelled pairs, at every threshold, with the gate and without.

Precision is the share of the answered pairs that were the same question; recall the share of the same questions that were
answered; the false-hit rate the share of the different questions that were answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from reference_impl.caches.semantic.embedder import Embedder, Vector
from reference_impl.caches.semantic.gate import difference

__all__ = [
    "LABELLED_PAIRS",
    "Evaluation",
    "LabelledPair",
    "Point",
    "ScoredPair",
    "evaluate",
    "read_pairs",
    "score",
]

# The project's own: 125 paraphrases and 125 near misses, written before the gate.
LABELLED_PAIRS: Final = Path(__file__).parent.parent / "labelled_pairs.tsv"
_BATCH: Final = 32
_HEADER: Final = ["same", "kind", "first", "second"]


class LabelledPair(msgspec.Struct, frozen=True):
    """Two prompts, whether one answer serves both, and what kind of pair it is."""

    same: bool
    kind: str
    first: str
    second: str


class ScoredPair(msgspec.Struct, frozen=True):
    """A pair with its similarity and the gate's objection ("" for none); `similarity` is nan if a text was too long."""

    pair: LabelledPair
    similarity: float
    objection: str


class Point(msgspec.Struct, frozen=True):
    """The cache at one setting: pairs answered rightly and wrongly, of `same` and `different` ones."""

    threshold: float
    gated: bool
    right: int
    wrong: int
    same: int
    different: int

    @property
    def precision(self) -> float:
        """1 where nothing is answered: there is no wrong answer."""
        answered = self.right + self.wrong
        return self.right / answered if answered else 1.0

    @property
    def recall(self) -> float:
        return self.right / self.same if self.same else 0.0

    @property
    def false_hit_rate(self) -> float:
        return self.wrong / self.different if self.different else 0.0


class Evaluation(msgspec.Struct, frozen=True):
    """Every pair, and the curve: one point a threshold (0.50, 0.51, ... 1.00), gated and not."""

    scored: tuple[ScoredPair, ...]
    gated: tuple[Point, ...]
    ungated: tuple[Point, ...]

    def at(self, threshold: float, *, gated: bool = True) -> Point:
        """The cache at exactly `threshold`."""
        return _point(self.scored, threshold, gated)

    def safest(self, max_false_hit_rate: float) -> Point | None:
        """The lowest threshold from which on the gated false-hit rate stays within the target; None if none does."""
        best = None
        for point in reversed(self.gated):
            if point.false_hit_rate > max_false_hit_rate:
                break
            best = point
        return best

    def wrong_by_kind(self, threshold: float, *, gated: bool = True) -> Counter[str]:
        """Different questions that are answered at `threshold`, by the kind of their difference."""
        return Counter(
            scored.pair.kind
            for scored in self.scored
            if not scored.pair.same and _answered(scored, threshold, gated)
        )


def read_pairs(path: Path) -> list[LabelledPair]:
    """Pairs from a file of four columns divided by tabs (same as 0 or 1, kind, first, second) under that header.

    Raises ValueError that names the file, the line, and what is wrong there.
    """
    pairs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        cells = line.split("\t")
        if number == 1:
            if cells != _HEADER:
                raise ValueError(f"{path}:1: expected the header {' '.join(_HEADER)}, by tabs")
            continue
        if len(cells) != len(_HEADER) or cells[0] not in ("0", "1") or not all(cells):
            raise ValueError(
                f"{path}:{number}: expected 0 or 1, a kind and two prompts, by tabs: {line[:60]!r}"
            )
        pairs.append(LabelledPair(cells[0] == "1", *cells[1:]))
    if not any(pair.same for pair in pairs) or all(pair.same for pair in pairs):
        raise ValueError(f"{path}: needs both pairs with the same and with different questions")
    return pairs


async def score(
    pairs: Sequence[LabelledPair],
    embedder: Embedder,
    gate: Callable[[str, str], str] = difference,
) -> list[ScoredPair]:
    """Similarity and objection of each pair."""
    texts = sorted({text for pair in pairs for text in (pair.first, pair.second)})
    vectors: dict[str, Vector | None] = {}
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        vectors.update(zip(batch, await embedder.embed(batch), strict=True))
    scored = []
    for pair in pairs:
        first, second = vectors[pair.first], vectors[pair.second]
        similarity = float("nan") if first is None or second is None else float(first @ second)
        scored.append(ScoredPair(pair, similarity, gate(pair.first, pair.second)))
    return scored


async def evaluate(
    pairs: Sequence[LabelledPair],
    embedder: Embedder,
    gate: Callable[[str, str], str] = difference,
) -> Evaluation:
    """The whole curve over `pairs`."""
    scored = tuple(await score(pairs, embedder, gate))
    thresholds = [hundredths / 100 for hundredths in range(50, 101)]
    return Evaluation(
        scored,
        tuple(_point(scored, threshold, True) for threshold in thresholds),
        tuple(_point(scored, threshold, False) for threshold in thresholds),
    )


def _answered(scored: ScoredPair, threshold: float, gated: bool) -> bool:
    return scored.similarity >= threshold and not (gated and scored.objection)


def _point(scored: Sequence[ScoredPair], threshold: float, gated: bool) -> Point:
    answered = [one.pair.same for one in scored if _answered(one, threshold, gated)]
    same = sum(one.pair.same for one in scored)
    return Point(
        threshold, gated, sum(answered), len(answered) - sum(answered), same, len(scored) - same
    )
