"""The whole live system under 200 requests a second while its Redis is killed and brought back, and the same in virtual time."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import aiohttp
import msgspec
import pytest

from loadtests.stack import Stack
from reference_impl.live.loop import run_live
from reference_impl.messages import TAG_HEADER, RequestTag
from reference_impl.telemetry import SystemEvent
from simulation.scenario.prompts import request_body
from simulation.scenario.schema import Scenario
from simulation.scenario.workload import CompiledWorkload, compile_workload
from tests.loadtests.workloads import small
from tests.servers.valkey import ValkeyProcess
from tests.simulation.runs import play

AWAY_AT_S = 1.5
BACK_AT_S = 3.0
HORIZON_S = 6.0
TIMEOUT_S = 0.1


def scenario(faults: str = "") -> Scenario:
    """An endpoint that takes no time: what a request takes is the system's, and the outage's."""
    return small(
        "{kind: constant, rate_per_s: 200}",
        horizon_s=HORIZON_S,
        more=f"""
  prompts: {{kind: zipf, exponent: 0, prompts: 40}}
  stream_fraction: 0
endpoint: instant
deployment:
  instances: {{initial: 1, boot_s: 0, drain_s: 1, concurrency: 1000}}
  autoscaler: {{enabled: false}}
  cache: {{shared: redis, l1_ttl_s: 0, timeout_s: {TIMEOUT_S}}}
{faults}
""",
    )


class Load:
    """What the clients saw: (instant, seconds, status, cache, prompt) of each request; instants from the first on."""

    def __init__(self, workload: CompiledWorkload) -> None:
        self.workload = workload
        self.seen: list[tuple[float, float, int, str, int]] = []
        self.lateness_s: list[float] = []
        self.started_s = 0.0

    async def play(self, url: str, server: ValkeyProcess) -> None:
        loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            self.started_s = loop.time()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._outage(server))
                for row, due_s in enumerate(self.workload.intended_s.tolist()):
                    await asyncio.sleep(self.started_s + due_s - loop.time())
                    self.lateness_s.append(loop.time() - self.started_s - due_s)
                    group.create_task(self._ask(session, url, row))

    async def _outage(self, server: ValkeyProcess) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.started_s + AWAY_AT_S - loop.time())
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(self.started_s + BACK_AT_S - loop.time())
        await asyncio.to_thread(server.start)

    async def _ask(self, session: aiohttp.ClientSession, url: str, row: int) -> None:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        tag = RequestTag(row, 0, int(self.workload.prompt_id[row]), 50, 5)
        headers = {"content-type": "application/json", TAG_HEADER: tag.encode()}
        body = request_body(self.workload, row)
        async with session.post(f"{url}/v1/messages", data=body, headers=headers) as response:
            await response.read()
            cache = response.headers.get("x-twinload-cache", "")
            now_s = loop.time()
            at_s = began_s - self.started_s
            self.seen.append((at_s, now_s - began_s, response.status, cache, tag.prompt_id))

    def p99_s(self, from_s: float, to_s: float) -> float:
        return quantile_99([took for at, took, *_ in self.seen if from_s <= at < to_s])

    def share_of_l2(self, from_s: float, to_s: float, *, filled_from_s: float) -> float:
        """Of the questions that had been answered before, since `filled_from_s`: a first question must miss."""
        answered_s: dict[int, float] = {}
        for at, took, _, _, prompt in self.seen:
            if at >= filled_from_s:
                answered_s[prompt] = min(at + took, answered_s.get(prompt, math.inf))
        results = [
            cache
            for at, _, _, cache, prompt in self.seen
            if from_s <= at < to_s and answered_s.get(prompt, math.inf) < at
        ]
        return results.count("l2") / len(results)


def quantile_99(values: list[float]) -> float:
    return sorted(values)[int(0.99 * len(values))]


def breaker(events: list[SystemEvent], origin_s: float = 0.0) -> list[tuple[float, object, object]]:
    return [
        (e.t_s - origin_s, e.detail["before"], e.detail["after"])
        for e in events
        if e.kind == "breaker"
    ]


@pytest.mark.serial
def test_no_request_fails_for_a_redis_that_is_killed_and_it_heals_as_in_virtual_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = scenario()
    load = Load(compile_workload(chosen))
    with ValkeyProcess() as server:
        monkeypatch.setenv("TWINLOAD_REDIS", server.url)
        with Stack(chosen, tmp_path) as stack:
            run_live(load.play(stack.url, server))

    assert {status for _, _, status, _, _ in load.seen} == {200}
    assert len(load.seen) == len(load.workload)
    added_s = load.p99_s(AWAY_AT_S, HORIZON_S) - load.p99_s(0.5, AWAY_AT_S)
    # A busy machine wakes every sleeper late: the load's own lateness is not the cache's.
    assert added_s <= TIMEOUT_S + quantile_99(load.lateness_s)
    assert load.share_of_l2(0.8, AWAY_AT_S, filled_from_s=0.0) > 0.9
    assert load.share_of_l2(AWAY_AT_S + 0.2, BACK_AT_S, filled_from_s=0.0) == 0

    lines = (tmp_path / "events-gateway.jsonl").read_bytes().splitlines()
    live = breaker([msgspec.json.decode(line, type=SystemEvent) for line in lines], load.started_s)
    outage = (
        f"faults: [{{kind: redis_outage, at_s: {AWAY_AT_S}, duration_s: {BACK_AT_S - AWAY_AT_S}}}]"
    )
    virtual = breaker(play(scenario(outage)).events)
    assert [change[1:] for change in live] == [change[1:] for change in virtual]
    assert virtual[-1][1:] == ("half_open", "closed")
    for (live_s, *_), (virtual_s, *_) in zip(live, virtual, strict=True):
        assert abs(live_s - virtual_s) < 0.25
    back_s = live[-1][0]  # its server came back empty
    assert load.share_of_l2(back_s + 0.5, HORIZON_S, filled_from_s=back_s) > 0.9
