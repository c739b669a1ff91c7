"""A server of one's own: a process in a folder of its own, on the loopback only, which this process runs or leaves running.

What each kind of server needs is in a module of its name; who needs one (`twinload services`, a live run, a test) decides where
its folder is, whether its data is worth a sync, and whether it ends with who started it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import signal
import socket
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

from reference_impl.live.services.process_marks import ProcessMark, mark_of
from reference_impl.live.services.tied import tied

__all__ = ["PROBE_LIMIT_S", "PrivateServer", "ServiceUnavailable", "free_port", "private_file"]

# Of one question whether a server answers.
PROBE_LIMIT_S: Final = 1.0
_POLL_S: Final = 0.02
_KILL_LIMIT_S: Final = 10.0
_WORDS: Final = 4096
_COMPLAINT: Final = re.compile(r"(?i)fatal|error|fail|panic|can't|cannot|could not|denied")


class ServiceUnavailable(Exception):
    """A server cannot be had or did not start: one line for people."""


def free_port(wanted: int | None = None) -> int:
    """`wanted`, if nobody listens there, else a port of the loopback that was free a moment ago."""
    with socket.socket() as probe:
        # What a former server's connections left behind does not make its port another's.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted or 0))
        except OSError:
            if wanted is None:
                raise
            return free_port()
        port: int = probe.getsockname()[1]
        return port


def private_file(path: Path, text: str) -> None:
    """Write a file that only its owner can read, wholly or not at all."""
    temporary = path.with_name(f"{path.name}.partial")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class PrivateServer(ABC):
    """One server. It keeps its address and its folder over `kill` and another `launch`.

    The order of calls is `prepare`, `launch`, then `wait_ready`, or `answers` until it does.

    Args:
        folder: of its own; empty, or this server's from before.
        url: where it will answer.
        log: gets its output; None: `NAME.log` in the folder.
        is_tied: it ends with the thread that launches it, however that ends.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    start_limit_s: ClassVar[float]
    stop_limit_s: ClassVar[float] = 20.0
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    kill_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(
        self, folder: Path, url: str, *, log: Path | None = None, is_tied: bool = False
    ) -> None:
        # Its process has a working directory of its own.
        self.folder = folder.resolve()
        self.url = url
        self.log = (log or self.folder / f"{self.name}.log").resolve()
        self._is_tied = is_tied
        self._process: subprocess.Popen[bytes] | None = None
        # Who runs it, where it refuses to run as who starts it.
        self._user = ""

    @abstractmethod
    def prepare(self) -> None:
        """Find its program and make its files, those that are not there. Raises ServiceUnavailable."""

    @abstractmethod
    def answers(self) -> bool:
        """Whether it takes requests now; waits `PROBE_LIMIT_S` at most."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    def _environment(self) -> Mapping[str, str] | None:
        return None

    def launch(self, *options: str) -> None:
        """Start it, with `options` added to its command line; it does not answer yet."""
        self._process = self._spawn([*self._command(), *options])

    async def wait_ready(self) -> None:
        """Until it answers. Raises ServiceUnavailable, and leaves no process, if it ends or takes too long."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + self.start_limit_s
        while not await asyncio.to_thread(self.answers):
            self.check_start(late=loop.time() > give_up_s)
            await asyncio.sleep(_POLL_S)

    def check_start(self, *, late: bool) -> None:
        """Raises ServiceUnavailable if it has ended, or is `late`; it runs no more then."""
        status = self.exit_status()
        if status is None and not late:
            return
        self.end()
        how = f"took more than {self.start_limit_s:g} s" if status is None else _how(status)
        raise ServiceUnavailable(
            f"{self.title} did not start: {how}{self._words()} (log: {self.log})"
        )

    @property
    def pid(self) -> int:
        assert self._process is not None, "not launched"
        return self._process.pid

    def marks(self) -> list[ProcessMark]:
        """The leaders of its process groups, the server's own first."""
        return [mark_of(self.pid)]

    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return None if self._process is None else self._process.poll()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def obituary(self, status: int) -> str:
        """One line: who died, how, and its last words."""
        return f"{self.name} died ({_how(status)}){self._words()}"

    def stop(self, grace_s: float | None = None) -> None:
        """Ask it to end, and kill what is left after `grace_s` (its own limit by default). Idempotent."""
        try:
            if self._process is not None:
                self._signal(self.stop_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(self.stop_limit_s if grace_s is None else grace_s)
        finally:
            # Also on the way out of an interrupt: nothing may stay.
            self.end()

    def kill(self) -> None:
        """An end without a farewell: connections break, the port refuses, what is on disk stays."""
        if self._process is None or self._process.poll() is not None:
            return
        self._signal(self.kill_signal)
        try:
            self._process.wait(_KILL_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def pause(self) -> None:
        """Connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def end(self) -> None:
        """`kill`, and end whatever else was started for it."""
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        """To the server and what it started, as far as that stayed in its group; to nobody once its number is free again."""
        if self.is_running():
            os.killpg(self.pid, number)

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        """As the leader of a group of its own, with its output in the log and nothing to read."""
        entry = pwd.getpwnam(self._user) if self._user and not self._is_tied else None
        handle = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "ab") as output:
            environment = self._environment()
            return subprocess.Popen(  # noqa: S603 - our own command lines
                tied(command, signal.SIGKILL, self._user) if self._is_tied else list(command),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                user=None if entry is None else entry.pw_uid,
                group=None if entry is None else entry.pw_gid,
                extra_groups=None if entry is None else (),
                start_new_session=True,
            )

    def _words(self) -> str:
        """Its last complaint, or whatever it said last."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _WORDS))
            text = file.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        complaints = [line for line in lines if _COMPLAINT.search(line)]
        return f": {(complaints or lines)[-1][:300]}" if lines else ""


def _how(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
