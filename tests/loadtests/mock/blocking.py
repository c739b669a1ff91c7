"""An asynchronous client behind the face of the synchronous one, so that one scenario speaks for both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

from anthropic._resource import AsyncAPIResource

__all__ = ["Blocking"]


class Blocking:
    """Stands for an asynchronous object: calls block until they are done, loops and `with` become plain ones."""

    def __init__(self, subject: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._subject = subject
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return self._face(getattr(self._subject, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._face(self._subject(*args, **kwargs))

    def __iter__(self) -> Iterator[Any]:
        items: AsyncIterator[Any] = aiter(self._subject)
        end = object()
        while (item := self._run(anext(items, end))) is not end:
            yield item

    def __enter__(self) -> Any:
        return self._face(self._subject.__aenter__())

    def __exit__(self, *exc_info: Any) -> Any:
        return self._run(self._subject.__aexit__(*exc_info))

    def _face(self, value: Any) -> Any:
        """`value` as the synchronous client would give it."""
        if inspect.iscoroutine(value):
            return self._face(self._run(value))
        deferred = hasattr(value, "__aiter__") or hasattr(value, "__aenter__")
        if deferred or inspect.ismethod(value) or isinstance(value, AsyncAPIResource):
            return Blocking(value, self._loop)
        return value

    def _run(self, awaitable: Awaitable[Any]) -> Any:
        async def main() -> Any:
            return await awaitable

        return self._loop.run_until_complete(main())
