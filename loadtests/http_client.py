"""A small HTTP/1.1 client on gevent sockets: the truest and fastest of those measured for streams.

One request at a time a connection, connections kept alive and reused last in, first out. Meant for the injector: it never
retries by itself, because a retry that the workload does not know of would falsify what is measured.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import httptools
from gevent import monkey, socket

from loadtests.reply import BadReply, Reply, ReplyReader
from loadtests.target import BadTarget, parse_target
from reference_impl.telemetry import Outcome

__all__ = ["HttpClient"]

RECEIVE_BYTES = 64 * 1024
# Under a gateway's keep-alive (75 s for ours, 5 s for a bare uvicorn), so that the client gives up first.
KEEP_ALIVE_S = 4.0

# The poll of the system, even where locust has replaced it: with a time-out of zero it never blocks.
_poll: Callable[[], Any] = monkey.get_original("select", "poll")


class HttpClient:
    """Posts to one host; `connections_opened` counts connects.

    Args:
        url: `http://HOST[:PORT][/PREFIX]`; raises BadTarget if it cannot be used.
        keep_alive_s: a connection that was idle for longer is not used again.
    """

    def __init__(self, url: str, *, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self.host, self.port, self.prefix = parse_target(url)
        self.connections_opened = 0
        self._keep_alive_s = keep_alive_s
        self._idle: list[tuple[float, Any]] = []
        self._family, self._address = _resolve(self.host, self.port)
        self._start = (
            f" HTTP/1.1\r\nhost: {self.host}:{self.port}\r\ncontent-type: application/json\r\n"
        ).encode()

    def post(
        self,
        path: str,
        headers: str,
        body: bytes,
        *,
        timeout_s: float,
        patience_s: float = math.inf,
    ) -> Reply:
        """Send one request and read its whole answer.

        `headers` are complete lines, each with its CRLF. The whole exchange may take `timeout_s`; a client that has seen
        no content after `patience_s` leaves (outcome `cancelled`). Never raises for what a peer or a network does: that is the
        answer's outcome. A greenlet that is killed meanwhile closes its connection.
        """
        reader = ReplyReader(monotonic)
        request = b"".join(
            (
                b"POST ",
                (self.prefix + path).encode(),
                self._start,
                headers.encode("latin-1"),
                b"content-length: %d\r\n\r\n" % len(body),
                body,
            )
        )
        parser = httptools.HttpResponseParser(reader)
        lost = ""
        with _Limits(timeout_s, patience_s) as limits:
            lost = self._exchange(request, reader, parser, limits)
        reply = reader.finished(parser.get_status_code() if reader.started else 0, lost)
        if limits.passed is not None:
            reply.outcome = limits.passed
            reply.detail = (
                f"no whole answer within {timeout_s:g} s"
                if limits.passed == "timeout"
                else "the client left before any content came"
            )
        return reply

    def _exchange(self, request: bytes, reader: ReplyReader, parser: Any, limits: _Limits) -> str:
        """Send and receive on one connection; returns how it was lost, "" if it was not."""
        sock = None
        try:
            sock = self._connection()
            sock.sendall(request)
            while not reader.complete:
                data = sock.recv(RECEIVE_BYTES)
                if not data:
                    return "the server closed the connection before the end of its answer"
                parser.feed_data(data)
                if not math.isnan(reader.reply.first_token_at):
                    limits.content_came()
            if reader.keep_alive:
                self._idle.append((monotonic(), sock))
                sock = None
            return ""
        except OSError as error:
            return error.strerror or str(error) or type(error).__name__
        except (httptools.HttpParserError, BadReply) as error:
            return f"not an HTTP answer: {error.__context__ or error}"
        finally:
            if sock is not None:
                sock.close()

    def _connection(self) -> Any:
        """An idle connection that is still open, or a new one."""
        while self._idle:
            since, sock = self._idle.pop()
            if monotonic() - since < self._keep_alive_s and _is_quiet(sock):
                return sock
            sock.close()
        sock = socket.socket(self._family)
        try:
            sock.connect(self._address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            sock.close()
            raise
        self.connections_opened += 1
        return sock

    def close(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop()[1].close()


def _resolve(host: str, port: int) -> tuple[int, Any]:
    """Family and address of a name, once: gevent would ask a thread for it at each connection. Raises BadTarget."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise BadTarget(f"target host {host!r}: {error.strerror or error}") from None
    return family, address


def _is_quiet(sock: Any) -> bool:
    """Whether an idle connection is open and silent: one that is readable was closed, or carries rubbish."""
    poller = _poll()
    poller.register(sock.fileno(), select.POLLIN)
    return not poller.poll(0)


class _Limits:
    """The time-out of an exchange and its client's patience; `passed` tells which of them ended the block."""

    __slots__ = ("_deadline", "_patience", "passed")

    def __init__(self, timeout_s: float, patience_s: float) -> None:
        self._deadline = gevent.Timeout(timeout_s)
        self._patience = gevent.Timeout(max(0.0, patience_s)) if patience_s < timeout_s else None
        self.passed: Outcome | None = None

    def __enter__(self) -> _Limits:
        self._deadline.start()
        if self._patience is not None:
            self._patience.start()
        return self

    def content_came(self) -> None:
        """The client sees its answer begin, and stays."""
        if self._patience is not None:
            self._patience.cancel()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self._deadline.close()
        if self._patience is not None:
            self._patience.close()
        if error is not None and error is self._deadline:
            self.passed = "timeout"
        elif error is not None and error is self._patience:
            self.passed = "cancelled"
        return self.passed is not None
