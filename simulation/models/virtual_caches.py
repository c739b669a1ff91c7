"""What stands behind the gateway's caches in virtual time: the server that gateways share, and the encoder of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from reference_impl.answer_cache import CacheBackends
from reference_impl.caches.semantic.smart_cache import Scope
from reference_impl.messages import Call
from reference_impl.semantic_answers import Semantics
from reference_impl.telemetry import StationSample
from simulation.models.cache_server import CacheServer, VirtualStore
from simulation.models.cpu import Host, VirtualCpu
from simulation.models.embedder import VirtualEmbedder, accept_all
from simulation.scenario.prompts import BYTES_PER_TOKEN, prompt_number, prompt_text
from simulation.scenario.schema import Scenario
from simulation.scenario.workload import CompiledWorkload
from simulation.scenario.workload_spec import ZipfPrompts

__all__ = ["VirtualCaches"]

# What the shipped encoder reads of a prompt.
MAX_PROMPT_TOKENS: Final = 256


class VirtualCaches:
    """The back ends of one gateway's caches, as its deployment wants them. Must be made on the running loop.

    The encoder runs on a thread of the gateway's process, so it is a station of its own that shares the host's cores.

    Attributes:
        backends: what to hand to the system. server: None where nothing is shared.
    """

    def __init__(self, scenario: Scenario, workload: CompiledWorkload, host: Host) -> None:
        spec = scenario.deployment.cache
        self._workload = workload
        self._encoder: VirtualCpu | None = None
        self.server: CacheServer | None = None
        store = None
        if spec.enabled and spec.shared != "none":
            about = scenario.cache_server
            self.server = CacheServer(
                seed=scenario.seed,
                max_bytes=about.max_bytes,
                one_way=about.one_way_s,
                service_s=about.service_s,
            )
            store = VirtualStore(self.server, "gateway")
        semantics = None
        if spec.enabled and spec.semantic.enabled:
            self._encoder = VirtualCpu("gateway encoder", scenario.cpu.gateway, host)
            group_of, groups = _groups(scenario, len(workload))
            embedder = VirtualEmbedder(
                group_of,
                groups,
                recall=scenario.semantics.recall,
                false_hit_rate=scenario.semantics.false_hit_rate,
                seed=scenario.seed,
                compute=self._encoder,
                max_characters=MAX_PROMPT_TOKENS * BYTES_PER_TOKEN,
            )
            semantics = Semantics(embedder, accept_all, self._question_of)
        self.backends = CacheBackends(store, semantics=semantics)

    def samples(self, now_s: float, origin_s: float) -> Iterator[StationSample]:
        """What each station did since the last sample."""
        if self.server is not None:
            yield self.server.sample(now_s, origin_s)
        if self._encoder is not None:
            yield self._encoder.sample(now_s, origin_s)

    def _question_of(self, call: Call) -> tuple[str, Scope]:
        """The prompt of a call without a body, and a scope that is equal where the live one would be."""
        workload, row = self._workload, call.request_id
        assert call.tag is not None
        context_tokens = workload.context_tokens.item(row)
        # Conversations are distinct, so a turn's number in its session says all that its text would.
        before = (workload.session_id.item(row), workload.turn.item(row)) if context_tokens else ()
        return (
            prompt_text(call.tag.prompt_id, call.tag.input_tokens - context_tokens).strip(),
            Scope(
                tenant=call.tenant,
                model=call.model,
                parameters={"max_tokens": call.max_tokens},
                before=before,
            ),
        )


def _groups(scenario: Scenario, requests: int) -> tuple[Callable[[str], tuple[int, int]], int]:
    """The group of prompts that mean the same as a text, with the prompt's number; and how many groups there are."""
    prompts = scenario.workload.prompts
    if not isinstance(prompts, ZipfPrompts):
        return lambda text: (prompt_number(text), prompt_number(text)), max(1, requests)
    popular, size = prompts.prompts, prompts.paraphrases

    def group_of(text: str) -> tuple[int, int]:
        number = prompt_number(text)
        # The distinct ones have numbers from `popular` on, which are beyond every group.
        return (number // size if number < popular else number), number

    return group_of, -(-popular // size)
