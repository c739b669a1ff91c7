"""The event loop of live processes: uvloop with a clock that is fine enough to measure by.

uvloop's own `time()` is cached per iteration and steps by a millisecond, so a stage shorter than that reads 0 or 1 ms. Here
`time()` is the monotonic clock itself, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

__all__ = ["LiveLoop", "run_live"]

T = TypeVar("T")


class LiveLoop(uvloop.Loop):
    """uvloop on the monotonic clock, in seconds."""

    def time(self) -> float:
        return time.monotonic()  # noqa: TID251 - the one place where live code meets the clock


def run_live(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a `LiveLoop`."""
    with asyncio.Runner(loop_factory=LiveLoop) as runner:
        return runner.run(main)
