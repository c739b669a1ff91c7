"""Instances as worker processes on this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from reference_impl.instances.child_process import ChildProcess
from reference_impl.instances.supervised import PortFactory, SupervisedProvider

__all__ = ["Command", "LocalProcessProvider", "service_command"]

# The program and its arguments for the instance with this id.
Command = Callable[[str], Sequence[str]]


def service_command(config_path: Path) -> Command:
    """The project's own instance process: `python -P -m reference_impl.service instance --config ... --id ...`.

    `-P`: the current folder is not searched for modules, so a user's own `reference_impl/` cannot get in the way.
    """

    def command(instance_id: str) -> Sequence[str]:
        arguments = ["instance", "--config", str(config_path), "--id", instance_id]
        return [sys.executable, "-P", "-m", "reference_impl.service", *arguments]

    return command


class LocalProcessProvider(SupervisedProvider):
    """Instances as child processes.

    A child announces `{"ready": "http://127.0.0.1:PORT"}` on its standard output and ends on SIGTERM.
    """

    def __init__(
        self,
        command: Command,
        make_port: PortFactory,
        boot_s: Callable[[str], float],
        *,
        capacity: int,
        heartbeat_s: float,
        ready_limit_s: float = 60.0,
    ) -> None:
        """See `SupervisedProvider`."""
        # The folder that `reference_impl` was loaded from, wherever it is installed.
        root = str(Path(__file__).resolve().parents[2])
        inherited = os.environ.get("PYTHONPATH")
        environment = {"PYTHONPATH": f"{root}{os.pathsep}{inherited}" if inherited else root}

        async def spawn(instance_id: str) -> ChildProcess:
            return await ChildProcess.spawn(instance_id, command(instance_id), environment)

        super().__init__(
            spawn,
            make_port,
            boot_s,
            capacity=capacity,
            heartbeat_s=heartbeat_s,
            ready_limit_s=ready_limit_s,
        )
