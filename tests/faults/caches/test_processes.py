"""Four operating system processes over one Valkey: one computation in a stampede, and invalidations that arrive."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reference_impl.caches.cache_layer import CacheLayer
from reference_impl.caches.redis_store import RedisStore
from reference_impl.caches.shared_level import SharedLevel
from tests.servers.valkey import shared_valkey_url, unique_prefix

PROCESSES = 4
ROOT = Path(__file__).parents[3]


class Worker:
    def __init__(self, url: str, prefix: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.caches.cache_process", url, prefix],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the worker ended: {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def prefix() -> str:
    return unique_prefix()


@pytest.fixture(scope="module")
def workers(prefix: str) -> Iterator[list[Worker]]:
    url = shared_valkey_url()
    workers = [Worker(url, prefix) for _ in range(PROCESSES)]
    try:
        for worker in workers:
            worker.answer()
        yield workers
    finally:
        for worker in workers:
            worker.close()


def test_a_stampede_over_four_processes_computes_once(workers: list[Worker]) -> None:
    for worker in workers:
        worker.tell("fetch stampede 250")
    answers = [worker.answer() for worker in workers]
    assert sum(answer["computations"] for answer in answers) == 1
    assert all(answer["values"] == ["value"] for answer in answers)
    assert sorted(tuple(answer["sources"]) for answer in answers) == [
        *[("coalesced",)] * 3,
        ("coalesced", "miss"),
    ]


@pytest.mark.serial
def test_an_invalidation_reaches_every_process_in_under_100_ms(
    workers: list[Worker], prefix: str
) -> None:
    for worker in workers:
        worker.tell("fetch user:1 1")
        worker.answer()
        worker.tell("fetch user:1 1")
        assert worker.answer()["sources"] == ["l1"]
        worker.tell("watch user:1")
        worker.answer()

    async def invalidate() -> float:
        shared: SharedLevel[str] = SharedLevel(
            RedisStore(shared_valkey_url(), prefix=prefix), name="invalidator", timeout_s=1.0
        )
        layer: CacheLayer[str] = CacheLayer(shared=shared)
        asked_at_s = time.monotonic()
        assert await layer.invalidate("user:*") == 1
        await layer.aclose()
        return asked_at_s

    asked_at_s = asyncio.run(invalidate())
    took_s = [worker.answer()["gone_at_s"] - asked_at_s for worker in workers]
    assert max(took_s) < 0.1
