"""What is asked for, by whom, and when: `workload` of a scenario."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from reference_impl.deployment import Spec
from simulation.scenario.arrival_spec import Arrivals, SessionArrivals
from simulation.scenario.distributions import Distribution, LogNormal

__all__ = [
    "BatchSpec",
    "DistinctPrompts",
    "PromptPopularity",
    "Share",
    "WorkloadSpec",
    "ZipfPrompts",
]

Fraction = Annotated[float, Field(ge=0, le=1)]


class DistinctPrompts(Spec):
    """Nobody asks the same twice."""

    kind: Literal["distinct"] = "distinct"


class ZipfPrompts(Spec):
    """`prompts` different prompts, the i-th most popular asked in proportion to i^-exponent (Zipf).

    `share`: the fraction of requests that ask one of these; the others are distinct. A cache hits at most on `share`.
    `paraphrases`: so many neighbours in that list mean the same, which matters to a cache by meaning in virtual time alone:
    live, their texts are not written as paraphrases.
    """

    kind: Literal["zipf"] = "zipf"
    exponent: Annotated[float, Field(ge=0, le=10)] = 1.0
    prompts: Annotated[int, Field(ge=1, le=10_000_000)]
    share: Fraction = 1.0
    paraphrases: Annotated[int, Field(ge=1, le=1000)] = 1


PromptPopularity = Annotated[DistinctPrompts | ZipfPrompts, Field(discriminator="kind")]


class Share(Spec):
    """One name of a mix and its weight; weights need not add up to 1."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0


class BatchSpec(Spec):
    """One message batch: `requests` submitted at once at `at_s`, all distinct, answered when there is room for them.

    `input_tokens`, `output_tokens`: lengths, rounded, from 1 to `max_input_tokens` and `max_tokens`. `poll_s`: its submitter asks
    this often whether it has ended, and submits it again this long after it was turned away.
    """

    at_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    requests: Annotated[int, Field(ge=1, le=100_000)]
    model: Annotated[str, Field(min_length=1, max_length=200)] = "claude-sonnet-5-5"
    tenant: Annotated[str, Field(min_length=1, max_length=200)] = "default"
    input_tokens: Distribution = LogNormal(median=500, sigma=0.8)
    output_tokens: Distribution = LogNormal(median=150, sigma=0.7)
    max_input_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 200_000
    max_tokens: Annotated[int, Field(ge=1, le=128_000)] = 4096
    poll_s: Annotated[float, Field(ge=0.01, le=86_400)] = 10.0


class WorkloadSpec(Spec):
    """The requests.

    Attributes:
        arrivals: when they come.
        prompts: how often a prompt repeats. A prompt always has the same token counts.
        input_tokens: prompt length, rounded, from 1 to `max_input_tokens`. In sessions: what a turn adds.
        output_tokens: answer length, rounded, from 1 to `max_tokens`. A trace brings both lengths itself.
        max_tokens: `max_tokens` of the requests (raised to the answer where a trace's answer is longer).
        stream_fraction: how many of them stream.
        models, tenants: mixes, drawn per request (per session or user where there are any).
        patience_s: a client leaves when nothing of its answer has come by then (null: it waits for ever).
        batches: message batches beside all that (`deployment.queue`).
    """

    arrivals: Arrivals
    prompts: PromptPopularity = DistinctPrompts()
    input_tokens: Distribution = LogNormal(median=500, sigma=0.8)
    output_tokens: Distribution = LogNormal(median=150, sigma=0.7)
    max_input_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 200_000
    max_tokens: Annotated[int, Field(ge=1, le=128_000)] = 4096
    stream_fraction: Fraction = 1.0
    models: Annotated[tuple[Share, ...], Field(min_length=1, max_length=1000)] = (
        Share(name="claude-sonnet-5-5"),
    )
    tenants: Annotated[tuple[Share, ...], Field(min_length=1, max_length=30_000)] = (
        Share(name="default"),
    )
    patience_s: Distribution | None = None
    batches: Annotated[tuple[BatchSpec, ...], Field(max_length=1000)] = ()

    @model_validator(mode="after")
    def _conversations_do_not_repeat(self) -> WorkloadSpec:
        if isinstance(self.arrivals, SessionArrivals) and self.prompts.kind != "distinct":
            raise ValueError(
                "prompts: sessions carry their own history, so their prompts are distinct; "
                "remove prompts, or use other arrivals"
            )
        for field, shares in (("models", self.models), ("tenants", self.tenants)):
            names = [share.name for share in shares]
            if len(set(names)) != len(names):
                raise ValueError(f"{field}: a name occurs twice in {names}")
        return self
