"""How large a call's prompt and answer are: as its tag says, else as its body does."""

from __future__ import annotations

import hashlib

from reference_impl.errors import InvalidRequest, NotFound
from reference_impl.messages import Call
from simulation.models.endpoint.lines import Lines
from simulation.models.endpoint.request_types import MessagesRequest
from simulation.models.endpoint.tokens import count_prompt
from simulation.scenario.distributions import Distribution
from simulation.scenario.random_streams import uniforms

__all__ = ["check_sizes", "prompt_of", "wanted_tokens"]

# Of models that the price file does not list.
_MAX_OUTPUT_TOKENS = 128_000
_MAX_INPUT_TOKENS = 1_000_000


def prompt_of(call: Call, request: MessagesRequest | None) -> tuple[int, int]:
    """(prompt id, input tokens). Without a tag, the id is a digest of the prompt."""
    tag = call.tag
    if tag is not None and (tag.input_tokens or request is None):
        return tag.prompt_id, tag.input_tokens
    if request is None:
        return call.request_id, call.input_tokens
    digest = hashlib.blake2b(digest_size=6)
    digest.update(repr((request.model, request.system, request.messages)).encode())
    return int.from_bytes(digest.digest(), "big"), count_prompt(request)


def wanted_tokens(call: Call, prompt_id: int, lengths: Distribution, seed: int) -> int:
    """Output tokens before `max_tokens` cuts; without a tag, drawn by the prompt."""
    if call.tag is not None and call.tag.output_tokens:
        return call.tag.output_tokens
    return max(1, round(lengths.quantile(uniforms(seed, "answer", prompt_id)[0])))


def check_sizes(request: MessagesRequest, prompt_tokens: int, lines: Lines) -> None:
    """Raises NotFound for an unknown model, InvalidRequest for what is too long for it."""
    if not lines.knows(request.model):
        raise NotFound(f"model: {request.model[:100]}")
    entry = lines.price(request.model)
    longest = _MAX_OUTPUT_TOKENS if entry is None else entry.max_output_tokens
    if request.max_tokens > longest:
        raise InvalidRequest(
            f"max_tokens: {request.max_tokens} > {longest}, which is the maximum allowed number "
            f"of output tokens for {request.model}"
        )
    longest = _MAX_INPUT_TOKENS if entry is None else entry.max_input_tokens
    if prompt_tokens > longest:
        raise InvalidRequest(f"prompt is too long: {prompt_tokens} tokens > {longest} maximum")
