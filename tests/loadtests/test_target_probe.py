"""What is asked of a target before a run: whether it speaks the Messages API and takes our key."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadtests.child_process import ChildProcess, python_module
from loadtests.target import BadTarget
from loadtests.target_probe import probe
from tests.command_line import run_twinload


@contextmanager
def answering(status: int, error: str = "") -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """A server that answers every POST like this: its address, and what it was sent."""
    seen: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["content-length"])
            seen.append((self.path, self.rfile.read(length)))
            body = json.dumps({"type": "error", "error": {"type": error}}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: Any) -> None:
            """Nobody reads it."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "key", "said"),
    [
        (401, "", "401 authentication_error: set ANTHROPIC_API_KEY"),
        (401, "k", "401 authentication_error: it refuses the key in ANTHROPIC_API_KEY"),
        (403, "k", "403 authentication_error: it refuses the key in ANTHROPIC_API_KEY"),
        (404, "k", "404 authentication_error: is it a Messages API? Requests go to http://"),
        (301, "k", "301 authentication_error: is it a Messages API?"),
    ],
)
def test_an_answer_that_every_request_would_get_is_refused(
    status: int, key: str, said: str
) -> None:
    with (
        answering(status, "authentication_error") as (url, _),
        pytest.raises(BadTarget, match=f"^target {url}: ") as refused,
    ):
        probe(url, key)
    assert said in str(refused.value)


@pytest.mark.parametrize("status", [200, 400, 422, 429, 500, 529])
def test_whatever_else_a_target_says_is_for_the_run_to_measure(status: int) -> None:
    with answering(status) as (url, seen):
        probe(f"{url}/prefix/", "key")
    assert seen == [("/prefix/v1/messages", b"{}")]


def test_what_speaks_no_http_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def banner() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 smtp\r\n")
                connection.recv(65536)

        thread = threading.Thread(target=banner)
        thread.start()
        with pytest.raises(BadTarget, match=r"no answer in HTTP .*; is it a Messages API"):
            probe(f"http://127.0.0.1:{listener.getsockname()[1]}", "")
        thread.join()


def test_a_key_that_no_header_takes_is_refused_without_being_shown() -> None:
    with (
        answering(200) as (url, seen),
        pytest.raises(BadTarget, match="no header takes") as refused,
    ):
        probe(url, "secret\r\nx: y")
    assert "secret" not in str(refused.value)
    assert seen == []


def test_a_swarm_against_the_mock_with_a_wrong_key_is_refused_and_with_the_right_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("right: account\n")
    arguments = ("swarm", "demo", "--set", "horizon_s=1", "--out", str(tmp_path / "run"), "--json")
    mock = ChildProcess("mock", python_module("loadtests.mock_llm", "--keys", str(keys)), tmp_path)
    try:
        url = mock.wait_ready(20.0)["ready"]
        for key, advice in (("", "set ANTHROPIC_API_KEY"), ("wrong", "it refuses the key")):
            monkeypatch.setenv("ANTHROPIC_API_KEY", key)
            refused = run_twinload(*arguments, "--target", url)
            assert (refused.status, refused.out) == (2, "")
            assert f"401 authentication_error: {advice}" in refused.err
            assert not (tmp_path / "run").exists()
        monkeypatch.setenv("ANTHROPIC_API_KEY", "right")
        outcomes = json.loads(run_twinload(*arguments, "--target", url).out)["outcomes"]
        assert set(outcomes) == {"ok"}
    finally:
        mock.stop(2.0)
