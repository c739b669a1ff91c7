"""Private servers for a live run: on this machine, with no data that outlives it, ended with it whatever happens."""

from __future__ import annotations

import secrets
import tempfile
import time
from pathlib import Path
from typing import Final

from reference_impl.live.services.postgres import PostgresServer
from reference_impl.live.services.server_process import PrivateServer, free_port
from reference_impl.live.services.valkey import ValkeyServer

__all__ = [
    "TemporaryServer",
    "launch_and_wait",
    "temporary_postgres",
    "temporary_queue",
    "temporary_valkey",
]

POLL_S: Final = 0.01


def launch_and_wait(server: PrivateServer, *options: str) -> None:
    """Start a server and wait until it answers. Raises ServiceUnavailable, and leaves no process then."""
    server.prepare()
    server.launch(*options)
    try:
        deadline = time.monotonic() + server.start_limit_s
        while not server.answers():
            server.check_start(late=time.monotonic() > deadline)
            time.sleep(POLL_S)
    except BaseException:
        server.end()
        raise


class TemporaryServer:
    """A server in a temporary folder, which goes with it; a child as `ChildProcess` is one."""

    def __init__(self, server: PrivateServer, folder: tempfile.TemporaryDirectory[str]) -> None:
        self.name = server.name
        self.url = server.url
        self._server = server
        self._folder = folder

    def start(self) -> None:
        """Raises ServiceUnavailable."""
        launch_and_wait(self._server)

    @property
    def pid(self) -> int:
        return self._server.pid

    def exit_status(self) -> int | None:
        return self._server.exit_status()

    def obituary(self, status: int) -> str:
        return self._server.obituary(status)

    def stop(self, grace_s: float) -> None:
        self._server.stop(grace_s)
        self._folder.cleanup()


def temporary_valkey(logs: Path) -> TemporaryServer:
    """On a socket file, so that it needs no port and no password."""
    # Not in the run folder: the path of a socket has at most 107 bytes.
    folder = tempfile.TemporaryDirectory(prefix="twinload-valkey-")
    log = logs / "valkey.log"
    return TemporaryServer(ValkeyServer(Path(folder.name), port=0, log=log, is_tied=True), folder)


def temporary_queue(logs: Path) -> TemporaryServer:
    """The same, with what was written on disk before it is acknowledged, as a queue needs it."""
    folder = tempfile.TemporaryDirectory(prefix="twinload-queue-")
    log = logs / "queue.log"
    server = ValkeyServer(Path(folder.name), port=0, is_durable=True, log=log, is_tied=True)
    return TemporaryServer(server, folder)


def temporary_postgres(logs: Path) -> TemporaryServer:
    """Durable as PostgreSQL is by itself, for what a commit costs is part of what is measured."""
    folder = tempfile.TemporaryDirectory(prefix="twinload-postgres-")
    server = PostgresServer(
        Path(folder.name),
        port=free_port(),
        password=secrets.token_urlsafe(24),
        log=logs / "postgres.log",
        is_tied=True,
    )
    return TemporaryServer(server, folder)
