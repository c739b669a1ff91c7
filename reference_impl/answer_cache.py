"""The gateway's cache of answers, from its description: exact in memory, shared with other gateways, by meaning.

What differs between the worlds is handed in as `CacheBackends`: the store that is shared, what turns text into vectors, and
how a call's prompt is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reference_impl.answers import Answer
from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.codec import MsgpackCodec
from reference_impl.caches.port import CacheStore
from reference_impl.caches.shared_level import SharedLevel
from reference_impl.deployment import CacheSpec
from reference_impl.overload.breaker import BreakerState
from reference_impl.overload.jitter import hashed_uniform
from reference_impl.telemetry import SystemEvent

if TYPE_CHECKING:  # numpy comes with it, and few gateways want it
    from reference_impl.semantic_answers import SemanticAnswers, Semantics

__all__ = ["NO_BACKENDS", "CacheBackends", "build_cache"]

# Breakers of gateways that were given the same seed draw the same luck, whatever the gateways are called.
_BREAKER_LUCK: Final = "cache breaker"


@dataclass(frozen=True, slots=True)
class CacheBackends:
    """What the description of a cache does not hold.

    Attributes:
        store: the level that gateways share; needed where the description wants one.
        process: names this gateway among those that share the store; unique, also over restarts.
        semantics: needed where the description wants answers by meaning.
    """

    store: CacheStore | None = None
    process: str = "gateway"
    semantics: Semantics | None = None


NO_BACKENDS: Final = CacheBackends()


def build_cache(
    spec: CacheSpec,
    backends: CacheBackends,
    *,
    seed: int,
    on_event: Callable[[SystemEvent], None],
    origin_s: float = 0.0,
) -> tuple[CacheLayer[Answer] | None, SemanticAnswers | None]:
    """The exact cache, and the one by meaning over it; None for what `spec` does not want.

    `on_event` is told each change of the shared level's breaker, at instants from `origin_s` on. Raises ValueError where
    `backends` lacks what `spec` wants.
    """
    if not spec.enabled:
        return None, None
    exact: CacheLayer[Answer] = CacheLayer(
        spec.ttl_s,
        max_bytes=spec.max_bytes,
        max_entries=spec.max_entries,
        size_of=lambda answer: answer.size_bytes,
        shared=_shared_level(spec, backends, seed, on_event, origin_s),
        l1_ttl_seconds=spec.l1_ttl_s,
    )
    if not spec.semantic.enabled:
        return exact, None
    if backends.semantics is None:
        raise ValueError("cache.semantic is enabled, and nothing that embeds prompts was handed in")
    from reference_impl.semantic_answers import SemanticAnswers

    return exact, SemanticAnswers(exact, spec.semantic, backends.semantics)


def _shared_level(
    spec: CacheSpec,
    backends: CacheBackends,
    seed: int,
    on_event: Callable[[SystemEvent], None],
    origin_s: float,
) -> SharedLevel[Answer] | None:
    if spec.shared == "none":
        return None
    if backends.store is None:
        raise ValueError(f"cache.shared is {spec.shared}, and no store was handed in")
    luck = hashed_uniform(seed)

    def on_breaker_change(now_s: float, old: BreakerState, new: BreakerState) -> None:
        on_event(
            SystemEvent(
                t_s=now_s - origin_s,
                kind="breaker",
                subject="shared cache",
                detail={"before": old.value, "after": new.value},
            )
        )

    return SharedLevel(
        backends.store,
        name=backends.process,
        codec=MsgpackCodec(Answer),
        timeout_s=spec.timeout_s,
        uniform=lambda _purpose, opening, attempt: luck(_BREAKER_LUCK, opening, attempt),
        on_breaker_change=on_breaker_change,
    )
