"""What must be right of a request in a batch before it is forwarded.

It is looked at when the request is worked on and not when the batch is submitted: as in the Message Batches API, a request that
is wrong has an `errored` result, and the others are answered.
"""

from __future__ import annotations

import msgspec

from reference_impl.errors import InvalidRequest
from reference_impl.messages import MaxTokens

__all__ = ["BatchParams", "parse_params"]


class BatchParams(msgspec.Struct):
    """The fields of a Messages request that decisions need; the rest is the endpoint's business."""

    model: str
    max_tokens: MaxTokens
    messages: list[msgspec.Raw]
    stream: bool = False


_decode = msgspec.json.Decoder(BatchParams).decode


def parse_params(body: bytes) -> BatchParams:
    """The fields of a request's `params`. Raises InvalidRequest that names what is wrong."""
    try:
        params = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"params: {error}") from error
    if params.stream:
        raise InvalidRequest("params.stream: cannot be true in a batch")
    return params
