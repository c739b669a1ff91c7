"""The folder of a service: what is known of it over stop and start, and who may change it.

Files are written wholly or not at all, and only their owner can read them, for a URL holds a password.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from reference_impl.live.services.process_marks import ProcessMark
from reference_impl.live.services.server_process import (
    ServiceUnavailable,
    free_port,
    private_file,
)

__all__ = ["ServiceFolder", "ServiceState", "alone_in"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_S: Final = 0.05


class ServiceState(msgspec.Struct, frozen=True):
    """A server that was started.

    Attributes:
        url: what goes into settings, with the password.
        processes: the leaders of its process groups, the server's own first.
        is_ready: it has answered.
    """

    name: str
    url: str
    processes: list[ProcessMark]
    is_ready: bool = False

    @property
    def pid(self) -> int:
        return self.processes[0].pid

    @property
    def is_running(self) -> bool:
        return self.processes[0].is_alive


class _Home(msgspec.Struct, frozen=True):
    """What a server keeps beside its data; and what a folder is known by as one that was made here."""

    name: str
    port: int


class ServiceFolder:
    """The folder of one service. Reading raises ServiceUnavailable where a file in it cannot be understood."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._home = path / "home.json"
        self._state = path / "service.json"

    def open(self) -> int:
        """Make it; the port to use: the former one, if it is free. Raises ServiceUnavailable if it is somebody else's."""
        home = self._read(self._home, _Home)
        if home is None and self.path.exists() and any(self.path.iterdir()):
            raise ServiceUnavailable(f"{self.path} holds something else: choose another folder")
        self.path.mkdir(mode=0o700, exist_ok=True)
        port = free_port(None if home is None else home.port)
        self._write(self._home, _Home(self.path.name, port))
        return port

    def port(self) -> int | None:
        """The port that was used last."""
        home = self._read(self._home, _Home)
        return None if home is None else home.port

    def state(self) -> ServiceState | None:
        return self._read(self._state, ServiceState)

    def write(self, state: ServiceState) -> None:
        self._write(self._state, state)

    def forget(self) -> None:
        """Nothing runs here any more."""
        self._state.unlink(missing_ok=True)

    def delete(self) -> bool:
        """With its data; False if there is none that was made here."""
        if self._read(self._home, _Home) is None:
            return False
        shutil.rmtree(self.path)
        return True

    def _read(self, path: Path, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=kind)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.MsgspecError as error:
            raise ServiceUnavailable(
                f"{path} is damaged ({error}): end by hand what it was about, then delete it"
            ) from error

    def _write(self, path: Path, value: msgspec.Struct) -> None:
        private_file(path, msgspec.json.encode(value).decode())


@asynccontextmanager
async def alone_in(folder: Path) -> AsyncIterator[None]:
    """Inside, nobody else starts or stops servers in `folder`, which is made if need be. Raises OSError."""
    lock = _lock_of(folder)
    with lock.open("a") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    logger.warning("somebody else starts or stops servers in %s; waiting", folder)
                    told = True
                await asyncio.sleep(_LOOK_S)
        yield


def _lock_of(folder: Path) -> Path:
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # It may stand in somebody's repository, and holds passwords.
        (folder / ".gitignore").write_text("*\n")
    return folder / "lock"
