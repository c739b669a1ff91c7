"""A server that runs as a child of this process, or outlives it, in a folder of its own on ports of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["ServiceUnavailable", "free_port", "group_is_alive", "signal_group", "spawn"]


class ServiceUnavailable(Exception):
    """A server cannot be had or did not start: one line for people."""


def free_port() -> int:
    """A port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def spawn(
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` as the leader of a group of its own, with its output in `log` and nothing to read."""
    with log.open("ab") as output:
        return subprocess.Popen(  # noqa: S603 - our own command lines
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )


def signal_group(leader: int, number: signal.Signals) -> bool:
    """Send a signal to a server and its children; False when there are none."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)
        return True
    return False


def group_is_alive(leader: int) -> bool:
    """Whether the process `leader` runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{leader}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
