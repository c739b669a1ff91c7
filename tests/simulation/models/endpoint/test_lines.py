"""Model lines that differ from the rest of a profile."""

from __future__ import annotations

import asyncio

import pytest

from reference_impl.errors import RateLimited
from simulation.kernel import run
from simulation.models.llm_endpoint import LLMEndpoint
from simulation.scenario.endpoint import EndpointProfile
from tests.simulation.models.endpoint.calls import profile, tagged

_HAIKU, _OPUS = "claude-haiku-5-5", "claude-opus-5-5"


def _seconds(behaviour: EndpointProfile, *models: str) -> list[float]:
    """How long calls take that arrive together, one to each model."""

    async def main() -> list[float]:
        endpoint = LLMEndpoint(behaviour, 1)
        calls = [tagged(i, out=11, tokens_in=0, model=model) for i, model in enumerate(models)]
        tasks = [asyncio.create_task(endpoint.complete(call)) for call in calls]
        for task in tasks:
            await task
        return [call.trace.endpoint_s for call in calls]

    return run(main())


def test_a_line_may_have_a_service_and_limits_of_its_own() -> None:
    behaviour = profile(
        lines={
            "haiku": {
                "service": {"kind": "service_time", "service_s": 0.5},
                "limits": {"requests_per_min": 1},
            }
        }
    )
    assert _seconds(behaviour, _HAIKU, _OPUS, "some-local-model") == pytest.approx([0.5, 2.0, 2.0])

    async def main() -> None:
        endpoint = LLMEndpoint(behaviour, 1)
        for model in (_HAIKU, _OPUS, _OPUS):
            endpoint.admit(tagged(1, model=model))
        with pytest.raises(RateLimited):
            endpoint.admit(tagged(2, model=_HAIKU))

    run(main())


def test_lines_without_an_engine_of_their_own_share_one() -> None:
    engine = {
        "kind": "self_hosted",
        "max_num_seqs": 1,
        "decode_base_s": 0.1,
        "decode_per_sequence_s": 0,
    }
    shared = profile(service=engine)
    assert _seconds(shared, _HAIKU, _OPUS) == pytest.approx([1.1, 2.2])
    apart = profile(service=engine, lines={"haiku": {"service": engine}})
    assert _seconds(apart, _HAIKU, _OPUS) == pytest.approx([1.1, 1.1])
