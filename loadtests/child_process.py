"""A process that this one starts, watches, and ends whatever happens.

Three nets, because each has a hole: the context manager or `stop()` (not reached when this process is killed), the group of the
process (not reached by what left it), and on Linux the kernel's parent-death signal (which needs no code of ours to run).
Output goes to files, so that no pipe can fill up and the last words of a process can be read after its death.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil

from reference_impl.live.services.tied import tied

__all__ = ["PACKAGES", "ChildProcess", "ProcessFailed", "python_module"]

# The folder that holds our packages: the checkout, or the private folder of an installed wheel.
PACKAGES: Final = Path(__file__).resolve().parents[1]
POLL_S: Final = 0.02
KILL_WAIT_S: Final = 5.0
BAD_INPUT: Final = 2


class ProcessFailed(RuntimeError):
    """A process did not start, or died: one line that names it, its exit status and its last words.

    `is_bad_input`: it refused what it was told, as our processes do with status 2.
    """

    def __init__(self, message: str, *, is_bad_input: bool = False) -> None:
        super().__init__(message)
        self.is_bad_input = is_bad_input


def python_module(module: str, *arguments: str) -> list[str]:
    """The command that runs a module; `-P` keeps the working directory off the module path."""
    return [sys.executable, "-P", "-m", module, *arguments]


class ChildProcess:
    """One child in a process group of its own, with its output in `folder`.

    Args:
        name: for messages and file names.
        command: as for `subprocess`.
        folder: receives `NAME.out` and `NAME.err`, and is the child's working directory.
        environment: added to this process's own.
        death_signal: what the child gets when this process dies (Linux).
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        death_signal: int = signal.SIGKILL,
    ) -> None:
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        self._out = folder / f"{name}.out"
        self._err = folder / f"{name}.err"
        paths = [str(PACKAGES), os.environ.get("PYTHONPATH", "")]
        variables = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                tied(command, death_signal),
                cwd=folder,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.poll()

    def wait_ready(self, limit_s: float) -> dict[str, Any]:
        """The JSON object of the first line that the process prints.

        Raises ProcessFailed when it dies before, prints something else, or takes longer than `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        while True:
            status = self.exit_status()
            line, newline, _ = self._out.read_bytes().partition(b"\n")
            if newline:
                return self._ready_line(line)
            if status is not None:
                raise ProcessFailed(self.obituary(status), is_bad_input=status == BAD_INPUT)
            if time.monotonic() > deadline:
                raise ProcessFailed(f"{self.name} was not ready within {limit_s:g} s{self._last()}")
            time.sleep(POLL_S)

    def _ready_line(self, line: bytes) -> dict[str, Any]:
        try:
            return msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError:
            shown = line[:200].decode(errors="replace")
            raise ProcessFailed(f"{self.name} printed {shown!r}, not a ready line") from None

    def obituary(self, status: int) -> str:
        """One line: who died, how, and the last line of its standard error."""
        how = f"exit status {status}"
        if status < 0:
            how = f"signal {signal.Signals(-status).name}"
        return f"{self.name} died ({how}){self._last()}"

    def _last(self) -> str:
        size = self._err.stat().st_size
        with self._err.open("rb") as file:
            file.seek(max(0, size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
        words = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return (
            f": {words[:300]}" if words else f"; it said nothing on standard error, see {self._out}"
        )

    def terminate(self) -> None:
        """Ask it to end; does not wait."""
        if self.exit_status() is None:
            self._process.terminate()

    def stop(self, grace_s: float) -> None:
        """Ask it to end, wait at most `grace_s`, then kill it with everything that it started. Idempotent."""
        family = self._descendants()
        try:
            self.terminate()
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            pass  # killed below
        finally:
            # Also on the way out of an interrupt: nothing may stay.
            self._kill(family)

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def _kill(self, family: list[psutil.Process]) -> None:
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # the whole group has ended
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass  # ended by itself
        self._process.wait(KILL_WAIT_S)
