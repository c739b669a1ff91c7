"""Processes that are started, watched, and ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from loadtests.child_process import PACKAGES, ChildProcess, ProcessFailed, python_module

LIMIT_S = 10.0


def python(code: str) -> list[str]:
    return [sys.executable, "-P", "-c", code]


def child(code: str, folder: Path) -> ChildProcess:
    return ChildProcess("worker", python(code), folder)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


READY = 'print(\'{"ready": "http://127.0.0.1:1"}\', flush=True); '
SLEEP = "import time; time.sleep(60)"


def test_the_ready_line_is_read_and_a_stop_ends_the_process(tmp_path: Path) -> None:
    started = child(READY + SLEEP, tmp_path)
    assert started.wait_ready(LIMIT_S) == {"ready": "http://127.0.0.1:1"}
    started.stop(LIMIT_S)
    assert started.exit_status() == -signal.SIGTERM
    started.stop(LIMIT_S)


def test_a_process_that_dies_before_it_is_ready_is_named_with_its_last_words(
    tmp_path: Path,
) -> None:
    started = child("import sys; print('x\\nport in use', file=sys.stderr); sys.exit(2)", tmp_path)
    with pytest.raises(ProcessFailed, match=r"^worker died \(exit status 2\): port in use$"):
        started.wait_ready(LIMIT_S)


def test_a_process_that_is_never_ready_is_given_up(tmp_path: Path) -> None:
    started = child(SLEEP, tmp_path)
    with pytest.raises(ProcessFailed, match=r"not ready within 0\.2 s"):
        started.wait_ready(0.2)
    started.stop(0.0)
    assert started.exit_status() is not None


def test_anything_but_json_is_no_ready_line(tmp_path: Path) -> None:
    started = child("print('hello')", tmp_path)
    with pytest.raises(ProcessFailed, match="worker printed 'hello', not a ready line"):
        started.wait_ready(LIMIT_S)


def test_a_process_that_ignores_the_request_to_end_is_killed(tmp_path: Path) -> None:
    started = child(f"import signal; signal.signal(15, signal.SIG_IGN); {READY + SLEEP}", tmp_path)
    started.wait_ready(LIMIT_S)
    started.stop(0.1)
    assert started.exit_status() == -signal.SIGKILL


def test_a_stop_takes_the_grandchildren_along_even_those_that_left_the_group(
    tmp_path: Path,
) -> None:
    code = (
        "import json, subprocess, sys, time; "
        "sleeper = [sys.executable, '-c', 'import time; time.sleep(60)']; "
        "pids = [subprocess.Popen(sleeper, start_new_session=s).pid for s in (False, True)]; "
        "print(json.dumps({'pids': pids}), flush=True); time.sleep(60)"
    )
    started = child(code, tmp_path)
    pids = started.wait_ready(LIMIT_S)["pids"]
    started.stop(0.1)
    assert eventually(lambda: all(map(is_gone, pids)))


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_child_dies_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from loadtests.child_process import ChildProcess; "
        f"started = ChildProcess('worker', [sys.executable, '-c', {SLEEP!r}], Path({str(tmp_path)!r})); "
        "print(started.pid, flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    with subprocess.Popen(python(code), stdout=subprocess.PIPE, text=True, env=environment) as one:
        assert one.stdout is not None
        pid = int(one.stdout.readline())
        assert not is_gone(pid)
        one.kill()
    assert eventually(lambda: is_gone(pid))


def test_a_child_finds_our_packages_not_those_of_the_working_directory(tmp_path: Path) -> None:
    decoy = tmp_path / "simulation"
    decoy.mkdir()
    (decoy / "__init__.py").write_text("raise SystemExit('the wrong simulation')")
    (tmp_path / "probe.py").write_text("raise SystemExit('the working directory is searched')")
    code = (
        "import importlib.util, json, simulation.scenario.schema as found; "
        "print(json.dumps({'from': found.__file__, 'probe': importlib.util.find_spec('probe') is None}))"
    )
    started = child(code, tmp_path)
    said = started.wait_ready(LIMIT_S)
    started.stop(LIMIT_S)
    assert said["from"].startswith(str(PACKAGES))
    assert said["probe"] is True


def test_the_command_for_a_module_keeps_the_working_directory_off_the_path() -> None:
    assert python_module("a.b", "--c")[1:] == ["-P", "-m", "a.b", "--c"]
