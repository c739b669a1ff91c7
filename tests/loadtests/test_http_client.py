"""The client against a real server, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import pytest

from loadtests.http_client import HttpClient
from loadtests.reply import Reply
from loadtests.target import BadTarget, parse_target
from tests.loadtests.gevent_server import WHOLE, Request, serving

LIMIT_S = 5.0


def post(client: HttpClient, **limits: float) -> Reply:
    return client.post(
        "/v1/messages", "x-key: k\r\n", b'{"a":1}', **({"timeout_s": LIMIT_S} | limits)
    )


@pytest.fixture
def client() -> Iterator[list[HttpClient]]:
    """A place for clients that are closed after the test."""
    made: list[HttpClient] = []
    yield made
    for one in made:
        one.close()


def test_a_request_carries_its_headers_path_and_body(client: list[HttpClient]) -> None:
    seen: list[Request] = []

    def answer(request: Request, sock: Any) -> bool:
        seen.append(request)
        sock.sendall(WHOLE)
        return True

    with serving(answer) as url:
        client.append(HttpClient(url))
        assert post(client[0]).outcome == "ok"
    assert seen[0].body == b'{"a":1}'
    assert seen[0].headers["x-key"] == "k"
    assert seen[0].headers["host"] == url.removeprefix("http://")


def test_a_connection_is_used_again_and_a_second_one_only_while_it_is_busy(
    client: list[HttpClient],
) -> None:
    both_there = gevent.event.Event()
    waiting = 0

    def answer(request: Request, sock: Any) -> bool:
        nonlocal waiting
        waiting += 1
        if waiting >= 2:
            both_there.set()
        both_there.wait(LIMIT_S)
        sock.sendall(WHOLE)
        return True

    with serving(answer) as url:
        client.append(HttpClient(url))
        gevent.joinall([gevent.spawn(post, client[0]) for _ in range(2)])
        assert client[0].connections_opened == 2
        assert post(client[0]).outcome == "ok"
        assert client[0].connections_opened == 2


def test_a_connection_that_the_server_closed_while_idle_is_not_used(
    client: list[HttpClient],
) -> None:
    closed = gevent.event.Event()

    def answer(request: Request, sock: Any) -> bool:
        sock.sendall(WHOLE)
        gevent.spawn_later(0, closed.set)
        return False

    with serving(answer) as url:
        client.append(HttpClient(url))
        assert post(client[0]).outcome == "ok"
        closed.wait(LIMIT_S)
        assert post(client[0]).outcome == "ok"
        assert client[0].connections_opened == 2


def test_connection_close_is_obeyed(client: list[HttpClient]) -> None:
    def answer(request: Request, sock: Any) -> bool:
        sock.sendall(WHOLE.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        return True

    with serving(answer) as url:
        client.append(HttpClient(url))
        post(client[0])
        post(client[0])
        assert client[0].connections_opened == 2


def test_a_request_is_never_sent_twice_by_the_client_itself(client: list[HttpClient]) -> None:
    seen = 0

    def answer(request: Request, sock: Any) -> bool:
        nonlocal seen
        seen += 1
        if seen == 1:
            sock.sendall(WHOLE)
        return seen == 1

    with serving(answer) as url:
        client.append(HttpClient(url))
        assert post(client[0]).outcome == "ok"
        reply = post(client[0])
    assert (reply.outcome, seen) == ("connection_error", 2)
    assert reply.detail == "the server closed the connection before the end of its answer"


def test_a_server_that_does_not_answer_in_time_is_a_timeout(client: list[HttpClient]) -> None:
    def answer(request: Request, sock: Any) -> bool:
        gevent.sleep(LIMIT_S)
        return False

    with serving(answer) as url:
        client.append(HttpClient(url))
        reply = post(client[0], timeout_s=0.05)
    assert (reply.outcome, reply.detail) == ("timeout", "no whole answer within 0.05 s")


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@pytest.mark.parametrize(
    ("first_event", "outcome"),
    [(b"event: ping\n\n", "cancelled"), (b"event: content_block_delta\n\n", "ok")],
)
def test_an_impatient_client_leaves_unless_content_has_come(
    client: list[HttpClient], first_event: bytes, outcome: str
) -> None:
    def answer(request: Request, sock: Any) -> bool:
        sock.sendall(HEAD + chunk(first_event))
        gevent.sleep(0.5)
        sock.sendall(chunk(b"event: message_stop\n\n") + b"0\r\n\r\n")
        return False

    with serving(answer) as url:
        client.append(HttpClient(url))
        assert post(client[0], patience_s=0.3).outcome == outcome


def test_a_closed_port_is_a_connection_error(client: list[HttpClient]) -> None:
    with serving(lambda request, sock: False) as url:
        pass
    client.append(HttpClient(url))
    reply = post(client[0])
    assert (reply.outcome, reply.detail) == ("connection_error", "Connection refused")


def test_bytes_that_are_no_http_are_a_connection_error(client: list[HttpClient]) -> None:
    def answer(request: Request, sock: Any) -> bool:
        sock.sendall(b"SSH-2.0-OpenSSH\r\n")
        return False

    with serving(answer) as url:
        client.append(HttpClient(url))
        reply = post(client[0])
    assert reply.outcome == "connection_error"
    assert reply.detail.startswith("not an HTTP answer")


@pytest.mark.parametrize(
    "url",
    [
        "https://a",
        "127.0.0.1:80",
        "http://",
        "http://u:p@a",
        "http://a?q=1",
        "http://a:b",
        "http://a:99999",
    ],
)
def test_an_address_that_cannot_be_used_is_named(url: str) -> None:
    with pytest.raises(BadTarget, match="target"):
        parse_target(url)


def test_an_address_may_have_a_path_in_front() -> None:
    assert parse_target("http://h:8080/api/") == ("h", 8080, "/api")
    assert parse_target("http://h") == ("h", 80, "")
