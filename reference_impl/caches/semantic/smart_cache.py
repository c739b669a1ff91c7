"""SmartCache: an answer to a prompt that means the same serves this one too.

Off unless somebody makes one, because it can be wrong. A prompt is answered by another's cached answer if their vectors are at
least as similar as the threshold, and the gate finds no difference between their words; never across scopes. Everything
else is the exact cache's: where values live, how long, how they are invalidated. What fails here (no embedder, no store) is
logged once and costs a miss.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from reference_impl.caches.background import BackgroundTasks
from reference_impl.caches.batches import Batches
from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.keys import cache_key
from reference_impl.caches.semantic.embedder import Embedder, EmbedderUnavailable, Vector
from reference_impl.caches.semantic.gate import difference
from reference_impl.caches.semantic.minilm import MiniLMEmbedder
from reference_impl.caches.semantic.scope_index import Candidate, ScopeIndex
from reference_impl.telemetry import CacheResult

__all__ = ["DEFAULT_THRESHOLD", "Scope", "SmartAnswer", "SmartCache", "SmartCacheStatistics"]

T = TypeVar("T")
GenerateFn = Callable[[str], Awaitable[T] | T] | Callable[[], Awaitable[T] | T]

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLD: Final = 0.85
_CANDIDATES: Final = 4
_MAX_BATCH: Final = 32
_EMBED_LIMIT_S: Final = 30.0
_VECTOR_CACHE_BYTES: Final = 16 * 1024 * 1024


class Scope(msgspec.Struct, frozen=True):
    """What must be equal for answers to be shared, all of it JSON-able. `before` is the conversation up to the prompt."""

    tenant: str = ""
    model: str = ""
    system: object = ""
    parameters: Mapping[str, object] = {}
    before: Sequence[object] = ()

    def digest(self) -> str:
        return cache_key(
            "scope", self.model, self.system, self.parameters, self.before, tenant=self.tenant
        )


class SmartAnswer(msgspec.Struct, Generic[T], frozen=True):
    """`source` as in `CacheLayer.fetch`, or `semantic`; then `similarity` to `prompt`, whose answer this is."""

    value: T
    source: CacheResult
    similarity: float = math.nan
    prompt: str = ""


class SmartCacheStatistics(msgspec.Struct, frozen=True):
    """Since the start. Prompts asked = exact_hits + semantic_hits + misses (coalesced ones included) + failures.

    `gated`: candidates above the threshold that the gate refused. `unembedded`: prompts without a vector (too long, or no
    embedder). `scopes` and `prompts` are held now.
    """

    exact_hits: int
    semantic_hits: int
    misses: int
    gated: int
    unembedded: int
    scopes: int
    prompts: int


class SmartCache(Generic[T]):
    """Cached generations by meaning.

    Args:
        cache_layer: where the answers live, and whose shared level, if it has one, keeps the index.
        similarity_threshold: cosine from which two prompts may share an answer; an attribute too, from 0 to 1.
        embedder: by default all-MiniLM-L6-v2 on a thread.
        gate: names the difference between two prompts, "" for none; by default `gate.difference`, which knows English.
        max_scopes, max_prompts: bounds on memory; the scope least recently used, the oldest prompt leave first.
        reload_s: how soon this process learns what others have added.
    """

    def __init__(
        self,
        cache_layer: CacheLayer[T],
        *,
        similarity_threshold: float = DEFAULT_THRESHOLD,
        embedder: Embedder | None = None,
        gate: Callable[[str, str], str] = difference,
        max_scopes: int = 1000,
        max_prompts: int = 10_000,
        reload_s: float = 60.0,
    ) -> None:
        self.similarity_threshold = similarity_threshold
        self._layer = cache_layer
        self._embedder = MiniLMEmbedder() if embedder is None else embedder
        self._gate = gate
        self._max_scopes = max_scopes
        self._max_prompts = max_prompts
        self._reload_s = reload_s
        self._scopes: OrderedDict[str, ScopeIndex] = OrderedDict()
        self._batches: Batches[str, Vector | None] = Batches(
            self._embedder.embed, max_batch=_MAX_BATCH, limit_s=_EMBED_LIMIT_S
        )
        # Equal prompts at the same time, or again, are embedded once.
        self._vectors: CacheLayer[Vector | None] = CacheLayer(
            max_bytes=_VECTOR_CACHE_BYTES,
            size_of=lambda vector: 0 if vector is None else vector.nbytes,
        )
        self._tasks = BackgroundTasks("cache")
        self._said_unavailable = False
        self._exact_hits = self._semantic_hits = self._misses = 0
        self._gated = self._unembedded = 0

    @property
    def similarity_threshold(self) -> float:
        return self._threshold

    @similarity_threshold.setter
    def similarity_threshold(self, threshold: float) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"similarity_threshold is {threshold}: expected a cosine from 0 to 1")
        self._threshold = threshold

    async def cached_generation(
        self, prompt: str, generate_fn: GenerateFn[T], *, scope: Scope | None = None
    ) -> T:
        """The answer to `prompt`, or to one that means the same in `scope`; see `fetch`."""
        return (await self.fetch(prompt, generate_fn, scope=scope)).value

    async def fetch(
        self,
        prompt: str,
        generate_fn: GenerateFn[T],
        *,
        scope: Scope | None = None,
        ttl: float | None = None,
    ) -> SmartAnswer[T]:
        """Ask the exact cache, then the prompts that mean the same, then `generate_fn` (with the prompt, if it takes one).

        Raises what `generate_fn` raises, and ValueError for a negative `ttl` in seconds.
        """
        digest = (scope or Scope()).digest()
        key = cache_key(digest, prompt)
        found = await self._layer.find(key)
        if found is not None:
            self._exact_hits += 1
            return SmartAnswer(*found)
        vector = await self._vector(prompt)
        index = self._scope(digest)
        if vector is not None:
            await index.ready(self._tasks)
            answer = await self._similar(index, prompt, vector)
            if answer is not None:
                self._semantic_hits += 1
                return answer
        value, source = await self._layer.fetch(key, _bound(generate_fn, prompt), ttl)
        self._misses += 1
        ttl_s = self._layer.ttl_seconds if ttl is None else ttl
        if vector is not None and ttl_s > 0 and source == "miss":
            evicted = index.add(key, prompt, vector)
            if self._layer.shared is not None:
                sharing = index.share(key, prompt, vector, evicted, ttl_s=ttl_s)
                self._tasks.start(sharing, "semantic-share")
        return SmartAnswer(value, source)

    async def aclose(self) -> None:
        """End what runs in the background; the layer below is its owner's to close."""
        await self._tasks.aclose()
        await self._batches.aclose()
        await self._vectors.aclose()

    def statistics(self) -> SmartCacheStatistics:
        return SmartCacheStatistics(
            exact_hits=self._exact_hits,
            semantic_hits=self._semantic_hits,
            misses=self._misses,
            gated=self._gated,
            unembedded=self._unembedded,
            scopes=len(self._scopes),
            prompts=sum(len(index) for index in self._scopes.values()),
        )

    async def _similar(
        self, index: ScopeIndex, prompt: str, vector: Vector
    ) -> SmartAnswer[T] | None:
        """The answer of the most similar prompt that the gate lets pass and whose answer is still there."""
        for candidate in index.nearest(vector, _CANDIDATES):
            if candidate.similarity < self._threshold:
                return None
            if self._gate(prompt, candidate.prompt):
                self._gated += 1
                continue
            answer = await self._answer_of(index, candidate)
            if answer is not None:
                return answer
        return None

    async def _answer_of(self, index: ScopeIndex, candidate: Candidate) -> SmartAnswer[T] | None:
        found = await self._layer.find(candidate.key)
        if found is None:
            await index.discard(candidate.key)
            return None
        return SmartAnswer(found[0], "semantic", candidate.similarity, candidate.prompt)

    async def _vector(self, prompt: str) -> Vector | None:
        try:
            vector = await self._vectors.get_or_compute(
                cache_key(prompt), lambda: self._batches.ask(prompt)
            )
        except (EmbedderUnavailable, TimeoutError) as error:
            if not self._said_unavailable:
                self._said_unavailable = True
                logger.warning("semantic cache off, exact cache on: %s", error)
            vector = None
        if vector is None:
            self._unembedded += 1
        return vector

    def _scope(self, digest: str) -> ScopeIndex:
        index = self._scopes.get(digest)
        if index is None:
            index = self._scopes[digest] = ScopeIndex(
                digest,
                self._embedder,
                cast("Any", self._layer.shared),
                max_entries=self._max_prompts,
                reload_s=self._reload_s,
            )
            if len(self._scopes) > self._max_scopes:
                self._scopes.popitem(last=False)
        else:
            self._scopes.move_to_end(digest)
        return index


def _bound(generate_fn: GenerateFn[T], prompt: str) -> Callable[[], Awaitable[T] | T]:
    """`generate_fn` as a function of nothing: called with the prompt if it has a parameter without a default."""
    takes_prompt = any(
        parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        for parameter in inspect.signature(generate_fn).parameters.values()
    )
    if takes_prompt:
        return lambda: cast("Callable[[str], Awaitable[T] | T]", generate_fn)(prompt)
    return cast("Callable[[], Awaitable[T] | T]", generate_fn)
