"""The Messages API through the official SDK: its authentication, headers, proxies and middleware; our attempts.

The SDK is one more way to carry bytes, so it is an `HttpTransport`, and answers and errors are read by the same code as
those of plain HTTP (`http.py`). The SDK's own retries are off: two layers that retry multiply load.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from reference_impl.errors import AuthenticationFailed, ConnectionFailed, RequestTimeout
from reference_impl.llm.http import HttpMessages
from reference_impl.llm.transport import Receiver

if TYPE_CHECKING:
    import httpx2
    from anthropic import AsyncAnthropic

__all__ = ["SdkMessages", "SdkTransport"]

Backend = Literal["aiohttp", "httpx2"]


class SdkTransport:
    """HttpTransport over an `anthropic.AsyncAnthropic`.

    Args:
        client: used as it is; None: one is made on demand (importing the SDK takes a second).
        api_key, base_url: for the client that is made; None: from ANTHROPIC_API_KEY and ANTHROPIC_BASE_URL.
        backend: of the client that is made. aiohttp takes about half the CPU of httpx2 (1.2 instead of 2 ms a call);
            httpx2 is the SDK's own default and what tools that intercept requests (respx) know.
        connections: the most open at once; None: no limit.
    """

    def __init__(
        self,
        client: AsyncAnthropic | None = None,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        backend: Backend = "aiohttp",
        connections: int | None = None,
    ) -> None:
        self._client = client
        self._api_key = api_key
        self._base_url = base_url
        self._backend = backend
        self._connections = connections

    @property
    def client(self) -> AsyncAnthropic:
        """The SDK's client, made when first asked for."""
        if self._client is None:
            import anthropic
            import httpx2

            if self._backend == "aiohttp":
                # Handed on to aiohttp, to which 0 means no limit and None its default of 100.
                limits = httpx2.Limits(max_connections=self._connections or 0)
                http_client = anthropic.DefaultAioHttpClient(limits=limits)
            else:
                limits = httpx2.Limits(max_connections=self._connections)
                http_client = anthropic.DefaultAsyncHttpxClient(limits=limits)
            self._client = anthropic.AsyncAnthropic(
                api_key=self._api_key,
                base_url=self._base_url,
                http_client=http_client,
                max_retries=0,
            )
        return self._client

    async def post(
        self, path: str, headers: Mapping[str, str], body: bytes, receiver: Receiver
    ) -> None:
        client = self.client
        import anthropic

        try:
            response = await self._send(client, path, headers, body)
        except anthropic.APIStatusError as error:
            receiver.head(error.status_code, error.response.headers)
            await receiver.data(error.response.content)
            return
        except anthropic.APITimeoutError as error:
            raise _timeout(error.__cause__ or error) from error
        except anthropic.APIConnectionError as error:
            raise ConnectionFailed(f"{client.base_url}: {error.__cause__ or error}") from error
        try:
            receiver.head(response.status_code, response.headers)
            await self._read(response, receiver)
        finally:
            await response.aclose()

    async def _send(
        self, client: AsyncAnthropic, path: str, headers: Mapping[str, str], body: bytes
    ) -> httpx2.Response:
        """Send the request and return the answer with its body unread."""
        import anthropic
        import httpx2

        try:
            return cast(
                "httpx2.Response",
                await client.post(
                    path,
                    content=body,
                    cast_to=cast("Any", httpx2.Response),
                    options={"headers": dict(headers), "max_retries": 0},
                    stream=True,
                    stream_cls=anthropic.AsyncStream[object],
                ),
            )
        except TypeError as error:
            # The SDK's way to say that it found no credentials.
            if "authentication" not in str(error):
                raise
            raise AuthenticationFailed(
                "no API key: set ANTHROPIC_API_KEY, or hand in a client that has one"
            ) from error

    async def _read(self, response: httpx2.Response, receiver: Receiver) -> None:
        import httpx2

        blocks = response.aiter_bytes()
        try:
            while True:
                try:
                    data = await anext(blocks, b"")
                except httpx2.TimeoutException as error:
                    raise _timeout(error) from error
                except httpx2.HTTPError as error:
                    raise ConnectionFailed(f"the answer broke off: {error}") from error
                if not data:
                    return
                await receiver.data(data)
        finally:
            await cast("Any", blocks).aclose()

    async def aclose(self) -> None:
        if self._client is not None:
            await self._client.close()


def _timeout(cause: BaseException) -> ConnectionFailed | RequestTimeout:
    """No connection in time is a failed connection; silence after it a time-out."""
    import httpx2

    detail = str(cause) or type(cause).__name__
    if isinstance(cause, httpx2.ConnectTimeout | httpx2.PoolTimeout):
        return ConnectionFailed(f"no connection in time: {detail}")
    return RequestTimeout(f"the endpoint fell silent: {detail}")


class SdkMessages(HttpMessages):
    """A MessagesPort through the SDK; arguments as for `SdkTransport`. The SDK sets key and version."""

    def __init__(
        self,
        client: AsyncAnthropic | None = None,
        *,
        api_key: str | None = None,
        base_url: str | None = None,
        backend: Backend = "aiohttp",
        connections: int | None = None,
        forward_tags: bool = False,
    ) -> None:
        self._sdk = SdkTransport(
            client, api_key=api_key, base_url=base_url, backend=backend, connections=connections
        )
        super().__init__(self._sdk, version="", forward_tags=forward_tags)

    @property
    def client(self) -> AsyncAnthropic:
        """The SDK's client, made when first asked for."""
        return self._sdk.client
