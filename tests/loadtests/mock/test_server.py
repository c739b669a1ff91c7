"""The mock on the wire: routes, headers, errors, keys, and the life of its process."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from loadtests.mock_llm import main
from tests.loadtests.mock.process import Mock, running_mock, server_process

HEADERS = {"x-api-key": "key", "anthropic-version": "2023-06-01"}
BODY: dict[str, Any] = {
    "model": "claude-sonnet-5-5",
    "max_tokens": 3,
    "messages": [{"role": "user", "content": "hello"}],
}


@pytest.fixture
def http(mock: Mock) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=mock.url, headers=HEADERS) as client:
        yield client


def _error(answer: httpx2.Response) -> tuple[int, str, str]:
    """(status, type, message) of an error, whose shape is checked."""
    body = answer.json()
    assert body["type"] == "error"
    assert body["request_id"] == answer.headers["request-id"]
    return answer.status_code, body["error"]["type"], body["error"]["message"]


def test_a_stream_is_written_with_event_lines_and_no_end_mark(http: httpx2.Client) -> None:
    answer = http.post("/v1/messages", json={**BODY, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events.pop() == ""
    for event in events:
        name, data = event.split("\n")
        kind = msgspec.json.decode(data.removeprefix("data: "))["type"]
        assert name == f"event: {kind}"
    assert "event: ping" in answer.text
    assert "[DONE]" not in answer.text


def test_both_pairs_of_authentication_and_version_are_accepted(mock: Mock) -> None:
    pairs = [
        {"authorization": "Bearer key", "anthropic-version": "2026-10-21"},
        {"x-api-key": "key", "anthropic-version": "2023-06-01"},
    ]
    for headers in pairs:
        assert httpx2.post(f"{mock.url}/v1/messages", json=BODY, headers=headers).status_code == 200
    both = {**pairs[0], "x-api-key": "sk-ant-invalid-x"}  # x-api-key wins
    answer = httpx2.post(f"{mock.url}/v1/messages", json=BODY, headers=both)
    assert _error(answer)[:2] == (401, "authentication_error")


def test_a_missing_key_or_version_is_told(mock: Mock) -> None:
    url = f"{mock.url}/v1/messages"
    without_key = httpx2.post(url, json=BODY, headers={"anthropic-version": "2023-06-01"})
    assert _error(without_key)[0] == 401
    without_version = httpx2.post(url, json=BODY, headers={"x-api-key": "key"})
    assert _error(without_version) == (
        400,
        "invalid_request_error",
        "anthropic-version: header is required",
    )


def test_sampling_arguments_are_refused_by_the_newest_version_only(http: httpx2.Client) -> None:
    body = {**BODY, "temperature": 0.5}
    assert http.post("/v1/messages", json=body).status_code == 200
    newest = http.post("/v1/messages", json=body, headers={"anthropic-version": "2026-10-21"})
    assert _error(newest)[2] == "temperature: Extra inputs are not permitted"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"max_tokens": "3"}, "max_tokens: Expected `int`, got `str`"),
        ({"max_tokens": 1_000_000}, "max_tokens: 1000000 > 128000"),
        ({"colour": "red"}, "colour: Extra inputs are not permitted"),
        ({"messages": []}, "messages: at least one message is required"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages.0: all messages must have"),
        (
            {"messages": [{"role": "user", "content": [{"type": "poem"}]}]},
            "messages.0.content.0: Input tag 'poem'",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice: may only be specified while"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens: Input"),
        ({"stop_sequences": [" "]}, "stop_sequences.0: each stop sequence must contain"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(http: httpx2.Client, changes: dict[str, Any], message: str) -> None:
    for stream in (False, True):  # before the first event, a stream's error is plain JSON
        answer = http.post("/v1/messages", json={**BODY, **changes, "stream": stream})
        status, kind, text = _error(answer)
        assert (status, kind) == (400, "invalid_request_error")
        assert text.startswith(message)


def test_a_missing_field_is_named(http: httpx2.Client) -> None:
    for name in ("model", "messages", "max_tokens"):
        body = {k: v for k, v in BODY.items() if k != name}
        assert _error(http.post("/v1/messages", json=body))[2] == f"{name}: Field required"


def test_beta_requests_may_carry_unknown_fields(http: httpx2.Client) -> None:
    body = {**BODY, "colour": "red"}
    assert http.post("/v1/messages?beta=true", json=body).status_code == 200
    beta = {"anthropic-beta": "something-2026"}
    assert http.post("/v1/messages", json=body, headers=beta).status_code == 200


def test_a_body_beyond_the_limit_is_refused_before_it_was_read(mock: Mock) -> None:
    with socket.create_connection(("127.0.0.1", mock.port), timeout=5) as connection:
        connection.sendall(
            b"POST /v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: key\r\n"
            b"anthropic-version: 2023-06-01\r\ncontent-length: 33554433\r\n\r\n{"
        )
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"request_too_large"' in answer


def test_unknown_routes_and_methods_are_errors_in_shape(http: httpx2.Client) -> None:
    assert _error(http.get("/v1/nothing"))[:2] == (404, "not_found_error")
    assert _error(http.get("/v1/messages"))[0] == 405
    assert _error(http.delete("/v1/models"))[0] == 405


def test_probes_need_no_key(mock: Mock) -> None:
    assert httpx2.head(mock.url).status_code == 200
    assert httpx2.get(f"{mock.url}/healthz").json()["status"] == "ok"
    assert "mock_requests_total" in httpx2.get(f"{mock.url}/metrics").text


def test_a_tag_fixes_luck_and_lengths(http: httpx2.Client, mock: Mock) -> None:
    body = {**BODY, "max_tokens": 1000}
    tag = {"x-twinload-request": "id=5;attempt=1;prompt=9;input=77;output=13"}
    answers = [http.post("/v1/messages", json=body, headers=tag).json() for _ in range(2)]
    assert answers[0] == answers[1]
    assert answers[0]["usage"]["input_tokens"] == 77
    assert answers[0]["usage"]["output_tokens"] == 13
    record = mock.wait_for(lambda r: r["request_id"] == 5)
    assert (record["attempt"], record["prompt_id"], record["input_tokens"]) == (1, 9, 77)
    bad = http.post("/v1/messages", json=body, headers={"x-twinload-request": "id=x"})
    assert "x-twinload-request" in _error(bad)[2]


def test_every_attempt_leaves_one_line_with_what_was_billed(
    http: httpx2.Client, mock: Mock
) -> None:
    tag = {"x-twinload-request": "id=123;prompt=1;input=1000;output=100"}
    http.post("/v1/messages", json={**BODY, "max_tokens": 1000}, headers=tag)
    http.post("/v1/messages", json={**BODY, "max_tokens": 0}, headers=tag)
    mock.wait_for(lambda r: r["request_id"] == 123 and r["status"] == 400)
    lines = [r for r in mock.records() if r["request_id"] == 123]
    assert [r["status"] for r in lines] == [200, 400]
    assert lines[0]["cost_usd"] == pytest.approx((1000 * 2 + 100 * 10) / 1e6)
    assert lines[0]["account"].startswith("key-")


def test_the_fault_header_is_refused_where_it_was_not_allowed(tmp_path: Path) -> None:
    with running_mock(tmp_path, "--profile", "instant") as mock:
        headers = {**HEADERS, "x-mock-fault": "kind=529"}
        answer = httpx2.post(f"{mock.url}/v1/messages", json=BODY, headers=headers)
    assert "--allow-fault-header" in _error(answer)[2]


def test_a_key_file_says_who_may_call_and_no_key_reaches_the_log(tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("key-of-a: team-a\nkey-of-b: {account: team-b, state: blocked}\n")
    with running_mock(tmp_path, "--profile", "instant", "--keys", str(keys)) as mock:
        url = f"{mock.url}/v1/messages"

        def status(key: str) -> int:
            headers = {**HEADERS, "x-api-key": key}
            return httpx2.post(url, json=BODY, headers=headers).status_code

        assert [status(k) for k in ("key-of-a", "key-of-b", "key-of-c")] == [200, 403, 401]
        record = mock.wait_for(lambda r: r["status"] == 200)
    assert record["account"] == "team-a"
    assert b"key-of" not in mock.log.read_bytes()


def test_limits_are_told_in_headers_and_a_refusal_says_when_to_come_back(tmp_path: Path) -> None:
    with running_mock(tmp_path, "--profile", "instant", "--limits", "tier1") as mock:
        url = f"{mock.url}/v1/messages"
        began_s = time.monotonic()
        first = httpx2.post(url, json=BODY, headers=HEADERS)
        second = httpx2.post(url, json=BODY, headers=HEADERS)
        between_s = time.monotonic() - began_s
    kinds = ("requests", "tokens", "input-tokens", "output-tokens")
    for answer in (first, second):
        for kind in kinds:
            for part in ("limit", "remaining", "reset"):
                assert f"anthropic-ratelimit-{kind}-{part}" in answer.headers
    assert first.headers["anthropic-ratelimit-requests-limit"] == "50"
    assert first.headers["anthropic-ratelimit-input-tokens-limit"] == "30000"
    assert first.headers["anthropic-ratelimit-tokens-limit"] == "8000"  # the most restrictive
    assert int(first.headers["anthropic-ratelimit-input-tokens-remaining"]) % 1000 == 0
    assert first.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert _error(second)[:2] == (429, "rate_limit_error")
    # 50 a minute, one held: 1.2 s in whole seconds, less what has passed between the two.
    assert math.ceil(1.2 - between_s) <= int(second.headers["retry-after"]) <= 2


def test_it_ends_cleanly_while_streams_are_open(tmp_path: Path) -> None:
    with running_mock(tmp_path, "--profile", "sonnet-class") as mock:
        stream = {**BODY, "stream": True, "max_tokens": 10_000}
        headers = {**HEADERS, "x-twinload-request": "id=1;output=10000"}
        with (
            httpx2.Client() as client,
            client.stream(
                "POST", f"{mock.url}/v1/messages", json=stream, headers=headers
            ) as answer,
        ):
            received = answer.iter_raw()
            next(received)
            # `server_process` demands status 0 within ten seconds of SIGTERM: 150 s of stream are cut off.
            os.kill(mock.pid, signal.SIGTERM)
            with pytest.raises((httpx2.RemoteProtocolError, httpx2.ReadError)):
                list(received)
    last = mock.records()[-1]
    assert (last["request_id"], last["status"]) == (1, 499)


def test_its_process_loads_neither_simpy_nor_locust() -> None:
    code = (
        "import sys, loadtests.mock_llm; "
        "print([m for m in ('simpy', 'locust', 'gevent', 'anthropic', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "nothing"), "profile 'nothing': neither a file nor one of fast, "),
        (("--limits", "nothing"), "--limits nothing: neither a file nor one of none, start, "),
        (("--keys", "/nowhere.yaml"), "key file /nowhere.yaml: No such file"),
        (("--prices", "/nowhere.yaml"), "price file /nowhere.yaml: No such file"),
        (("--speedup", "0"), "--speedup 0: must be greater than 0"),
        (("--log", "/nowhere/log"), "--log /nowhere/log: No such file or directory"),
        (("--port", "70000"), "--port 70000: must be 0 to 65535"),
    ],
)
def test_bad_options_end_with_one_clear_line(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {message}")
    assert said.count("\n") == 1


def test_a_taken_port_is_one_clear_line() -> None:
    with server_process("loadtests.mock_llm", "--profile", "instant") as (url, _):
        taken = url.rsplit(":", 1)[1]
        second = subprocess.run(
            [sys.executable, "-m", "loadtests.mock_llm", "--port", taken],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"port {taken}" in second.stderr


def test_a_self_hosted_engine_streams_token_by_token_and_forgets_who_leaves(
    tmp_path: Path,
) -> None:
    (tmp_path / "engine.yaml").write_text(
        "name: engine\n"
        "service: {kind: self_hosted, max_num_seqs: 1, decode_base_s: 0.01,"
        " decode_per_sequence_s: 0, prefill_tokens_per_s: 100000}\n"
        "output_tokens: 20\n"
    )
    long = {"x-twinload-request": "id=1;output=90000"}
    short = {"x-twinload-request": "id=2;input=100;output=20"}
    body = {**BODY, "max_tokens": 90_000, "stream": True}
    with running_mock(tmp_path, "--profile", str(tmp_path / "engine.yaml")) as mock:
        url = f"{mock.url}/v1/messages"
        # The one place in the batch is taken for 900 s, by a client that leaves after its first token.
        with (
            httpx2.Client(headers=HEADERS) as client,
            client.stream("POST", url, json=body, headers=long) as held,
        ):
            next(held.iter_raw())
        answer = httpx2.post(url, json=body, headers={**HEADERS, **short}, timeout=10)
        assert answer.text.count("event: content_block_delta") == 20
        record = mock.wait_for(lambda r: r["request_id"] == 2)
        assert 0.2 <= record["endpoint_s"] < 1.0
        assert record["drawn_endpoint_s"] is None
