"""The virtual embedder gives a semantic cache the errors that were measured on the real one."""

from __future__ import annotations

import asyncio

import pytest

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.semantic.smart_cache import SmartCache
from reference_impl.compute import InlineCompute, Step
from simulation.kernel import run
from simulation.models.embedder import VirtualEmbedder, accept_all

GROUPS = 1000


class Cpu(InlineCompute):
    """20 ms a text."""

    async def use(self, step: Step, kilobytes: float = 0.0) -> None:
        assert step == "embed"
        await asyncio.sleep(0.02)


def group_of(text: str) -> tuple[int, int]:
    prompt = int(text)
    return prompt % GROUPS, prompt


@pytest.mark.parametrize(
    ("recall", "false_hit_rate"), [(1.0, 0.0), (0.55, 0.0), (0.0, 0.0), (0.0, 0.2)]
)
def test_the_cache_over_it_has_the_recall_and_the_false_hits_that_it_was_given(
    recall: float, false_hit_rate: float
) -> None:
    async def main() -> None:
        embedder = VirtualEmbedder(
            group_of, GROUPS, recall=recall, false_hit_rate=false_hit_rate, seed=3, compute=Cpu()
        )
        right = wrong = 0
        for group in range(GROUPS):
            cache: SmartCache[str] = SmartCache(CacheLayer(), embedder=embedder, gate=accept_all)
            await cache.fetch(str(group), lambda prompt: prompt)
            answer = await cache.fetch(str(group + GROUPS), lambda prompt: prompt)
            right += answer.source == "semantic"
        assert right / GROUPS == pytest.approx(recall * (1 - false_hit_rate) ** 2, abs=0.05)

        # Every centre is taken by a prompt of its group; a mistaken prompt lands at one of the others.
        sure = VirtualEmbedder(
            group_of, GROUPS, recall=1.0, false_hit_rate=0.0, seed=3, compute=Cpu()
        )
        centres = {
            vector.tobytes(): group
            for group, vector in enumerate(await sure.embed([str(g) for g in range(GROUPS)]))
            if vector is not None
        }
        for prompt, vector in enumerate(
            await embedder.embed([str(GROUPS + g) for g in range(GROUPS)])
        ):
            assert vector is not None
            wrong += centres.get(vector.tobytes(), prompt) != prompt
        assert wrong / GROUPS == pytest.approx(false_hit_rate, abs=0.05)

    run(main())


def test_it_takes_the_time_that_it_was_given_and_is_the_same_twice() -> None:
    async def main() -> tuple[float, list[bytes]]:
        embedder = VirtualEmbedder(
            group_of, GROUPS, recall=0.5, false_hit_rate=0.1, seed=3, compute=Cpu()
        )
        vectors = await embedder.embed([str(n) for n in range(50)])
        return asyncio.get_running_loop().time(), [v.tobytes() for v in vectors if v is not None]

    assert run(main()) == run(main())
    assert run(main())[0] == pytest.approx(1.0)


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="must be fractions"):
        VirtualEmbedder(group_of, 3, recall=1.5, false_hit_rate=0, seed=0, compute=Cpu())
    with pytest.raises(ValueError, match="groups is 0"):
        VirtualEmbedder(group_of, 0, recall=1, false_hit_rate=0, seed=0, compute=Cpu())
