"""What travels through the system: one call, its answer, and the tag that ties both to a compiled workload.

The path from the gateway to the endpoint is a chain of `complete(call, emit) -> Completion` (`llm/port.py`). A call carries
what decisions need (model, sizes, content key) beside the body, which only the edges read: live calls hold the bytes that
the client sent; virtual calls hold none, and a content key that was computed once per prompt.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import msgspec

from reference_impl.errors import InvalidRequest
from reference_impl.telemetry import RequestTrace

__all__ = [
    "ATTEMPT_STRIDE",
    "MAX_OUTPUT_TOKENS",
    "TAG_HEADER",
    "Call",
    "Chunk",
    "Completion",
    "Emit",
    "MaxTokens",
    "RequestTag",
    "Usage",
    "content_key",
]

TAG_HEADER = "x-twinload-request"
BYTES_PER_KB = 1024
# Attempts of whoever tries again from outside (a client, another run of a batch's request) are this far apart in the tag, so
# that they never share luck with those of a processor behind.
ATTEMPT_STRIDE = 100
# No model writes a fiftieth of it, and what it costs is a number that every store of money can hold.
MAX_OUTPUT_TOKENS: Final = 10_000_000

# `max_tokens` of a request, as the edges take it.
MaxTokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_OUTPUT_TOKENS)]

# A tag as `RequestTag.encode` writes it.
_canonical_tag = re.compile(
    r"id=([0-9]{1,18});attempt=([0-9]{1,18});prompt=([0-9]{1,18});"
    r"input=([0-9]{1,18});output=([0-9]{1,18})"
).fullmatch
_custom_id = re.compile(r"twinload-([0-9]{1,13})-([0-9]{1,13})-([0-9]{1,7})-([0-9]{1,7})").fullmatch


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Tokens of one answer, as the Messages API counts them (`input_tokens` excludes both cache counts).

    `cache_creation_1h_input_tokens` are those of the cache writes that are kept for an hour, which cost more.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cache_creation_1h_input_tokens: int = 0


class RequestTag(msgspec.Struct, frozen=True, gc=False):
    """What a compiled workload fixed for a request; travels in the header `x-twinload-request`.

    Every random attribute is drawn by (seed, purpose, request id, attempt), so the tag gives the live mock the same luck
    as the virtual endpoint. It is passed on to mocks only, never to a real provider.
    """

    request_id: int
    attempt: int = 0
    prompt_id: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def encode(self) -> str:
        return (
            f"id={self.request_id};attempt={self.attempt};prompt={self.prompt_id};"
            f"input={self.input_tokens};output={self.output_tokens}"
        )

    def custom_id(self) -> str:
        """The tag as the `custom_id` of a request in a batch, which has no headers of its own."""
        return (
            f"twinload-{self.request_id}-{self.prompt_id}-{self.input_tokens}-{self.output_tokens}"
        )

    @classmethod
    def of_custom_id(cls, custom_id: str) -> RequestTag | None:
        """The tag of a `custom_id` that is one; None for any other."""
        found = _custom_id(custom_id)
        if found is None:
            return None
        row, prompt, tokens_in, tokens_out = map(int, found.groups())
        return cls(row, 0, prompt, tokens_in, tokens_out)

    @classmethod
    def decode(cls, text: str) -> RequestTag:
        """Parse a header's value; raises InvalidRequest that names the offending part."""
        canonical = _canonical_tag(text)
        if canonical is not None:  # in a third of the time
            row, attempt, prompt, tokens_in, tokens_out = canonical.groups()
            return cls(int(row), int(attempt), int(prompt), int(tokens_in), int(tokens_out))
        names = {
            "id": "request_id",
            "attempt": "attempt",
            "prompt": "prompt_id",
            "input": "input_tokens",
            "output": "output_tokens",
        }
        fields: dict[str, int] = {}
        for part in text.split(";"):
            name, _, value = part.strip().partition("=")
            if name not in names or not value.isdecimal() or len(value) > 18:
                raise InvalidRequest(
                    f"{TAG_HEADER}: bad part {part[:40]!r}: expected {'|'.join(names)}=<digits>"
                )
            fields[names[name]] = int(value)
        if "request_id" not in fields:
            raise InvalidRequest(f"{TAG_HEADER}: 'id=<digits>' is missing")
        return cls(**fields)


class Chunk(msgspec.Struct, frozen=True, gc=False):
    """A piece of a streamed answer: `data` holds whole server-sent events (empty in virtual time).

    `content` tells whether it carries generated tokens: the first such chunk is the first token. In virtual time one
    chunk may stand for `count` of them that follow at an even rate over the next `over_s` seconds, `size_bytes` in all:
    a stream is then two events, and the work of the chunks between is charged as a rate.
    """

    data: bytes = b""
    content: bool = True
    count: int = 1
    over_s: float = 0.0
    size_bytes: int = 0


Emit = Callable[[Chunk], Awaitable[None]]


class Completion(msgspec.Struct, frozen=True, gc=False):
    """A finished answer.

    `body` is the message as JSON (what a non-streamed client receives), empty in virtual time; `size_bytes` is its
    size in both worlds.
    """

    usage: Usage
    stop_reason: str = "end_turn"
    body: bytes = b""
    size_bytes: int = 0


class Call(msgspec.Struct, kw_only=True, gc=False):
    """One request on its way through one process.

    `attempt` counts tries of this request, over retries and hedges. `input_tokens` is an estimate before the endpoint
    has counted. `key` is the content key where it is known already (see `content_key`). `deadline_s` is the instant on
    this process's loop clock after which nobody waits for the answer.
    """

    request_id: int
    model: str
    max_tokens: int
    stream: bool
    trace: RequestTrace
    tenant: str = ""
    attempt: int = 0
    priority: int = 0
    input_tokens: int = 0
    size_bytes: int = 0
    body: bytes = b""
    tag: RequestTag | None = None
    key: str = ""
    deadline_s: float = math.inf


# Fields of a Messages request that do not change the answer.
_IRRELEVANT_FIELDS = frozenset({"stream", "metadata", "service_tier"})


def content_key(call: Call) -> str:
    """Hex digest (128 bits of blake2b) of the canonical request: equal for requests with equal answers.

    Canonical: the JSON body with keys sorted, without the fields that do not change the answer. Scoped by tenant.
    """
    if not call.key:
        document = msgspec.json.decode(call.body)
        relevant = {k: v for k, v in document.items() if k not in _IRRELEVANT_FIELDS}
        digest = hashlib.blake2b(digest_size=16)
        digest.update(call.tenant.encode())
        digest.update(b"\x00")
        digest.update(msgspec.json.encode(relevant, order="deterministic"))
        call.key = digest.hexdigest()
    return call.key
