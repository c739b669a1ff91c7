"""A run that the mock could not keep up with is not valid."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import httpx2
import pytest

from loadtests.mock.validity import Punctuality
from tests.loadtests.mock.process import Mock, running_mock

_HEADERS = {"x-api-key": "key", "anthropic-version": "2023-06-01"}


def _ask(mock: Mock, row: int) -> None:
    body: dict[str, Any] = {
        "model": "claude-haiku-5-5",
        "max_tokens": 500,
        "stream": True,
        "messages": [{"role": "user", "content": "x"}],
    }
    headers = {**_HEADERS, "x-twinload-request": f"id={row};output=50"}
    httpx2.post(f"{mock.url}/v1/messages", json=body, headers=headers, timeout=20)


def test_one_late_answer_in_a_hundred_is_allowed() -> None:
    punctuality = Punctuality()
    for late_s in [0.001] * 99 + [0.5]:
        punctuality.add(late_s)
    assert punctuality.verdict().valid
    punctuality.add(0.011)
    verdict = punctuality.verdict()
    assert not verdict.valid
    assert verdict.reason.startswith("the mock was the bottleneck: 2 of 101 answers")


@pytest.mark.serial
def test_a_mock_that_was_stopped_for_a_moment_says_that_the_run_is_not_valid(
    tmp_path: Path,
) -> None:
    with running_mock(tmp_path, "--profile", "fast") as mock:
        _ask(mock, 1)
        assert httpx2.get(f"{mock.url}/healthz").json()["valid"]
        asking = threading.Thread(target=_ask, args=(mock, 2))
        asking.start()
        while mock.gauge("mock_in_flight") == 0:
            pass
        os.kill(mock.pid, signal.SIGSTOP)
        try:
            # Half a second in which it answers nobody.
            with pytest.raises(httpx2.TimeoutException):
                httpx2.get(f"{mock.url}/healthz", timeout=0.5)
        finally:
            os.kill(mock.pid, signal.SIGCONT)
        asking.join(20)
        health = httpx2.get(f"{mock.url}/healthz").json()
    assert not health["valid"]
    assert "bottleneck" in health["reason"]
    answers = health["answers"]
    assert (answers["judged"], answers["late"]) == (2, 1)
