"""A private pgbouncer in transaction pooling before a server of `postgres.py`, on a free port of the loopback.

`shared_pgbouncer()` stands before this test process's server; `with PgbouncerProcess(server) as bouncer` before another.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import pytest

from tests.servers.postgres import PASSWORD, PostgresProcess, require_postgres, shared_postgres

__all__ = ["PgbouncerProcess", "require_pgbouncer", "shared_pgbouncer"]

_READY_LIMIT_S = 20.0


def require_pgbouncer() -> str:
    """Its program. Skips the test with its reason where there is none; fails in CI, where one must be."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is not None:
        return found
    reason = "no pgbouncer: install Debian's package `pgbouncer`"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@functools.cache
def shared_pgbouncer() -> PgbouncerProcess:
    """Before this test process's PostgreSQL; started at the first call, ends with the process."""
    require_postgres()
    bouncer = PgbouncerProcess(shared_postgres())
    atexit.register(bouncer.close)
    bouncer.start()
    return bouncer


class PgbouncerProcess:
    """Connections of any number of clients over at most `size` of the server's, which change hands at each transaction."""

    def __init__(self, server: PostgresProcess, size: int = 2) -> None:
        self._program = require_pgbouncer()
        self._folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))
        self._process: subprocess.Popen[bytes] | None = None
        # It refuses to run as root, as PostgreSQL does.
        self._user = "nobody" if os.geteuid() == 0 else None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        (self._folder / "users.txt").write_text(f'"postgres" "{PASSWORD}"\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "scram-sha-256",
            "auth_file": self._folder / "users.txt",
            "pool_mode": "transaction",
            "default_pool_size": size,
            "server_idle_timeout": 1,  # each test has a database of its own: their connections would fill the server
            "server_login_retry": 1,
            "logfile": self._folder / "pgbouncer.log",
        }
        (self._folder / "pgbouncer.ini").write_text(
            f"[databases]\n* = host=127.0.0.1 port={server.port}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in settings.items())
        )
        if self._user is not None:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, self._user)

    def dsn(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start and wait until it listens."""
        self._process = subprocess.Popen(
            [self._program, "-q", str(self._folder / "pgbouncer.ini")],
            user=self._user,
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        give_up_at = time.monotonic() + _READY_LIMIT_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                log = self._folder / "pgbouncer.log"
                said = log.read_text()[-2000:] if log.exists() else "nothing was logged"
                raise RuntimeError(f"pgbouncer did not start:\n{said}")
            time.sleep(0.01)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # at once, whatever its clients do, and whatever signals it was born to ignore
            self._process.wait(timeout=30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def __enter__(self) -> PgbouncerProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
