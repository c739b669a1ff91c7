"""What must be right of a Messages request before it is forwarded."""

from __future__ import annotations

from typing import Final

import msgspec

from reference_impl.errors import InvalidRequest
from reference_impl.messages import MaxTokens

__all__ = ["NO_HEAD", "RequestHead", "read_head"]


class RequestHead(msgspec.Struct):
    """The fields of a Messages request that decisions need; the rest is the endpoint's business."""

    model: str
    max_tokens: MaxTokens
    messages: list[msgspec.Raw]
    stream: bool = False


# Of a request that could not be read.
NO_HEAD: Final = RequestHead("", 0, [])

_decode = msgspec.json.Decoder(RequestHead).decode


def read_head(body: bytes, what: str) -> RequestHead:
    """The head of `body`. Raises InvalidRequest that begins with `what` and names what is wrong."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"{what}: {error}") from error
