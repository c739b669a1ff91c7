"""Processes that simulate: started out of reach of what stops the program, and gone with it."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from simulation.experiments.workers import LocalWorkers


def handled() -> tuple[set[signal.Signals], list[Any]]:
    """What a worker has blocked, and what it does on signals from a terminal."""
    blocked = {signal.Signals(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}
    return blocked, [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)]


def test_a_worker_that_is_still_starting_leaves_a_terminals_signals_to_its_parent(
    capfd: pytest.CaptureFixture[str],
) -> None:
    workers = LocalWorkers(1)
    executor = workers.open()
    try:
        before = set(multiprocessing.active_children())
        future = executor.submit(handled)
        (child,) = set(multiprocessing.active_children()) - before
        assert child.pid is not None
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGHUP)
        assert future.result(60) == (set(), [signal.SIG_IGN, signal.SIG_IGN])
    finally:
        workers.close(executor)
    assert capfd.readouterr().err == ""


def test_an_interrupt_while_a_worker_is_started_leaves_no_worker_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    workers = LocalWorkers(1)
    spawn: Callable[..., int] = multiprocessing.util.spawnv_passfds
    started: list[psutil.Process] = []

    def spawn_and_be_interrupted(path: Any, arguments: Any, passed: Any) -> int:
        pid = spawn(path, arguments, passed)
        if any(b"spawn_main" in os.fsencode(part) for part in arguments):
            started.append(psutil.Process(pid))
            os.kill(os.getpid(), signal.SIGINT)
        return pid

    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", spawn_and_be_interrupted)
    executor = workers.open()
    with pytest.raises(KeyboardInterrupt):
        executor.submit(handled)
    workers.abandon(executor)
    assert len(started) == 1
    _, alive = psutil.wait_procs(started, timeout=60)
    assert alive == []
    assert capfd.readouterr().err == ""
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}
