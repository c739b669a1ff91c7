"""A Messages request as it arrives on the wire: parsed, checked, and refused as the real API refuses it."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

from reference_impl.errors import InvalidRequest
from simulation.models.endpoint.request_checks import check_options, check_prompt
from simulation.models.endpoint.request_types import CountRequest, MessagesRequest

__all__ = [
    "CURRENT_VERSION",
    "KNOWN_VERSIONS",
    "RefusedRequest",
    "parse_count",
    "parse_messages",
]

CURRENT_VERSION: Final = "2026-10-21"
KNOWN_VERSIONS: Final = frozenset({"2023-01-01", "2023-06-01", CURRENT_VERSION})

_SAMPLING: Final = ("temperature", "top_p", "top_k")


class RefusedRequest(InvalidRequest):
    """An InvalidRequest with the machine-readable `error.details` that some clients act on."""

    def __init__(self, message: str, details: dict[str, Any]) -> None:
        super().__init__(message)
        self.details = details


class _StrictMessages(MessagesRequest, kw_only=True, forbid_unknown_fields=True):
    pass


class _StrictCount(CountRequest, kw_only=True, forbid_unknown_fields=True):
    pass


_strict_messages = msgspec.json.Decoder(_StrictMessages)
_lenient_messages = msgspec.json.Decoder(MessagesRequest)
_strict_count = msgspec.json.Decoder(_StrictCount)
_lenient_count = msgspec.json.Decoder(CountRequest)


class _ThreadField(msgspec.Struct):
    thread: Any = None


_thread_field = msgspec.json.Decoder(_ThreadField)


def parse_messages(
    body: bytes, *, version: str = CURRENT_VERSION, beta: bool = False
) -> MessagesRequest:
    """The checked request; raises InvalidRequest with the field in front, as the API words it.

    `beta`: unknown fields are let through (`?beta=true` or an `anthropic-beta` header).
    """
    decoder = _lenient_messages if beta else _strict_messages
    try:
        request = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(_worded(error)) from error
    if beta and b'"thread"' in body and _thread_field.decode(body).thread is not None:
        raise RefusedRequest(
            "thread: this endpoint keeps no threads",
            {"error_code": "thread_unsupported_request"},
        )
    if version == CURRENT_VERSION:
        for name in _SAMPLING:
            if getattr(request, name) is not None:
                raise InvalidRequest(f"{name}: Extra inputs are not permitted")
    check_prompt(request)
    check_options(request)
    return request


def parse_count(body: bytes, *, beta: bool = False) -> CountRequest:
    """The checked body of count_tokens; raises InvalidRequest."""
    decoder = _lenient_count if beta else _strict_count
    try:
        request = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(_worded(error)) from error
    check_prompt(request)
    return request


_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<name>[^`]*)`")
_MISSING_FIELD = re.compile(r"Object missing required field `(?P<name>[^`]*)`")
_PATH = re.compile(r" - at `(?:key in )?\$(?P<path>.*)`$", re.DOTALL)


def _worded(error: Exception) -> str:
    """A decoder's complaint as `field.path: what is wrong`."""
    text = str(error)
    place = _PATH.search(text)
    if place is None and not text.startswith("Object "):
        return f"The request body is not valid JSON: {text[:200]}"
    path = "" if place is None else place["path"].replace("[", ".").replace("]", "").lstrip(".")
    what = text[: place.start()] if place else text
    prefix = f"{path}." if path else ""
    if unknown := _UNKNOWN_FIELD.match(what):
        return f"{prefix}{unknown['name'][:100]}: Extra inputs are not permitted"
    if missing := _MISSING_FIELD.match(what):
        return f"{prefix}{missing['name']}: Field required"
    return f"{path or 'body'}: {what[:200]}"
