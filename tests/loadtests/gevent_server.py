"""A server on gevent sockets in the test's own process, whose every byte the test decides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httptools
from gevent.server import StreamServer

from tests.loadtests.tiny_server import MESSAGE

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(MESSAGE), MESSAGE)


class Request:
    """One request as it came in; the parser's callbacks fill it."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = b""
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode().lower()] = value.decode()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


Answering = Callable[[Request, Any], bool]


@contextmanager
def serving(answer: Answering) -> Iterator[str]:
    """Serve inside the block; `answer(request, socket)` writes a reply and returns whether to keep the connection."""

    def handle(sock: Any, _address: object) -> None:
        keep = True
        while keep:
            request = Request()
            parser = httptools.HttpRequestParser(request)
            while not request.complete:
                data = sock.recv(65536)
                if not data:
                    return
                parser.feed_data(data)
            keep = answer(request, sock)

    server = StreamServer(("127.0.0.1", 0), handle)
    server.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.stop(timeout=0)
