"""The live system as processes on loopback: started, watched, stopped."""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from loadtests.child_process import python_module
from loadtests.stack import Stack, StackError
from tests.loadtests.run_one import SYSTEM
from tests.loadtests.workloads import small

SCENARIO = small("{kind: constant, rate_per_s: 1}", horizon_s=1.5, more=SYSTEM)
QUESTION = {
    "model": "claude-haiku-4-5",
    "max_tokens": 8,
    "messages": [{"role": "user", "content": "hi"}],
}


def ask(url: str, key: str) -> dict[str, Any]:
    headers = {"content-type": "application/json", "x-api-key": key}
    request = urllib.request.Request(f"{url}/v1/messages", json.dumps(QUESTION).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def children() -> list[psutil.Process]:
    alive = psutil.Process().children(recursive=True)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_a_stack_answers_those_with_a_key_and_leaves_no_process(tmp_path: Path) -> None:
    before = set(children())
    with Stack(SCENARIO, tmp_path, {"key-of-a": "a"}) as stack:
        assert stack.url.startswith("http://127.0.0.1:")
        assert ask(stack.url, "key-of-a")["type"] == "message"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(stack.url, "another")
        stack.check()
        names = {" ".join(process.cmdline()[2:]) for process in set(children()) - before}
        assert any("loadtests.mock_llm" in name for name in names)
        assert any("reference_impl.service gateway" in name for name in names)
        assert any("reference_impl.service instance" in name for name in names)
    assert set(children()) - before == set()
    log = [json.loads(line) for line in (tmp_path / "mock.jsonl").read_text().splitlines()]
    assert [attempt["outcome"] for attempt in log] == ["ok"]


def test_the_first_request_waits_for_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of a second of the gateway's loop, which look-ups in a shared cache would take for an outage."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    told = tmp_path / "logs" / "gateway.err"
    with Stack(SCENARIO, tmp_path) as stack:
        loaded = told.read_text()
        ask(stack.url, "")
        later = told.read_text().removeprefix(loaded)
    names = {line.split("|")[-1].strip() for line in later.splitlines() if "import time:" in line}
    assert "aiohttp" in loaded
    assert {name for name in names if not name.startswith("encodings.")} <= {"stringprep"}


def test_keys_are_in_no_command_and_in_no_file_that_others_can_read(tmp_path: Path) -> None:
    before = set(children())
    with Stack(SCENARIO, tmp_path, {"key-of-a": "a"}):
        commands = [" ".join(process.cmdline()) for process in set(children()) - before]
        assert not any("key-of-a" in command for command in commands)
        holders = [
            path
            for path in tmp_path.rglob("*")
            if path.is_file() and b"key-of-a" in path.read_bytes()
        ]
        assert [oct(path.stat().st_mode & 0o077) for path in holders] == ["0o0"] * len(holders)


def test_a_process_that_dies_is_noticed_and_named(tmp_path: Path) -> None:
    before = set(children())
    with Stack(SCENARIO, tmp_path) as stack:
        (mock,) = [
            process
            for process in set(children()) - before
            if "loadtests.mock_llm" in process.cmdline()
        ]
        mock.kill()
        os.waitid(os.P_PID, mock.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
        with pytest.raises(StackError, match=r"^mock died \(signal SIGKILL\)"):
            stack.check()
    assert set(children()) - before == set()


@pytest.mark.parametrize("status", [1, 2])
def test_a_stack_that_cannot_start_says_why_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Status 2 is how our processes refuse what they are told."""

    def broken_gateway(module: str, *arguments: str) -> list[str]:
        if module == "loadtests.mock_llm":
            return python_module(module, *arguments)
        code = f"import sys; print('error: no instance', file=sys.stderr); sys.exit({status})"
        return [sys.executable, "-c", code]

    monkeypatch.setattr("loadtests.stack.python_module", broken_gateway)
    before = set(children())
    with (
        pytest.raises(
            StackError, match=rf"^gateway died \(exit status {status}\): error:"
        ) as caught,
        Stack(SCENARIO, tmp_path),
    ):
        pytest.fail("entered")
    assert caught.value.is_bad_input == (status == 2)
    assert set(children()) - before == set()
