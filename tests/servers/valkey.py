"""A private Valkey on a free port of the loopback, without persistence; see `reference_impl/live/services/valkey.py`.

`shared_valkey_url()` starts one for this test process, once, and ends it with the process; each worker of pytest-xdist is a
process and so has its own. Tests keep apart by a prefix of their own (`unique_prefix`). A test that kills its server starts
one for itself: `with ValkeyProcess() as server`.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from loadtests.servers import launch_and_wait
from reference_impl.live.services.server_process import free_port
from reference_impl.live.services.valkey import ValkeyServer, find_valkey_server
from tests.servers.availability import require

__all__ = ["ValkeyProcess", "require_valkey", "shared_valkey_url", "unique_prefix"]

_numbers = itertools.count()


def require_valkey() -> None:
    """Skip the test with its reason where no server can run; fail in CI, where one must."""
    require(find_valkey_server)


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


class ValkeyProcess(ValkeyServer):
    """One server process; it keeps its port over `kill` and `start`, and loses its data."""

    def __init__(self) -> None:
        require_valkey()
        super().__init__(Path(tempfile.mkdtemp(prefix="valkey-")), port=free_port())

    def start(self, *options: str) -> None:
        """Start and wait for its PONG."""
        launch_and_wait(self, *options)

    def close(self) -> None:
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
