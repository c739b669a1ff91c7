"""SmartCache over written vectors, in virtual time."""

from __future__ import annotations

import asyncio
import logging
import math

import pytest

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.semantic.smart_cache import DEFAULT_THRESHOLD, Scope, SmartCache
from reference_impl.caches.shared_level import SharedLevel
from simulation.kernel import run
from simulation.models.cache_server import CacheServer, VirtualStore
from tests.reference_impl.caches.semantic.vectors import WrittenEmbedder

# cos 20° = 0.94 is above the threshold of 0.85, cos 40° = 0.77 below.
DEGREES = {"How do I bake a pie?": 0, "How can I bake a pie?": 20, "What is a pie?": 40}
BAKE, ALSO_BAKE, PIE = DEGREES


def accept(first: str, second: str) -> str:
    return ""


def smart(
    embedder: WrittenEmbedder | None = None, layer: CacheLayer[str] | None = None
) -> SmartCache[str]:
    return SmartCache(
        CacheLayer() if layer is None else layer,
        embedder=embedder or WrittenEmbedder(DEGREES),
        gate=accept,
    )


async def answer(prompt: str) -> str:
    await asyncio.sleep(1)
    return f"answer to {prompt}"


def test_the_lesson_s_calls_work_as_written() -> None:
    async def main() -> None:
        cache_layer: CacheLayer[str] = CacheLayer(ttl_seconds=3600)
        cache = SmartCache(cache_layer)
        assert cache.similarity_threshold == 0.85 == DEFAULT_THRESHOLD
        cache.similarity_threshold = 0.9
        assert cache.similarity_threshold == 0.9

    run(main())


def test_a_prompt_that_means_the_same_gets_the_answer_and_the_caller_is_told() -> None:
    async def main() -> None:
        cache = smart()
        first = await cache.fetch(BAKE, answer)
        assert (first.value, first.source) == (f"answer to {BAKE}", "miss")
        second = await cache.fetch(ALSO_BAKE, answer)
        assert (second.value, second.source, second.prompt) == (first.value, "semantic", BAKE)
        assert second.similarity == pytest.approx(math.cos(math.radians(20)), abs=1e-6)
        # Told every time: a semantic answer does not become the prompt's own.
        assert (await cache.fetch(ALSO_BAKE, answer)).source == "semantic"
        assert (await cache.fetch(BAKE, answer)).source == "l1"
        assert (await cache.fetch(PIE, answer)).source == "miss"
        statistics = cache.statistics()
        assert (statistics.exact_hits, statistics.semantic_hits, statistics.misses) == (1, 2, 2)

    run(main())


def test_generate_may_take_the_prompt_or_nothing() -> None:
    async def main() -> None:
        cache = smart()
        assert await cache.cached_generation(BAKE, lambda: "without") == "without"
        assert await cache.cached_generation(PIE, answer) == f"answer to {PIE}"

    run(main())


@pytest.mark.parametrize(
    "other",
    [
        Scope(tenant="b", model="m"),
        Scope(tenant="a", model="n"),
        Scope(tenant="a", model="m", system="Be brief."),
        Scope(tenant="a", model="m", parameters={"temperature": 0.5}),
        Scope(tenant="a", model="m", before=[{"role": "user", "content": "hi"}]),
    ],
)
def test_answers_never_cross_scopes(other: Scope) -> None:
    async def main() -> None:
        cache = smart()
        await cache.fetch(BAKE, answer, scope=Scope(tenant="a", model="m"))
        for prompt in (BAKE, ALSO_BAKE):
            assert (await cache.fetch(prompt, answer, scope=other)).source in ("miss", "semantic")
            assert cache.statistics().misses == 2
        own = await cache.fetch(ALSO_BAKE, answer, scope=Scope(tenant="a", model="m"))
        assert own.source == "semantic"

    run(main())


def test_the_gate_refuses_what_the_vectors_confuse() -> None:
    async def main() -> None:
        embedder = WrittenEmbedder({"Who won in 2014?": 0, "Who won in 2018?": 5})
        cache = SmartCache(CacheLayer[str](), embedder=embedder)
        await cache.fetch("Who won in 2014?", answer)
        assert (await cache.fetch("Who won in 2018?", answer)).source == "miss"
        assert cache.statistics().gated == 1

    run(main())


def test_an_answer_that_has_expired_or_was_invalidated_is_not_given() -> None:
    async def main() -> None:
        layer: CacheLayer[str] = CacheLayer(ttl_seconds=100)
        cache = smart(layer=layer)
        await cache.fetch(BAKE, answer)
        await asyncio.sleep(100)
        assert (await cache.fetch(ALSO_BAKE, answer)).source == "miss"
        await layer.invalidate("*", everything=True)
        assert (await cache.fetch(BAKE, answer)).source == "miss"
        assert cache.statistics().prompts == 1

    run(main())


def test_equal_prompts_at_once_are_embedded_and_generated_once() -> None:
    async def main() -> None:
        embedder = WrittenEmbedder(DEGREES)
        cache = smart(embedder)
        answers = await asyncio.gather(*(cache.fetch(BAKE, answer) for _ in range(100)))
        assert {a.value for a in answers} == {f"answer to {BAKE}"}
        assert [a.source for a in answers].count("miss") == 1
        assert embedder.batches == [[BAKE]]

    run(main())


def test_prompts_that_come_while_others_are_embedded_travel_together() -> None:
    async def main() -> None:
        prompts = [f"prompt {n}" for n in range(40)]

        class Slow(WrittenEmbedder):
            async def embed(self, texts):  # type: ignore[no-untyped-def]
                await asyncio.sleep(0.01)
                return await super().embed(texts)

        embedder = Slow({prompt: n for n, prompt in enumerate(prompts)})
        cache = SmartCache(CacheLayer[str](), embedder=embedder, similarity_threshold=1.0)
        await asyncio.gather(*(cache.fetch(prompt, answer) for prompt in prompts))
        assert [len(batch) for batch in embedder.batches] == [1, 32, 7]

    run(main())


def test_without_an_embedder_it_is_an_exact_cache_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        embedder = WrittenEmbedder(DEGREES)
        embedder.available = False
        cache = smart(embedder)
        with caplog.at_level(logging.WARNING):
            assert (await cache.fetch(BAKE, answer)).source == "miss"
            assert (await cache.fetch(BAKE, answer)).source == "l1"
            assert (await cache.fetch(ALSO_BAKE, answer)).source == "miss"
        lines = [record.getMessage() for record in caplog.records]
        assert lines == ["semantic cache off, exact cache on: no model here"]
        embedder.available = True
        assert (await cache.fetch(PIE, answer)).source == "miss"
        assert cache.statistics().unembedded == 2

    run(main())


def test_a_prompt_longer_than_the_model_reads_is_only_cached_exactly() -> None:
    async def main() -> None:
        cache = smart()
        assert (await cache.fetch("too long", answer)).source == "miss"
        assert (await cache.fetch("too long", answer)).source == "l1"
        assert cache.statistics().prompts == 0

    run(main())


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="expected a cosine from 0 to 1"):
        SmartCache(CacheLayer[str](), similarity_threshold=threshold)
    cache = SmartCache(CacheLayer[str]())
    with pytest.raises(ValueError, match="expected a cosine from 0 to 1"):
        cache.similarity_threshold = threshold


def process(
    server: CacheServer, name: str, embedder: WrittenEmbedder
) -> tuple[SmartCache[str], CacheLayer[str]]:
    layer: CacheLayer[str] = CacheLayer(shared=SharedLevel(VirtualStore(server, name), name=name))
    return SmartCache(layer, embedder=embedder, gate=accept, reload_s=60), layer


def test_the_index_survives_a_restart_and_reaches_other_processes() -> None:
    async def main() -> None:
        server = CacheServer()
        old, old_layer = process(server, "old", WrittenEmbedder(DEGREES))
        await old.fetch(BAKE, answer)
        await asyncio.sleep(0.01)  # it is shared behind the caller
        await old.aclose()
        await old_layer.aclose()

        new, new_layer = process(server, "new", WrittenEmbedder(DEGREES))
        assert (await new.fetch(ALSO_BAKE, answer)).source == "semantic"
        other, other_layer = process(server, "other", WrittenEmbedder(DEGREES))
        assert (await other.fetch(PIE, answer)).source == "miss"
        await asyncio.sleep(60)
        # The look-up that finds a reload due does not wait for it; the next one has it.
        await new.fetch(BAKE, answer)
        close_to_pie = WrittenEmbedder(DEGREES | {"What's a pie?": 41})
        new._embedder.degrees = close_to_pie.degrees  # type: ignore[attr-defined]
        await new.fetch(ALSO_BAKE, answer)
        await asyncio.sleep(1)
        assert (await new.fetch("What's a pie?", answer)).source == "semantic"
        for part in (new, new_layer, other, other_layer):
            await part.aclose()

    run(main())


@pytest.mark.parametrize("dimension", [2, 3])
def test_after_a_change_of_the_model_the_index_is_rebuilt_and_not_mixed(dimension: int) -> None:
    async def main() -> None:
        server = CacheServer()
        old, old_layer = process(server, "old", WrittenEmbedder(DEGREES))
        await old.fetch(BAKE, answer)
        await asyncio.sleep(0.01)

        # For the new model the two prompts are far apart, and PIE is the close one.
        degrees = {BAKE: 90, ALSO_BAKE: 0, PIE: 80}
        embedder = WrittenEmbedder(degrees, model_id="another", dimension=dimension)
        new, new_layer = process(server, "new", embedder)
        assert (await new.fetch(ALSO_BAKE, answer)).source == "miss"
        assert [BAKE] in embedder.batches
        assert (await new.fetch(PIE, answer)).prompt == BAKE
        # The old model's process goes on with its own vectors.
        assert (await old.fetch(PIE, answer)).source == "miss"
        for part in (old, old_layer, new, new_layer):
            await part.aclose()

    run(main())


def test_a_store_that_is_away_costs_the_shared_index_and_no_request() -> None:
    async def main() -> None:
        server = CacheServer()
        cache, layer = process(server, "a", WrittenEmbedder(DEGREES))
        server.fail("hanging")
        loop = asyncio.get_running_loop()
        assert (await cache.fetch(BAKE, answer)).source == "miss"
        assert (await cache.fetch(ALSO_BAKE, answer)).source == "semantic"
        # One time-out; whoever comes right after it does not wait again.
        assert loop.time() <= 1 + 2 * 0.05
        await cache.aclose()
        await layer.aclose()

    run(main())


def test_memory_is_bounded_in_scopes_and_prompts() -> None:
    async def main() -> None:
        prompts = [f"prompt {n}" for n in range(20)]
        cache = SmartCache(
            CacheLayer[str](),
            embedder=WrittenEmbedder({prompt: 5 * n for n, prompt in enumerate(prompts)}),
            gate=accept,
            similarity_threshold=1.0,
            max_scopes=2,
            max_prompts=5,
        )
        for tenant in ("a", "b", "c"):
            for prompt in prompts:
                await cache.fetch(prompt, answer, scope=Scope(tenant=tenant))
        statistics = cache.statistics()
        assert (statistics.scopes, statistics.prompts) == (2, 10)

    run(main())
