"""Answers by meaning, as the gateway asks for them. Imported only where a deployment wants it: it needs numpy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from reference_impl.answers import Answer
from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.semantic.embedder import Embedder
from reference_impl.caches.semantic.gate import difference
from reference_impl.caches.semantic.request import prompt_and_scope
from reference_impl.caches.semantic.smart_cache import Scope, SmartCache
from reference_impl.deployment import SemanticCacheSpec
from reference_impl.messages import Call, content_key
from reference_impl.telemetry import CacheResult

__all__ = ["SemanticAnswers", "Semantics", "question_of_body"]

QuestionOf = Callable[[Call], tuple[str, Scope] | None]


def question_of_body(call: Call) -> tuple[str, Scope] | None:
    """The prompt and the scope of a live call; None where its last message is not mere text."""
    return prompt_and_scope(msgspec.json.decode(call.body), call.tenant)


@dataclass(frozen=True, slots=True)
class Semantics:
    """What a cache by meaning needs: vectors, a gate that names the difference of two prompts, a call's prompt."""

    embedder: Embedder
    gate: Callable[[str, str], str] = difference
    question_of: QuestionOf = question_of_body


class SemanticAnswers:
    """Looks an answer up exactly, then by meaning; for a call without a prompt to compare, exactly only.

    `exact` is where answers live, and is its owner's to close.
    """

    def __init__(
        self, exact: CacheLayer[Answer], spec: SemanticCacheSpec, semantics: Semantics
    ) -> None:
        self._exact = exact
        self._question_of = semantics.question_of
        self._smart = SmartCache(
            exact,
            similarity_threshold=spec.threshold,
            embedder=semantics.embedder,
            gate=semantics.gate,
            max_scopes=spec.max_scopes,
            max_prompts=spec.max_prompts,
            reload_s=spec.reload_s,
        )

    async def fetch(
        self, call: Call, compute: Callable[[], Awaitable[Answer]]
    ) -> tuple[Answer, CacheResult]:
        """As `CacheLayer.fetch`, with `semantic` for another prompt's answer. Never across tenants."""
        question = self._question_of(call)
        if question is None:
            return await self._exact.fetch(content_key(call), compute)
        prompt, scope = question
        found = await self._smart.fetch(prompt, compute, scope=scope)
        return found.value, found.source

    async def aclose(self) -> None:
        """End what runs in the background."""
        await self._smart.aclose()
