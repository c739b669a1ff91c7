"""The SimPy environment that a loop drives."""

from typing import Any, NoReturn

import simpy

from simulation.kernel.errors import KernelError


class LoopEnvironment(simpy.Environment):
    """A SimPy environment like any other, except that only its loop may step it."""

    def step(self) -> NoReturn:
        """Raise: the loop steps this environment."""
        raise KernelError("the loop drives this environment: await events instead of stepping it")

    def run(self, until: Any = None) -> NoReturn:  # noqa: ARG002 - the base class's
        """Raise: the loop runs this environment."""
        raise KernelError("the loop drives this environment: use simulation.kernel.run")
