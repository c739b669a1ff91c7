"""What must be right of a request in a batch before it is forwarded.

It is looked at when the request is worked on and not when the batch is submitted: as in the Message Batches API, a request that
is wrong has an `errored` result, and the others are answered.
"""

from __future__ import annotations

from reference_impl.errors import InvalidRequest
from reference_impl.request_head import RequestHead, read_head

__all__ = ["parse_params"]


def parse_params(body: bytes) -> RequestHead:
    """The head of a request's `params`. Raises InvalidRequest that names what is wrong."""
    params = read_head(body, "params")
    if params.stream:
        raise InvalidRequest("params.stream: cannot be true in a batch")
    return params
