"""Coming to an end step by step, when no step may keep the others from being done.

Not `contextlib.AsyncExitStack`: where two of its callbacks fail, it tells of the last alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

__all__ = ["close_all"]


async def close_all(*steps: Callable[[], Awaitable[None] | None]) -> None:
    """Do each step in turn, also after one that failed or was cancelled.

    Raises what was raised: the error, an ExceptionGroup of several; before them whatever is no Exception, as a cancellation.
    """
    errors: list[Exception] = []
    ending: BaseException | None = None
    for step in steps:
        try:
            under_way = step()
            if under_way is not None:
                await under_way
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)
        except BaseException as error:  # noqa: BLE001 - raised below
            ending = error
    if ending is not None:
        raise ending
    if len(errors) > 1:
        raise ExceptionGroup("closing failed", errors)
    if errors:
        raise errors[0]
