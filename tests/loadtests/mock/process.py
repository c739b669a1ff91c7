"""Starting a server that announces itself by one line of JSON, in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

_ROOT = Path(__file__).resolve().parents[3]


@contextlib.contextmanager
def server_process(module: str, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run `python -m module`; gives its URL and the process, which must end by itself on SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        cwd=_ROOT,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, f"{module} ended with {process.wait(10)} before it was ready"
        yield msgspec.json.decode(line)["ready"], process
        if process.poll() is None:
            process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()


def read_log(log: Path) -> list[dict[str, Any]]:
    """The lines of a mock's log that are written so far."""
    lines = log.read_bytes().split(b"\n")
    return [msgspec.json.decode(line) for line in lines[:-1]]  # the last one may be half


@dataclass(frozen=True)
class Mock:
    """A running mock server."""

    url: str
    pid: int
    log: Path

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def records(self) -> list[dict[str, Any]]:
        """The lines of its log that are written so far."""
        return read_log(self.log)

    def wait_for(
        self, wanted: Callable[[dict[str, Any]], bool], limit_s: float = 5.0
    ) -> dict[str, Any]:
        """The first record of the log that is `wanted`; the log is flushed four times a second."""
        give_up_s = time.monotonic() + limit_s
        while True:
            found = next((record for record in self.records() if wanted(record)), None)
            if found is not None:
                return found
            assert time.monotonic() < give_up_s, "no such line in the mock's log"
            self.gauge("mock_in_flight")  # paces the loop without a sleep

    def gauge(self, name: str) -> float:
        """A value of its metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(f"{name} "):
                    return float(line.split()[1])
        raise KeyError(name)

    def wait_until_idle(self, limit_s: float = 5.0) -> None:
        """Return when no attempt is in flight; each look is a request of its own."""
        give_up_s = time.monotonic() + limit_s
        while self.gauge("mock_in_flight") > 0:
            assert time.monotonic() < give_up_s, "attempts are still in flight"


@contextlib.contextmanager
def running_mock(folder: Path, *arguments: str) -> Iterator[Mock]:
    """A mock with its log in `folder`."""
    log = folder / "mock.jsonl"
    with server_process("loadtests.mock_llm", "--log", str(log), *arguments) as (url, process):
        yield Mock(url, process.pid, log)
