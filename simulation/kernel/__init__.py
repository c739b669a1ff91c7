"""Plain asyncio code in virtual time: an event loop whose clock is a SimPy environment."""

from simulation.kernel.bridge import as_event, await_event
from simulation.kernel.errors import (
    Deadlock,
    KernelError,
    LimitExceeded,
    NotInVirtualTime,
    Spinning,
    UnhandledErrors,
)
from simulation.kernel.loop import SimulationLoop, running_loop
from simulation.kernel.runner import run

__all__ = [
    "Deadlock",
    "KernelError",
    "LimitExceeded",
    "NotInVirtualTime",
    "SimulationLoop",
    "Spinning",
    "UnhandledErrors",
    "as_event",
    "await_event",
    "run",
    "running_loop",
]
