"""A process is known by more than its number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import msgspec
import pytest

from reference_impl.live.services.process_marks import mark_of


@pytest.fixture(name="sleeper")
def running_sleeper() -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(command, start_new_session=True) as process:
        yield process
        process.kill()


def test_a_process_that_runs_is_alive_and_gets_signals(sleeper: subprocess.Popen[bytes]) -> None:
    mark = mark_of(sleeper.pid)
    assert mark.is_alive
    mark.signal_group(signal.SIGTERM)
    assert sleeper.wait(10) == -signal.SIGTERM
    assert not mark.is_alive


def test_another_process_of_the_same_number_is_not_it_and_gets_no_signal(
    sleeper: subprocess.Popen[bytes],
) -> None:
    mark = mark_of(sleeper.pid)
    former = msgspec.structs.replace(mark, started=mark_of(os.getpid()).started)
    assert not former.is_alive
    former.signal_group(signal.SIGKILL)
    assert sleeper.poll() is None


def test_one_that_has_ended_and_was_not_yet_waited_for_is_not_alive(
    sleeper: subprocess.Popen[bytes],
) -> None:
    mark = mark_of(sleeper.pid)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not mark.is_alive
    assert not mark_of(sleeper.pid).is_alive
