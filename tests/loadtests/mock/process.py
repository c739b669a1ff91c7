"""Starting a server that announces itself by one line of JSON, in a process of its own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

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
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(10)
        if process.stdout is not None:
            process.stdout.close()
