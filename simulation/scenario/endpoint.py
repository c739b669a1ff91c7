"""EndpointProfile: how an LLM endpoint behaves, as data.

One profile drives the simulation's endpoint in process and the mock server over HTTP. Its service is of one of three kinds:
`provider` (a hosted API, seen from outside), `self_hosted` (an engine with continuous batching) or `service_time` (the
whole answer takes one drawn time, for textbook queues). Limits, overload, faults and the prompt cache stand beside it.

Shipped profiles are synthetic: published evidence is thin, so each says where its numbers come from, and every one can be
replaced. Seconds, tokens and fractions; rate limits are per minute, as providers state them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulation.scenario.distributions import Distribution

__all__ = [
    "LIMIT_TIERS",
    "AccelerationSpec",
    "EndpointProfile",
    "FaultKind",
    "FaultSpec",
    "LimitsSpec",
    "OverloadSpec",
    "ProfileError",
    "PromptCacheSpec",
    "ProviderService",
    "SelfHostedService",
    "ServiceTimeService",
    "load_profile",
    "shipped_profiles",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10_000_000_000)]


class ProfileError(ValueError):
    """A profile cannot be used: one line that names the file, the field, what was found and what is allowed."""


class Spec(BaseModel):
    """Base of every part: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ProviderService(Spec):
    """A hosted API as its clients see it.

    The first token comes after `ttft_s` plus the prefill of the prompt; then tokens flow at the request's own rate.
    `gap_sigma`, `stall_fraction` and `stall_gaps` shape the gaps between chunks (lognormal; a fraction of them is
    `stall_gaps` times as long); they redistribute the time of a stream and do not add to it, because measured token
    rates have the stalls in them. `thinking_share`: part of the output tokens spent on thinking, before the answer,
    where a request asks for it.
    """

    kind: Literal["provider"] = "provider"
    ttft_s: Distribution
    tokens_per_s: Distribution
    prefill_s_per_token: NonNegative = 0.0001
    cached_prefill_s_per_token: NonNegative = 0.00001
    gap_sigma: Annotated[float, Field(ge=0, le=3)] = 0.4
    stall_fraction: Fraction = 0.01
    stall_gaps: Annotated[float, Field(ge=1, le=1000)] = 4.0
    tokens_per_chunk: Annotated[int, Field(ge=1, le=10_000)] = 1
    thinking_share: Fraction = 0.4


class SelfHostedService(Spec):
    """One engine with continuous batching (vLLM, SGLang).

    A step of a batch of n sequences takes `decode_base_s + decode_per_sequence_s * n` and gives each of them one token;
    waiting prompts join the next step, which takes longer by their tokens / `prefill_tokens_per_s`, for everybody. A
    sequence holds its prompt and what it has generated in the KV cache of `kv_cache_tokens`; when that is full, the
    sequence that came last is preempted and later recomputed. At most `max_num_seqs` run at once; `queue_limit` bounds
    those that wait (beyond it: 529).

    Sources: iteration-level scheduling (Yu et al., Orca, OSDI 2022), recomputation and last-come preemption (Kwon et
    al., vLLM, SOSP 2023), step time linear in the batch (Agrawal et al., Vidur, MLSys 2024). Not modelled: prompts split
    into chunks over several steps, prefix sharing between requests, speculative decoding, block fragmentation, several
    replicas, attention cost that grows with context length.
    """

    kind: Literal["self_hosted"] = "self_hosted"
    max_num_seqs: Count = 256
    prefill_tokens_per_s: Positive = 10_000.0
    decode_base_s: Positive = 0.02
    decode_per_sequence_s: NonNegative = 0.0002
    kv_cache_tokens: Count = 400_000
    queue_limit: Annotated[int, Field(ge=0)] = 100_000
    thinking_share: Fraction = 0.4


class ServiceTimeService(Spec):
    """The whole answer takes one drawn time; the first token comes after `first_token_share` of it."""

    kind: Literal["service_time"] = "service_time"
    service_s: Distribution
    first_token_share: Fraction = 1.0
    thinking_share: Fraction = 0.4


Service = Annotated[
    ProviderService | SelfHostedService | ServiceTimeService, Field(discriminator="kind")
]


class AccelerationSpec(Spec):
    """A limit on how fast the load may grow: at most `growth` times the request rate of the last `window_s`.

    `floor_per_min` is always allowed. Providers announce such a limit without numbers, so these are synthetic.
    """

    growth: Annotated[float, Field(gt=1, le=1000)] = 2.0
    window_s: Positive = 60.0
    floor_per_min: Positive = 60.0


class LimitsSpec(Spec):
    """Rate limits of one account and model class, as token buckets that refill continuously (None: unlimited).

    `burst_s`: a bucket holds the allowance of this many seconds ("60 RPM might be enforced as 1 request per second"),
    but always one request. `input_tokens_per_min` counts uncached input; `output_tokens_per_min` counts output as it is
    produced, so a bucket can go into debt.
    """

    requests_per_min: Positive | None = None
    input_tokens_per_min: Positive | None = None
    output_tokens_per_min: Positive | None = None
    burst_s: Positive = 1.0
    acceleration: AccelerationSpec | None = None


class OverloadSpec(Spec):
    """Global overload (529): the chance of refusal rises from 0 at `onset * capacity_in_flight` calls to 1 at capacity.

    `background` is the chance of a refusal that does not depend on this load (everybody else's).
    """

    capacity_in_flight: Count = 1000
    onset: Annotated[float, Field(ge=0, lt=1)] = 0.8
    background: Fraction = 0.0


FaultKind = Literal[
    "400",
    "401",
    "403",
    "404",
    "413",
    "429",
    "500",
    "502",
    "503",
    "504",
    "529",
    "timeout",
    "drop_connection",
    "drop_stream",
    "error_in_stream",
    "slow",
]


class FaultSpec(Spec):
    """A fault that befalls a share of the attempts, drawn by (seed, request, attempt).

    `from_s`, `until_s` (None: the end): the window of the run, counted from the endpoint's first call. `retry_after_s` goes with 429 and
    5xx. `factor` slows a `slow` answer.
    """

    kind: FaultKind
    probability: Fraction
    from_s: NonNegative = 0.0
    until_s: Positive | None = None
    retry_after_s: NonNegative | None = None
    factor: Annotated[float, Field(ge=1, le=10_000)] = 10.0


class PromptCacheSpec(Spec):
    """Prompt caching by prefix, for `ttl_s` (5 minutes) or `long_ttl_s` (1 hour), each renewed by use.

    Explicit `cache_control` marks in a body are honoured where there is a body. `automatic`: a tagged call counts as one
    cached prefix named by its prompt id, so that live and virtual calls see the same cache.
    """

    enabled: bool = True
    automatic: bool = False
    ttl_s: Positive = 300.0
    long_ttl_s: Positive = 3600.0
    max_entries: Count = 100_000


class EndpointProfile(Spec):
    """An endpoint: its service, limits, faults and caches.

    Attributes:
        source: where the numbers come from; `synthetic`: not fitted to a measurement.
        lines: services and limits of single model lines (haiku, sonnet, opus, fable) that differ from the defaults.
        models: names that the endpoint knows beside those of the price file.
        output_tokens: length of an answer that no tag fixes, drawn by the prompt and cut at `max_tokens`.
        speedup: divides every time and multiplies every rate; 60 plays a minute in a second.
    """

    name: str = "custom"
    synthetic: bool = True
    source: str = ""
    service: Service
    output_tokens: Distribution
    limits: LimitsSpec = LimitsSpec()
    lines: Mapping[str, LineSpec] = {}
    models: tuple[str, ...] = ()
    overload: OverloadSpec | None = None
    faults: tuple[FaultSpec, ...] = ()
    prompt_cache: PromptCacheSpec = PromptCacheSpec()
    speedup: Positive = 1.0


class LineSpec(Spec):
    """What one model line has of its own."""

    service: Service | None = None
    limits: LimitsSpec | None = None


EndpointProfile.model_rebuild()

# Published limits per model class of the tiers Start, Build and Scale (November 2026), and the former tiers 1 to 4 for
# Sonnet, which are useful small numbers. Each with a second of burst.
LIMIT_TIERS: Mapping[str, LimitsSpec] = {
    name: LimitsSpec(
        requests_per_min=requests, input_tokens_per_min=inputs, output_tokens_per_min=outputs
    )
    for name, requests, inputs, outputs in (
        ("start", 1_000, 2_000_000, 400_000),
        ("build", 5_000, 5_000_000, 1_000_000),
        ("scale", 10_000, 10_000_000, 2_000_000),
        ("tier1", 50, 30_000, 8_000),
        ("tier2", 1_000, 450_000, 90_000),
        ("tier3", 2_000, 800_000, 160_000),
        ("tier4", 4_000, 2_000_000, 400_000),
    )
}


@cache
def shipped_profiles() -> tuple[str, ...]:
    """Names of the profiles that come with the package, sorted."""
    folder = resources.files("simulation.scenario") / "profiles"
    return tuple(
        sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))
    )


def load_profile(name_or_path: str | Path) -> EndpointProfile:
    """The shipped profile of that name, or the one in that YAML file; raises ProfileError in one line."""
    name = str(name_or_path)
    if name in shipped_profiles():
        shipped = resources.files("simulation.scenario") / "profiles" / f"{name}.yaml"
        return _parse(shipped.read_text("utf-8"), f"profile {name}")
    path = Path(name_or_path)
    if not path.is_file():
        raise ProfileError(
            f"profile {name!r}: neither a file nor one of {', '.join(shipped_profiles())}"
        )
    return _parse(path.read_text("utf-8"), str(path))


def _parse(text: str, origin: str) -> EndpointProfile:
    try:
        # YAML 1.1 reads JSON's `1e-05` as text.
        document: Any = json.loads(text) if origin.endswith(".json") else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ProfileError(f"{origin}: cannot be read: {' '.join(str(error).split())}") from error
    try:
        return EndpointProfile.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        if first["type"] == "missing":  # what was found is the group around it, whatever that is
            raise ProfileError(f"{origin}: {field}: missing; it has no default") from error
        found = repr(first["input"])
        shown = found if len(found) <= 80 else found[:77] + "..."
        raise ProfileError(f"{origin}: {field}: {first['msg']}; found {shown}") from error
