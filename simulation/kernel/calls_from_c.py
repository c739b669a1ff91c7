"""`call_soon` as asyncio's C code calls it, which is three times for each sleeping request.

The C task and future pass a builtin and a context, and drop the handle that they get. Their calls
need no handle, and a closure over the queue's `append` is the cheapest thing to call.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any, NoReturn

Entry = tuple[Callable[..., object], tuple[Any, ...]]


def fast_call_soon(
    append: Callable[[Entry], None], call_soon: Callable[..., asyncio.Handle]
) -> Callable[..., Any]:
    """A function for `loop.call_soon` that spares calls from C the handle.

    Args:
        append: puts an entry (function, arguments) at the end of the ready queue.
        call_soon: the method, for every other call.
    """
    builtin, first_step = type(len), _TYPE_OF_FIRST_STEP

    def from_c_or_python(*callback_and_args: Any, context: Context | None = None) -> Any:
        if context is not None:
            kind = type(callback_and_args[0])
            if kind is builtin or kind is first_step:
                append((context.run, callback_and_args))
                return _NO_HANDLE
        return call_soon(*callback_and_args, context=context)

    return from_c_or_python


class _NoHandle(asyncio.Handle):
    """What a call from C gets, and drops."""

    __slots__ = ()

    def __init__(self) -> None:
        pass

    def __repr__(self) -> str:
        return "<handle of a call from C>"

    def cancel(self) -> NoReturn:
        """Raise: the entry is not known by this handle."""
        raise RuntimeError(
            "call_soon(builtin, context=...) returns no handle that can be cancelled: wrap the "
            "builtin in a function"
        )


_NO_HANDLE = _NoHandle()


def _type_of_first_step() -> type:
    """The type of the callable that starts a C task, which the C module does not export."""
    kinds: list[type] = []

    class Probe:
        def call_soon(self, callback: object, **_: object) -> None:
            kinds.append(type(callback))

        def get_debug(self) -> bool:
            return False

    async def nothing() -> None:
        pass

    coroutine = nothing()
    task = asyncio.Task(coroutine, loop=Probe())  # type: ignore[arg-type]
    task._log_destroy_pending = False  # type: ignore[attr-defined] # noqa: SLF001
    coroutine.close()
    return kinds[0]


_TYPE_OF_FIRST_STEP = _type_of_first_step()
