"""Tasks that hash by a serial number, and the mark of background tasks.

`TaskGroup` and `asyncio.wait` keep tasks in sets. A set's order follows the hashes, and an object's
hash is its address: the order in which a group cancels its tasks would differ between two runs in
one process. A serial number, counted per loop, makes it a function of the program alone.
"""

import asyncio
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulation.kernel.loop import SimulationLoop

BACKGROUND_PREFIX = "background:"
"""Tasks of this name prefix (heartbeats, control loops), and what they start, do not keep a run
alive: a run in which nothing else can happen is a deadlock."""

in_background: ContextVar[bool] = ContextVar("in_background", default=False)
"""Whether code runs on behalf of a background task; tasks and timers inherit it by context."""


UNNAMED = "a task without a name of its own"
"""Stands for "Task-<serial>", which is made when it is asked for."""


class SimulationTask(asyncio.Task[Any]):
    """asyncio's task, with a hash that does not depend on its address."""

    __slots__ = ("serial",)

    serial: int

    def __hash__(self) -> int:
        return self.serial

    def get_name(self) -> str:
        """The task's name: its own, or Task-<serial>, counted per loop."""
        name = super().get_name()
        return f"Task-{self.serial}" if name is UNNAMED else name

    def set_name(self, value: object) -> None:
        """Name the task. Before 3.13, `asyncio.create_task` names a task after making it."""
        super().set_name(value)
        if str(value).startswith(BACKGROUND_PREFIX):
            loop: SimulationLoop = self.get_loop()  # type: ignore[assignment]
            loop._mark_background(self)  # noqa: SLF001
