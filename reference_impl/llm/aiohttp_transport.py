"""HttpTransport over aiohttp: the live network. Virtual time never enters."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

import aiohttp

from reference_impl.errors import ConnectionFailed, RequestTimeout
from reference_impl.llm.transport import Receiver

__all__ = ["AiohttpTransport"]


class AiohttpTransport:
    """A pool of HTTP connections to one peer; used from one event loop.

    Args:
        base_url: scheme, host and port, perhaps a path: `http://127.0.0.1:8000`.
        connections: the most open at once; None: no limit (aiohttp's own default of 100 is a queue that nobody sees).
        connect_timeout_s: for the connection (the SDK's default: 5 s).
        read_timeout_s: the longest silence of the peer, before the answer and within it (the SDK's default: 600 s).
        keep_alive_s: how long an idle connection is kept. The peer must keep it longer, or requests meet a connection
            that is just being closed.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connections: int | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 600.0,
        keep_alive_s: float = 15.0,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"base URL {base_url!r}: expected http://HOST:PORT or https://HOST[:PORT]"
            )
        self.base_url = base_url.rstrip("/")
        self._connections = connections
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._keep_alive_s = keep_alive_s
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, path: str, headers: Mapping[str, str], body: bytes, receiver: Receiver
    ) -> None:
        session = self._session or self._open()
        try:
            response = await session.post(
                self.base_url + path, data=body, headers=headers, allow_redirects=False
            )
        except Exception as error:
            raise self._translated(error) from error
        try:
            receiver.head(response.status, response.headers)
            content = response.content
            while True:
                try:
                    data = await content.readany()
                except Exception as error:
                    raise self._translated(error) from error
                if not data:
                    return  # read to its end, the answer has given its connection back
                await receiver.data(data)
        except BaseException:
            response.close()
            raise

    async def aclose(self) -> None:
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        """Once a loop runs, to which a session belongs."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._connections or 0, keepalive_timeout=self._keep_alive_s
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=self._connect_timeout_s,
                sock_read=self._read_timeout_s,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent",),
        )
        return self._session

    def _translated(self, error: Exception) -> Exception:
        """The error of our tree for one of aiohttp's or the operating system's; a defect stays what it is."""
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return ConnectionFailed(
                f"{self.base_url}: no connection within {self._connect_timeout_s:g} s"
            )
        if isinstance(error, TimeoutError):
            return RequestTimeout(f"{self.base_url}: silent for {self._read_timeout_s:g} s")
        if isinstance(error, aiohttp.ClientError | OSError):
            detail = str(error) or type(error).__name__
            return ConnectionFailed(f"{self.base_url}: {detail}")
        return error
