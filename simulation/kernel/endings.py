"""How a run ends by itself: nothing is left to happen, or the clock has reached its bound.

Each ending is a milestone in SimPy's queue. As the queue always holds the last of them, no turn
has to ask whether it is empty.
"""

import asyncio
import math
from typing import TYPE_CHECKING, NoReturn

from simulation.kernel.errors import Deadlock, LimitExceeded, Stopped
from simulation.kernel.waiting import BackgroundWatch, describe_waiting, pending_tasks

if TYPE_CHECKING:
    from simulation.kernel.loop import SimulationLoop


class Endings:
    """The milestones that end a run of a loop.

    Args:
        loop: the loop, whose bounds are set.
        patience_s: virtual seconds for which background tasks alone may keep the run going.
    """

    def __init__(self, loop: "SimulationLoop", patience_s: float) -> None:
        self._loop = loop
        self._patience_s = patience_s
        self._watch: BackgroundWatch | None = None
        loop.note(math.inf, self._nothing_left)
        if loop.bounds.until < math.inf:
            loop.note(math.nextafter(loop.bounds.until, math.inf), self._until_reached)

    def watch_background(self) -> None:
        """From here on look, once in a patience, whether only background tasks go on."""
        if self._watch is None:
            self._watch = BackgroundWatch()
            self._loop.note(self._loop.time() + self._patience_s, self._look)

    def _nothing_left(self) -> NoReturn:
        self._loop.note(math.inf, self._nothing_left)
        text = f"nothing is left to happen at {self._loop.time():g} s"
        raise Stopped(Deadlock(text + self._waiting()))

    def _until_reached(self) -> None:
        until = self._loop.bounds.until
        if until < math.inf:
            self._loop.env._now = until  # noqa: SLF001 - nothing else is due by then
            raise Stopped(LimitExceeded(f"not done at until={until:g} s" + self._waiting()))

    def _look(self) -> None:
        loop, watch = self._loop, self._watch
        assert watch is not None
        if watch.is_stuck(loop._queue, asyncio.all_tasks(loop)):  # noqa: SLF001
            text = (
                f"for {self._patience_s:g} s, until {loop.time():g} s, only background tasks "
                "have run"
            )
            raise Stopped(Deadlock(text + self._waiting()))
        self._watch = None
        if len(loop._queue) > 1:  # noqa: SLF001 - else the end itself is next
            self._watch = watch
            loop.note(loop.time() + self._patience_s, self._look)

    def _waiting(self) -> str:
        tasks = pending_tasks(self._loop)
        return f"; {len(tasks)} tasks wait:\n{describe_waiting(tasks)}" if tasks else ""
