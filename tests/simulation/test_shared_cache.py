"""The shared cache and the cache by meaning in the whole virtual world."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from reference_impl.telemetry.trace_log import read_traces
from simulation.scenario.spec import Scenario, load_scenario
from simulation.scenario.workload import compile_workload
from tests.parity.wire import play_wire
from tests.simulation.runs import Recorded, play

TIMEOUT_S = 0.05
AWAY_AT_S = 3.0
BACK_AT_S = 4.5


def scenario(**more: object) -> Scenario:
    """200 requests/s over 100 prompts at an endpoint that takes 20 ms; level 1 keeps nothing, so every hit is the server's."""
    return load_scenario(
        "mm1",
        {
            "workload.arrivals": {"kind": "poisson", "rate_per_s": 200},
            "workload.prompts": {"kind": "zipf", "exponent": 0.8, "prompts": 100},
            "workload.input_tokens": 20,
            "endpoint.service.service_s": 0.02,
            "deployment.instances.concurrency": 1000,
            "deployment.cache": {
                "enabled": True,
                "shared": "redis",
                "l1_ttl_s": 0,
                "timeout_s": TIMEOUT_S,
            },
            "horizon_s": 10,
            **more,
        },
    )


def breaker(run: Recorded) -> list[tuple[float, object, object]]:
    return [
        (e.t_s, e.detail["before"], e.detail["after"]) for e in run.events if e.kind == "breaker"
    ]


def share_of_l2(run: Recorded, from_s: float, to_s: float) -> float:
    results = [r.cache for r in run.requests if from_s <= r.intended_s < to_s]
    return results.count("l2") / len(results)


@pytest.mark.parametrize("outage", ["refusing", "hanging"])
def test_no_request_fails_or_waits_beyond_the_time_out_for_a_redis_that_is_away(
    outage: str,
) -> None:
    fault = {
        "kind": "redis_outage",
        "at_s": AWAY_AT_S,
        "duration_s": BACK_AT_S - AWAY_AT_S,
        "outage": outage,
    }
    run = play(scenario(faults=[fault]))
    uncached = play(scenario(**{"deployment.cache": {"enabled": False}}))

    assert len(run.requests) > 1900
    assert {r.outcome for r in run.requests} == {"ok"}
    alone_s = {r.request_id: r.done_s - r.intended_s for r in uncached.requests}
    added_s = [r.done_s - r.intended_s - alone_s[r.request_id] for r in run.requests]
    assert max(added_s) <= TIMEOUT_S + 1e-6

    assert share_of_l2(run, 2.0, AWAY_AT_S) > 0.9
    assert share_of_l2(run, AWAY_AT_S + 0.001, BACK_AT_S) == 0
    assert share_of_l2(run, 9.0, 10.0) > 0.9


@pytest.mark.parametrize("outage", ["refusing", "hanging"])
def test_the_breaker_of_the_shared_cache_tells_its_changes_as_events(outage: str) -> None:
    fault = {
        "kind": "redis_outage",
        "at_s": AWAY_AT_S,
        "duration_s": BACK_AT_S - AWAY_AT_S,
        "outage": outage,
    }
    changes = breaker(play(scenario(faults=[fault])))
    assert [(old, new) for _, old, new in changes] == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
    ]
    instants = [t_s for t_s, *_ in changes]
    assert AWAY_AT_S < instants[0] < AWAY_AT_S + 0.3
    assert instants[2] < BACK_AT_S < instants[3]
    assert breaker(play(scenario())) == []


def test_outages_that_overlap_end_with_the_last_of_them() -> None:
    outages = [
        {"kind": "redis_outage", "at_s": 3, "duration_s": 2},
        {"kind": "redis_outage", "at_s": 4, "duration_s": 3},
    ]
    run = play(scenario(faults=outages, horizon_s=14))
    assert not any(r.cache == "l2" for r in run.requests if 3.001 < r.intended_s < 7)
    assert any(r.cache == "l2" for r in run.requests if r.intended_s > 7)


def test_the_server_of_the_shared_cache_is_a_station() -> None:
    run = play(scenario(**{"cache_server.service_s": 0.001}))
    samples = [s for s in run.stations if s.station == "cache server"]
    commands = sum(s.completions for s in samples)
    assert commands >= sum(r.cache == "l2" for r in run.requests)
    assert sum(s.busy_s for s in samples) == pytest.approx(commands * 0.001, rel=0.01)


def test_bytes_between_the_hops_give_the_same_hits_of_the_shared_level(tmp_path: Path) -> None:
    """Invariant 8, between the two virtual worlds."""
    changes = {
        "horizon_s": 15,
        "deployment.cache": {"shared": "redis", "l1_ttl_s": 1},
    }
    demo = load_scenario("demo", changes)
    objects = {r.request_id: r.cache for r in play(demo).requests}
    play_wire(demo, tmp_path)
    wire = {
        row.request_id: row.trace.cache for row in read_traces(tmp_path / "traces-gateway.jsonl")
    }
    assert wire == objects
    assert {"l1", "l2", "miss"} <= set(wire.values())


def semantic(**more: object) -> Scenario:
    """Two tenants; 400 prompts, of which four neighbours each mean the same."""
    return scenario(
        **{
            "workload.arrivals.rate_per_s": 100,
            "workload.prompts": {
                "kind": "zipf",
                "exponent": 0.0,
                "prompts": 400,
                "paraphrases": 4,
            },
            "workload.tenants": [{"name": f"t{n}"} for n in range(2)],
            "deployment.cache": {
                "enabled": True,
                "shared": "redis",
                "semantic": {"enabled": True},
            },
            "semantics": {"recall": 1, "false_hit_rate": 0},
            "horizon_s": 20,
            **more,
        }
    )


def test_an_answer_by_meaning_is_one_of_the_same_tenant_and_the_same_meaning() -> None:
    chosen = semantic()
    run = play(chosen)
    workload = compile_workload(chosen)
    by_meaning = 0
    seen: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    for record in sorted(run.requests, key=lambda r: r.sent_s):
        prompt = int(workload.prompt_id[record.request_id])
        answered = seen[record.tenant, prompt // 4]
        if record.cache == "semantic":
            by_meaning += 1
            assert min(answered) < record.done_s
        elif record.cache == "miss":
            assert not any(done_s < record.sent_s for done_s in answered)
        answered.append(record.done_s)
    assert by_meaning > 300
    misses = sum(r.cache == "miss" for r in run.requests)
    # A group of each tenant is computed once, or again by those that came before the first was answered.
    assert 195 <= misses <= 230


def test_no_paraphrase_is_found_without_recall_and_long_prompts_are_not_embedded() -> None:
    assert not any(
        r.cache == "semantic" for r in play(semantic(**{"semantics.recall": 0})).requests
    )
    long = play(semantic(**{"workload.input_tokens": 300, "horizon_s": 5}))
    assert {r.cache for r in long.requests} <= {"l1", "l2", "miss", "coalesced"}


def test_the_encoder_is_a_station_beside_the_loop_of_the_gateway() -> None:
    run = play(semantic(cpu={"gateway": {"embed": {"base_s": 0.005}}, "instance": {}}))
    encoder = sum(s.busy_s for s in run.stations if s.station == "gateway encoder cpu")
    embedded = sum(s.completions for s in run.stations if s.station == "gateway encoder cpu")
    assert encoder == pytest.approx(embedded * 0.005)
    # A prompt is embedded once, whoever asks it.
    assert 0 < embedded <= 400
    assert sum(s.busy_s for s in run.stations if s.station == "gateway cpu") == 0
