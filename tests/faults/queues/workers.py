"""Worker processes for the fault tests: started, killed, drained."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from tests.faults.queues.worker_process import WorkerSettings

_ROOT = Path(__file__).resolve().parents[3]
_START_LIMIT_S = 30.0
_STOP_LIMIT_S = 30.0


class WorkerProcess:
    """One running worker."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, settings: WorkerSettings) -> WorkerProcess:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.faults.queues.worker_process",
            msgspec.json.encode(settings).decode(),
            stdout=asyncio.subprocess.PIPE,
            cwd=_ROOT,
        )
        worker = cls(process)
        async with asyncio.timeout(_START_LIMIT_S):
            assert (await worker._line()) == {"ready": True}
        return worker

    async def kill(self) -> None:
        """SIGKILL: no clean-up of any kind."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def pause(self) -> None:
        """SIGSTOP: its connections stay open, and it does nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on where it was, and does not know that it was away."""
        self._signal(signal.SIGCONT)

    async def drain(self) -> dict[str, Any]:
        """SIGTERM; what it says that it did."""
        self._process.terminate()
        async with asyncio.timeout(_STOP_LIMIT_S):
            counts = await self._line()
            assert await self._process.wait() == 0
        return counts

    def _signal(self, number: signal.Signals) -> None:
        """Unless it was killed meanwhile."""
        if self._process.returncode is None:
            self._process.send_signal(number)

    async def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        assert line, f"the worker ended with {await self._process.wait()}"
        document: dict[str, Any] = msgspec.json.decode(line)
        return document
