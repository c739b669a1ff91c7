"""Bodies that no client should send: always an error in the API's shape, never a 500, never a hang."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.loadtests.mock.process import Mock

_VALID: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
    "system": [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
    "tools": [
        {"name": "t", "input_schema": {"type": "object", "properties": {"a": {"enum": [1]}}}}
    ],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "disabled"},
    "stop_sequences": ["END"],
    "metadata": {"user_id": "u"},
    "output_config": {"effort": "low"},
    "stream": False,
}

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "text", "name", "role", "content", "x", "ttl"])
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document."""
    if path:
        yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _paths(inner, (*path, i))


_PLACES = list(_paths(_VALID))


def _with(path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    document = msgspec.json.decode(msgspec.json.encode(_VALID))
    target = document
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = new
    return document  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def http(mock: Mock) -> Iterator[httpx2.Client]:
    headers = {"x-api-key": "key", "anthropic-version": "2026-10-21"}
    with httpx2.Client(base_url=mock.url, headers=headers, timeout=10) as client:
        yield client


def _check(answer: httpx2.Response, *, may_pass: bool) -> None:
    if answer.status_code == 200 and may_pass:
        return
    assert 400 <= answer.status_code < 500, answer.text
    body = answer.json()
    assert body["type"] == "error"
    assert set(body["error"]) >= {"type", "message"}
    assert body["request_id"] == answer.headers["request-id"]


_quick = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@_quick
@given(body=st.binary(max_size=200))
def test_bytes_that_are_no_request(http: httpx2.Client, path: str, body: bytes) -> None:
    _check(http.post(path, content=body), may_pass=False)


@_quick
@given(place=st.sampled_from(_PLACES), new=_json)
def test_a_request_with_one_place_changed(
    http: httpx2.Client, place: tuple[Any, ...], new: Any
) -> None:
    for path in ("/v1/messages", "/v1/messages?beta=true"):
        _check(http.post(path, content=msgspec.json.encode(_with(place, new))), may_pass=True)


_keywords = st.sampled_from(
    ["type", "properties", "required", "items", "minItems", "anyOf", "allOf", "$ref", "enum",
     "minimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "format", "const"]
)  # fmt: skip
_schema = st.recursive(
    st.sampled_from(["object", "array", "integer", "number", "#", "#/properties/a", "a", "date"])
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keywords, inner, max_size=4),
    max_leaves=12,
)


@_quick
@given(schema=_schema, name=st.sampled_from(["properties", "required", "anyOf", "allOf", "$ref"]))
def test_a_forced_tool_call_with_any_schema(http: httpx2.Client, schema: Any, name: str) -> None:
    body = {
        **_VALID,
        "max_tokens": 500,
        "tools": [{"name": "t", "input_schema": {"type": "object", name: schema}}],
        "tool_choice": {"type": "any"},
    }
    _check(http.post("/v1/messages", content=msgspec.json.encode(body)), may_pass=True)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"\xff\xfe",
        b'{"model":"\\ud800","max_tokens":1,"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"claude-sonnet-5-5","max_tokens":1e999,"messages":[]}',
        b'{"model":"claude-sonnet-5-5","max_tokens":99999999999999999999999,"messages":[]}',
        b"null",
        b"{}",
        b"",
    ],
)
def test_the_classics(http: httpx2.Client, body: bytes) -> None:
    for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"):
        _check(http.post(path, content=body), may_pass=False)


@pytest.mark.parametrize(
    "header",
    [
        {"x-twinload-request": "id=99999999999999999999"},
        {"x-twinload-request": "input=5"},
        {"x-mock-fault": "kind=teapot"},
        {"x-mock-fault": "kind=429;retry_after=-1"},
        {"anthropic-version": "not a version \xe9"},
    ],
)
def test_headers_that_cannot_be_read(http: httpx2.Client, header: dict[str, str]) -> None:
    body = {**_VALID}
    headers = [(name.encode(), value.encode("latin-1")) for name, value in header.items()]
    _check(http.post("/v1/messages", json=body, headers=headers), may_pass=False)
