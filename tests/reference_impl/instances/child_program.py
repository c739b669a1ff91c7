"""A tiny program in the place of an instance's process, and a provider that starts it.

The program has no HTTP: it announces itself and ends on SIGTERM. Where a test must know how far it has come, or decide how
far it comes, they meet at a named pipe, so that nothing sleeps.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from reference_impl.instances.local_process import LocalProcessProvider
from reference_impl.messages import Call, Completion, Emit

LIMIT_S = 20.0


class RecordingPort:
    """A port that only remembers its address and whether it was closed."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.closed = False

    async def complete(self, call: Call, emit: Emit | None = None) -> Completion:
        raise AssertionError("this port answers nothing")

    async def aclose(self) -> None:
        self.closed = True


CHILD = """
import json, os, signal, sys, threading

mode, instance_id, folder = sys.argv[1:4]
if mode == "fails":
    print("first line of a long story", file=sys.stderr)
    sys.stderr.write("ValueError: upstream_url: 'nowhere' is not a URL")  # without a line's end
    sys.exit(3)
gone = threading.Event()
signal.signal(signal.SIGTERM, (lambda *_: None) if mode == "stubborn" else (lambda *_: gone.set()))
if mode == "mute":
    if os.path.exists(os.path.join(folder, "begun")):
        open(os.path.join(folder, "begun"), "w").close()  # a pipe: tells the test that we run
    gone.wait()
    sys.exit(0)
if mode == "chatty":
    print("x" * 300_000)
    sys.stderr.write("y" * 300_000 + "\\n")
    print("not the ready line")
print(json.dumps({"ready": "http://127.0.0.1:9", "pid": os.getpid()}), flush=True)
if mode == "crashes":
    sys.stdin = open(os.path.join(folder, "crash"))  # a pipe: opens when the test writes to it
    print("MemoryError: no room", file=sys.stderr, flush=True)
    os._exit(7)
while not gone.wait(60):
    pass
if mode == "slow":
    with open(os.path.join(folder, "draining"), "w"):
        pass  # a pipe: opens when the test reads from it
    with open(os.path.join(folder, "finish")) as file:
        file.read()
with open(os.path.join(folder, instance_id + ".drained"), "w") as file:
    file.write("yes")
"""


def write_program(folder: Path) -> Path:
    path = folder / "child.py"
    path.write_text(textwrap.dedent(CHILD))
    return path


@asynccontextmanager
async def provider_of(
    program: Path, mode: str = "well", *, boot_s: float = 0.0, ready_limit_s: float = LIMIT_S
) -> AsyncIterator[LocalProcessProvider]:
    def command(instance_id: str) -> Sequence[str]:
        return [sys.executable, "-I", "-S", str(program), mode, instance_id, str(program.parent)]

    provider = LocalProcessProvider(
        command,
        RecordingPort,
        lambda _: boot_s,
        capacity=4,
        heartbeat_s=1.0,
        ready_limit_s=ready_limit_s,
    )
    try:
        yield provider
    finally:
        await provider.aclose()


_others: set[psutil.Process] = set()


def forget_other_children() -> None:
    """What runs now belongs to other tests of this process: shared servers, helpers of multiprocessing, unread endings."""
    _others.clear()
    _others.update(psutil.Process().children(recursive=True))


def children() -> list[psutil.Process]:
    """Instances that this process started since `forget_other_children`; servers that tests share are not Python's."""
    found = [p for p in psutil.Process().children(recursive=True) if p not in _others]
    return [child for child in found if child.is_running() and "python" in child.name()]
