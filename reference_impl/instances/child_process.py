"""A child process that says when it is ready, ends when it is told to, and never outlives its parent.

The child leads a process group of its own, so that a Ctrl-C at the terminal reaches the parent alone, which then decides
about its children. On Linux the kernel kills the child when the parent dies, however it dies: a tiny guard asks for that
signal and then becomes the program (`exec`), which spares a `preexec_fn` and its hazards between fork and exec.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from reference_impl.errors import UpstreamFailed
from reference_impl.instances.supervised import ReadyLine

__all__ = ["ChildProcess"]

_log = logging.getLogger(__name__)

# argv: parent's pid, program, arguments. PR_SET_PDEATHSIG is 1; a parent that has died meanwhile would send nothing.
_GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process has ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""
_LINE_LIMIT = 1 << 16
# What is left in the pipes of a process that has ended is read within this time.
_PIPES_S = 1.0


class ChildProcess:
    """One running child. `ended` gets the reason when it ends unasked, and is cancelled when it was stopped."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Use `spawn`."""
        self.name = name
        self._process = process
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = loop.create_future()
        # None: it ended without having announced itself.
        self._announced: asyncio.Future[ReadyLine | None] = loop.create_future()
        self._last_words: deque[str] = deque(maxlen=20)
        self._watcher = loop.create_task(self._watch(), name=f"background:child {name}")

    @classmethod
    async def spawn(
        cls, name: str, command: Sequence[str], env: Mapping[str, str] | None = None
    ) -> ChildProcess:
        """Start `command` (program and arguments) with `env` added to this process's environment.

        Raises UpstreamFailed when there is no such program.
        """
        if sys.platform == "linux":
            command = [sys.executable, "-I", "-S", "-c", _GUARD, str(os.getpid()), *command]
        spawning = asyncio.create_task(
            asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        )
        try:
            return cls(name, await asyncio.shield(spawning))
        except OSError as error:
            raise UpstreamFailed(f"{name}: cannot start {command[0]}: {error.strerror}") from error
        except asyncio.CancelledError:
            # Cancelled itself, uvloop would leave a zombie: let it be born, then end it.
            await cls(name, await spawning).stop(0.0)
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    async def ready(self, limit_s: float) -> ReadyLine:
        """Wait for the ready line. Raises UpstreamFailed, with the child's last words, when none comes in `limit_s`."""
        try:
            async with asyncio.timeout(limit_s):
                line = await asyncio.shield(self._announced)
        except TimeoutError:
            raise UpstreamFailed(
                f"{self.name}: not ready within {limit_s:g} s{self._words()}"
            ) from None
        if line is None:
            raise UpstreamFailed(f"{self.name}: {self._end(' before it was ready')}")
        return line

    async def stop(self, limit_s: float) -> None:
        """SIGTERM, and SIGKILL to the whole group after `limit_s` (0: at once). Returns when it has ended.

        Cancelled, it leaves the child with its SIGTERM: who stops in earnest calls it again.
        """
        self.ended.cancel()
        if self._watcher.done():
            return
        if limit_s > 0:
            self._process.terminate()
            try:
                async with asyncio.timeout(limit_s):
                    await asyncio.shield(self._watcher)
            except TimeoutError:
                _log.warning("%s: not gone %g s after SIGTERM, killing it", self.name, limit_s)
        if self._process.returncode is None:
            self._kill_group()
        await asyncio.shield(self._watcher)

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # nobody is left in it
            os.killpg(self.pid, signal.SIGKILL)

    async def _watch(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        readers = [
            asyncio.create_task(_each_line(self._process.stdout, self._heard)),
            asyncio.create_task(_each_line(self._process.stderr, self._complained)),
        ]
        await self._process.wait()
        # Its last words may still be in the pipes; a grandchild could hold these open for ever.
        _, unread = await asyncio.wait(readers, timeout=_PIPES_S)
        for reader in unread:
            reader.cancel()
        await asyncio.gather(*unread, return_exceptions=True)
        if not self._announced.done():
            self._announced.set_result(None)
        if not self.ended.done():
            self.ended.set_result(self._end())

    def _heard(self, line: str) -> None:
        if not self._announced.done():
            try:
                self._announced.set_result(msgspec.json.decode(line, type=ReadyLine))
            except msgspec.DecodeError:
                pass  # not the ready line yet; it is logged below like any other output
            else:
                return
        _log.info("%s: %s", self.name, line)

    def _complained(self, line: str) -> None:
        if line.strip():
            self._last_words.append(line.strip())
        _log.info("%s: %s", self.name, line)

    def _words(self) -> str:
        return f": {self._last_words[-1]}" if self._last_words else ""

    def _end(self, when: str = "") -> str:
        code = self._process.returncode
        if code is not None and code < 0:
            return f"was killed by {signal.Signals(-code).name}{when}{self._words()}"
        return f"exited with status {code}{when}{self._words()}"


async def _each_line(stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
    rest = b""
    while chunk := await stream.read(_LINE_LIMIT):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            take(line.decode(errors="replace"))
        rest = rest[-_LINE_LIMIT:]
    if rest:
        take(rest.decode(errors="replace"))
