"""The async generators of a run: closed at its end, or told of when they are abandoned."""

import asyncio
from collections.abc import AsyncGenerator
from itertools import count
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from simulation.kernel.loop import SimulationLoop


class AsyncGenerators:
    """Python's two hooks for async generators, and the closing at the end.

    Attributes:
        closing: the tasks that close abandoned generators.
    """

    def __init__(self, loop: "SimulationLoop") -> None:
        self._loop = loop
        # By serial number: a set would be ordered by address.
        self._open: WeakValueDictionary[int, AsyncGenerator[Any, Any]] = WeakValueDictionary()
        self._next_serial = count().__next__
        self.closing: list[asyncio.Task[None]] = []

    def started(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Hook: a generator is iterated for the first time."""
        self._open[self._next_serial()] = generator

    def abandoned(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Hook: a generator is collected as garbage before its end. Its `finally` must still run.

        When that happens depends on references rather than on the program's text, so it is an
        error of the run.
        """
        loop = self._loop
        loop.call_exception_handler(
            {
                "message": f"async generator {generator!r} was left to the garbage collector "
                "before its end: close it with contextlib.aclosing",
                "asyncgen": generator,
            }
        )
        if not loop.is_closed():
            self.closing.append(loop.create_task(generator.aclose()))

    async def close_all(self) -> None:
        """Close the generators that are still open, oldest first."""
        still_open = [generator.aclose() for generator in self._open.values()]
        self._open.clear()
        results = await asyncio.gather(*self.closing, *still_open, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                self._loop.call_exception_handler(
                    {"message": "an async generator failed to close", "exception": result}
                )
