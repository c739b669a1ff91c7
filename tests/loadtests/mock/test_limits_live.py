"""Rate limits in both worlds: a minute played in a second, and the log of a live run replayed in virtual time."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Literal

import aiohttp
import msgspec
import pytest

from reference_impl.messages import RequestTag
from simulation.kernel import run
from simulation.models.llm_endpoint import AttemptRecord, LLMEndpoint
from simulation.scenario.endpoint import load_profile
from tests.loadtests.mock.process import Mock, running_mock
from tests.simulation.models.endpoint.accepted import accepted_per_min
from tests.simulation.models.endpoint.calls import MODEL, Records, offered, tagged

# Two minutes of the profile in six seconds.
_SPEEDUP = 20.0
_MINUTES = 2.0
_PROFILE = f"""
name: limited
speedup: {_SPEEDUP}
service:
  kind: provider
  ttft_s: {{kind: lognormal, median: 0.6, sigma: 0.45}}
  tokens_per_s: {{kind: lognormal, median: 100, sigma: 0.2}}
  prefill_s_per_token: 0.0001
output_tokens: 20
limits: {{requests_per_min: 600, input_tokens_per_min: 100000, output_tokens_per_min: 12000}}
overload: {{capacity_in_flight: 60, onset: 0.3, background: 0.02}}
faults: [{{kind: "500", probability: 0.01}}]
prompt_cache: {{automatic: true}}
"""
# Each line of models is held back by another limit; all are offered 20 requests a second of the profile's own time, which
# is twice what passes. Ten seconds of burst are half a second here: hiccups of the machine up to that length do
# not let a bucket overflow.
_OFFERED_PER_S = 20.0
_LINES = f"""
name: lines
speedup: {_SPEEDUP}
service: {{kind: provider, ttft_s: 1.0, tokens_per_s: 50, prefill_s_per_token: 0}}
output_tokens: 50
lines:
  haiku: {{limits: {{requests_per_min: 600, burst_s: 10}}}}
  sonnet: {{limits: {{input_tokens_per_min: 300000, burst_s: 10}}}}
  opus: {{limits: {{output_tokens_per_min: 30000, burst_s: 10}}}}
"""
_LIMITS: list[tuple[str, Literal["requests", "input_tokens", "output_tokens"], float]] = [
    ("claude-haiku-5-5", "requests", 600),
    ("claude-sonnet-5-5", "input_tokens", 300_000),
    ("claude-opus-5-5", "output_tokens", 30_000),
]


async def _offer(mock: Mock, per_s: float, rows: list[RequestTag], *models: str) -> None:
    """Send `rows`, `per_s` a second to the models in turn, whatever becomes of them."""
    headers = {"x-api-key": "key", "anthropic-version": "2023-06-01"}
    messages = [{"role": "user", "content": "x"}]
    payloads = [
        msgspec.json.encode({"model": model, "max_tokens": 1000, "messages": messages})
        for model in models
    ]
    loop = asyncio.get_running_loop()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def send(tag: RequestTag, payload: bytes) -> None:
            extra = {"x-twinload-request": tag.encode()}
            url = f"{mock.url}/v1/messages"
            async with session.post(url, data=payload, headers=extra) as answer:
                await answer.read()

        begin_s = loop.time()
        tasks = []
        for i, row in enumerate(rows):
            await asyncio.sleep(begin_s + i / per_s - loop.time())
            tasks.append(asyncio.create_task(send(row, payloads[i % len(payloads)])))
        await asyncio.gather(*tasks)


@pytest.mark.serial
def test_at_twice_each_limit_the_accepted_rate_is_the_limit_within_one_percent(
    tmp_path: Path,
) -> None:
    (tmp_path / "p.yaml").write_text(_LINES)
    count = int(len(_LIMITS) * _OFFERED_PER_S * _MINUTES * 60)
    rows = [RequestTag(i, 0, i, 500, 50) for i in range(count)]
    per_s = len(_LIMITS) * _OFFERED_PER_S * _SPEEDUP
    with running_mock(tmp_path, "--profile", str(tmp_path / "p.yaml")) as mock:
        asyncio.run(_offer(mock, per_s, rows, *(model for model, _, _ in _LIMITS)))
    records = [
        msgspec.convert({k: math.nan if v is None else v for k, v in r.items()}, AttemptRecord)
        for r in mock.records()
    ]
    assert len(records) == count
    for model, what, limit_per_min in _LIMITS:
        of_line = [record for record in records if record.model == model]
        assert {record.status for record in of_line} == {200, 429}
        accepted = accepted_per_min(of_line, what) / _SPEEDUP
        assert accepted == pytest.approx(limit_per_min, rel=0.01), what


def test_replaying_a_live_log_in_virtual_time_gives_the_same_decisions(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(_PROFILE)
    rows = [RequestTag(i, 0, i % 150, 1500 if i % 7 == 0 else 90, 5 + i % 40) for i in range(700)]
    arguments = ("--profile", str(tmp_path / "p.yaml"), "--seed", "11")
    with running_mock(tmp_path, *arguments) as mock:
        asyncio.run(_offer(mock, 350.0, rows, MODEL))
    live = sorted(mock.records(), key=lambda record: record["arrived_s"])

    replayed = Records()

    async def main() -> None:
        profile = load_profile(tmp_path / "p.yaml")
        endpoint = LLMEndpoint(profile, 11, observer=replayed.observe)
        arrivals = []
        for record in live:
            row = rows[record["request_id"]]
            call = tagged(row.request_id, max_tokens=1000, tag=row)
            arrivals.append((record["arrived_s"], call))
        await offered(endpoint, arrivals)

    run(main())
    by_id = {record.request_id: record for record in replayed}
    decided_live = [
        (r["request_id"], r["status"], r["limit"], r["fault"], r["cache_read_input_tokens"])
        for r in live
    ]
    decided_virtual = [
        (
            r["request_id"],
            by_id[r["request_id"]].status,
            by_id[r["request_id"]].limit,
            by_id[r["request_id"]].fault,
            by_id[r["request_id"]].cache_read_input_tokens,
        )
        for r in live
    ]
    assert decided_virtual == decided_live
    statuses = {status for _, status, *_ in decided_live}
    assert statuses == {200, 429, 500, 529}  # the replay had something to decide
    limits = {limit.split(" of ")[1].split(" per ")[0] for _, _, limit, *_ in decided_live if limit}
    assert limits == {"requests", "input tokens", "output tokens"}
    for record in live:
        if record["status"] == 200:
            drawn = by_id[record["request_id"]].drawn_endpoint_s
            assert record["drawn_endpoint_s"] == pytest.approx(drawn, abs=1e-9)
